# SPDX-License-Identifier: Apache-2.0
"""Cases of the pointwise operators."""

from __future__ import annotations

from starshift.ops._case import Case
from starshift.ops.star.reference import ACTIVATIONS

Shapes = dict[str, "tuple[int, ...] | None"]


def _conv(n: int, c: int, k: int, h: int, w: int, bias: bool = True) -> Shapes:
    return {"x": (n, c, h, w), "weight": (k, c, 1, 1), "bias": (k,) if bias else None}


def _mlp(n: int, c: int, k: int, h: int, w: int, bias: bool = True) -> Shapes:
    b1, b2 = ((k,), (c,)) if bias else (None, None)
    return {"x": (n, c, h, w), "w1": (k, c, 1, 1), "b1": b1, "w2": (c, k, 1, 1), "b2": b2}


_CONVNEXT = [(40, 56), (80, 28), (160, 14), (320, 7)]
_MOBILENET = [(16, 64, 112), (72, 24, 56), (40, 240, 28), (480, 112, 14), (960, 160, 7)]

CASES = {
    "pointwise_conv2d": [
        Case("conv", "the usual form", _conv(2, 16, 32, 6, 6)),
        Case("odd", "channels and pixels that fit no vector", _conv(3, 17, 21, 5, 7)),
        Case("no-bias", "an absent bias gets no gradient", _conv(2, 20, 12, 3, 5, bias=False)),
        Case("one-pixel", "1x1 image: layouts are ambiguous", _conv(4, 24, 48, 1, 1)),
        Case("one-channel", "C = 1: layouts are ambiguous", _conv(2, 1, 5, 4, 4)),
        Case("rows", "channels in the last dimension", {"x": (5, 3, 10), "weight": (7, 10), "bias": (7,)}),
        Case("chunks", "more rows than are taken at once", _conv(2, 18, 33, 25, 31)),
        Case("empty", "a batch of nothing", _conv(0, 4, 8, 3, 3)),
        *(Case(f"mobilenet-{c}-{k}x{h}", "MobileNet-V3", _conv(32, c, k, h, h), bench=True) for c, k, h in _MOBILENET),
    ],
    "pointwise_mlp": [
        *(Case(act, "every activation", _mlp(2, 8, 32, 5, 4), {"act": act}) for act in ACTIVATIONS),
        Case("odd", "channels and pixels that fit no vector", _mlp(3, 17, 21, 5, 7)),
        Case("no-bias", "absent biases get no gradient", _mlp(2, 20, 12, 3, 5, bias=False)),
        Case("one-pixel", "1x1 image: layouts are ambiguous", _mlp(4, 24, 48, 1, 1)),
        Case(
            "rows",
            "channels in the last dimension",
            {"x": (5, 3, 10), "w1": (30, 10), "b1": (30,), "w2": (7, 30), "b2": (7,)},
        ),
        Case("chunks", "more rows than are taken at once", _mlp(3, 6, 9, 27, 31)),
        Case("empty", "a batch of nothing", _mlp(0, 8, 16, 4, 4)),
        *(
            Case(f"convnext-{c}x{h}", "ConvNeXt-Atto at 224 px", _mlp(32, c, 4 * c, h, h), bench=True)
            for c, h in _CONVNEXT
        ),
    ],
}
