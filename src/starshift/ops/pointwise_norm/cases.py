# SPDX-License-Identifier: Apache-2.0
"""Cases of the 1x1 convolution with norm and activation."""

from __future__ import annotations

from starshift.ops._case import Case


def _case(name: str, why: str, x: tuple[int, int, int, int], wide: int, act: str = "none", bench: bool = False) -> Case:
    tensors = {"x": x, "w": (wide, x[1], 1, 1), "weight": (wide,), "bias": (wide,)}
    return Case(name, why, tensors, {"act": act}, bench)


CASES = {
    "pointwise_norm_act": [
        _case("expand", "the wide end of a block", (2, 8, 6, 8), 48, "relu6"),
        _case("odd", "channels and pixels that fit no vector", (3, 11, 7, 5), 37, "hardswish"),
        _case("narrowing", "fewer channels than before", (2, 24, 5, 6), 7),
        # The gradient of w cancels to eps / var of itself but where w is zero: in another size few numbers may decide.
        _case("one-channel", "a single input channel: u and x are the same up to a factor", (2, 1, 9, 5), 20, "silu"),
        _case("many-chunks", "pixels in several chunks, panels in pairs and alone", (7, 20, 17, 13), 136, "gelu"),
        _case("wide", "few pixels at a time", (2, 16, 12, 14), 700, "relu"),
        *(
            _case(f"mobilenet-{c}-{e}x{h}", "MobileNet-V2/V3, 224 px", (32, c, h, h), e, "relu6", bench=True)
            for c, e, h in ((16, 96, 112), (24, 144, 56), (40, 240, 28), (80, 480, 14))
        ),
    ],
}
