# SPDX-License-Identifier: Apache-2.0
"""Cases of the first convolution."""

from __future__ import annotations

from starshift.ops._case import Case

Shapes = dict[str, "tuple[int, ...] | None"]


def _conv(n: int, c: int, k: int, h: int, w: int, kernel: int = 3, bias: bool = True) -> Shapes:
    return {"x": (n, c, h, w), "weight": (k, c, kernel, kernel), "bias": (k,) if bias else None}


CASES = {
    "stem_conv2d": [
        Case("stem", "the usual form", _conv(2, 3, 16, 8, 8), {"stride": 2, "padding": 1}),
        Case("odd", "channels and pixels that fill no tile", _conv(3, 3, 21, 7, 9), {"stride": 2, "padding": 1}),
        Case("stride1", "networks for 32 pixels", _conv(2, 3, 32, 6, 5), {"padding": 1}),
        Case("no-bias", "an absent bias gets no gradient", _conv(1, 3, 8, 9, 9, bias=False), {"stride": 2}),
        Case("one-channel", "grey images", _conv(2, 1, 5, 6, 6, 5), {"padding": 2}),
        Case(
            "four-channels", "another number of channels", _conv(2, 4, 24, 5, 5), {"stride": (1, 2), "padding": (0, 1)}
        ),
        Case("patches", "stride as large as the kernel: ConvNeXt", _conv(2, 3, 40, 8, 12, 4), {"stride": 4}),
        Case("one-pixel", "1x1 image", _conv(4, 3, 8, 1, 1), {"padding": 1}),
        Case("empty", "a batch of nothing", _conv(0, 3, 8, 4, 4)),
        Case("starnet", "StarNet's stem", _conv(32, 3, 32, 224, 224), {"stride": 2, "padding": 1}, bench=True),
        Case("convnext", "ConvNeXt-Atto's", _conv(32, 3, 40, 224, 224, 4), {"stride": 4}, bench=True),
    ]
}
