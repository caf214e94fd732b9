# SPDX-License-Identifier: Apache-2.0
"""Cases of the star operators."""

from __future__ import annotations

from starshift.ops._case import Case
from starshift.ops.star.reference import ACTIVATIONS, PLACEMENTS


def _conv(n: int, c: int, k: int, h: int, w: int, bias: bool = True) -> dict[str, tuple[int, ...] | None]:
    return {
        "x": (n, c, h, w),
        "w1": (k, c, 1, 1),
        "b1": (k,) if bias else None,
        "w2": (k, c, 1, 1),
        "b2": (k,) if bias else None,
        "wg": (c, k, 1, 1),
        "bg": (c,) if bias else None,
    }


def _linear(rows: tuple[int, ...], c: int, k: int) -> dict[str, tuple[int, ...] | None]:
    return {"x": (*rows, c), "w1": (k, c), "b1": (k,), "w2": (k, c), "b2": (k,), "wg": (c, k), "bg": (c,)}


CASES = {
    "star": [
        *(
            Case(f"{act}-{place}", "every activation in every place", dict.fromkeys(("x1", "x2"), (2, 17, 5, 3)), o)
            for act in ACTIVATIONS
            for place in PLACEMENTS
            for o in [{"act": act, "placement": place}]
        ),
        Case("empty", "a batch of nothing", {"x1": (0, 4, 3, 3), "x2": (0, 4, 3, 3)}),
        Case("rows", "no image at all: two dimensions", {"x1": (5, 7), "x2": (5, 7)}),
    ],
    "star_mlp": [
        Case("conv", "the form of StarNet's block", _conv(2, 8, 32, 6, 6)),
        Case("conv-odd", "channels and pixels that fit no vector", _conv(3, 17, 21, 5, 7)),
        Case("conv-no-bias", "absent biases get no gradient", _conv(2, 20, 12, 3, 5, bias=False)),
        Case("conv-one-pixel", "1x1 image: layouts are ambiguous", _conv(2, 24, 48, 1, 1)),
        Case("linear", "DemoNet: channels in the last dimension", _linear((2, 4, 3), 10, 30)),
        Case("linear-2d", "the network of the decision boundaries", _linear((9,), 6, 18), {"act": "relu"}),
        Case("both", "activation on both branches", _conv(2, 8, 24, 4, 4), {"act": "gelu", "placement": "both"}),
        Case("product", "activation after the product", _conv(2, 8, 24, 4, 4), {"placement": "product"}),
        Case("none", "no activation at all", _conv(2, 8, 24, 4, 4), {"act": "none"}),
        Case("empty", "a batch of nothing", _conv(0, 8, 16, 4, 4)),
        *(
            Case(
                f"starnet-s1-stage{i}",
                "StarNet-S1 at 224 px",
                _conv(32, 24 << i, 96 << i, 56 >> i, 56 >> i),
                bench=True,
            )
            for i in range(4)
        ),
    ],
}
