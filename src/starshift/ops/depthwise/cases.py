# SPDX-License-Identifier: Apache-2.0
"""Cases of the depthwise convolution."""

from __future__ import annotations

from typing import Any

from starshift.ops._case import Case


def _case(name: str, why: str, x: tuple[int, int, int, int], k: int, bias: bool = True, **options: Any) -> Case:
    tensors = {"x": x, "weight": (x[1], 1, k, k), "bias": (x[1],) if bias else None}
    bench = options.pop("bench", False)
    return Case(name, why, tensors, {"padding": k // 2, **options}, bench)


CASES = {
    "depthwise_conv2d": [
        _case("k7", "StarNet's kernel", (2, 24, 9, 9), 7),
        _case("k7-odd", "channels and pixels that fit no vector", (3, 17, 5, 11), 7),
        _case("k3-stride2", "MobileNet's downsampling, even size", (2, 16, 8, 10), 3, False, stride=2),
        _case("k5-stride2", "downsampling, odd size", (2, 20, 7, 9), 5, stride=2),
        _case("k3-dilation2", "dilated", (1, 8, 9, 9), 3, padding=2, dilation=2),
        _case("k4-even", "an even kernel without padding", (1, 6, 7, 7), 4, padding=0),
        _case(
            "uneven",
            "stride, padding and dilation differ by direction",
            (2, 5, 9, 12),
            3,
            stride=(2, 1),
            padding=(0, 2),
        ),
        _case("k7-small", "a kernel larger than the image", (2, 9, 2, 3), 7),
        _case("one-channel", "C = 1: layouts are ambiguous", (2, 1, 5, 5), 3),
        _case("empty", "a batch of nothing", (0, 4, 5, 5), 3),
        *(
            _case(
                f"starnet-s1-{24 << i}x{56 >> i}",
                "StarNet-S1 at 224 px",
                (32, 24 << i, 56 >> i, 56 >> i),
                7,
                bench=True,
            )
            for i in range(4)
        ),
    ],
}
