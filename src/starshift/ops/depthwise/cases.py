# SPDX-License-Identifier: Apache-2.0
"""Cases of the depthwise convolution."""

from __future__ import annotations

from typing import Any

from starshift.ops._case import Case


def _case(name: str, why: str, x: tuple[int, int, int, int], k: int, bias: bool = True, **options: Any) -> Case:
    tensors = {"x": x, "weight": (x[1], 1, k, k), "bias": (x[1],) if bias else None}
    bench = options.pop("bench", False)
    return Case(name, why, tensors, {"padding": k // 2, **options}, bench)


def _bench(model: str, why: str, channels: int, size: int, k: int, stride: int = 1) -> Case:
    name = f"{model}-{channels}x{size}-k{k}" + (f"-stride{stride}" if stride > 1 else "")
    return _case(name, why, (32, channels, size, size), k, stride=stride, bench=True)


# Channels, size, kernel and stride of its depthwise convolutions, each once.
MOBILENET_V3 = [
    (16, 112, 3, 1),
    (64, 112, 3, 2),
    (72, 56, 3, 1),
    (72, 56, 5, 2),
    (120, 28, 5, 1),
    (240, 28, 3, 2),
    (200, 14, 3, 1),
    (184, 14, 3, 1),
    (480, 14, 3, 1),
    (672, 14, 3, 1),
    (672, 14, 5, 2),
    (960, 7, 5, 1),
]

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
        _case("k7-strips", "wide and narrow strips, whole blocks of channels and a part", (2, 40, 10, 18), 7),
        _case("k5", "one strip and a column left over", (1, 16, 6, 8), 5),
        _case("k7-stride2", "downsampling by a large kernel", (2, 24, 11, 15), 7, stride=2),
        _case("k3-stride3", "pixels that no tap reaches", (2, 20, 10, 11), 2, padding=0, stride=3),
        _case(
            "dilated-stride", "taps of a phase lie apart", (1, 18, 13, 12), 3, padding=3, stride=(2, 3), dilation=(3, 2)
        ),
        _case("wide-padding", "output rows that see no pixel", (1, 17, 4, 3), 3, padding=6),
        _case("wide-image", "cut into bands in both directions", (1, 3, 90, 130), 7),
        *(_bench("starnet-s1", "StarNet-S1 at 224 px", 24 << i, 56 >> i, 7) for i in range(4)),
        *(_bench("convnext-tiny", "ConvNeXt-Tiny at 224 px", 96 << i, 56 >> i, 7) for i in range(4)),
        *(_bench("mobilenetv3-large", "MobileNet-V3-large at 224 px", *shape) for shape in MOBILENET_V3),
    ],
}
