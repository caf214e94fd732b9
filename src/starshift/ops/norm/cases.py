# SPDX-License-Identifier: Apache-2.0
"""Cases of the batch norm with activation."""

from __future__ import annotations

from typing import Any

import torch

from starshift.ops._case import Case
from starshift.ops.star.reference import ACTIVATIONS

Shape = tuple[int, int, int, int]


def _case(
    name: str, why: str, x: Shape, residual: bool = False, shortcut: bool = False, bench: bool = False, **options: Any
) -> Case:
    channels = (x[1],)
    added = {"residual": x if residual else None, "shortcut": x if shortcut else None}
    tensors = {"x": x, "weight": channels, "bias": channels, **added}
    return Case(name, why, tensors, {"training": True, **options}, bench)


def _frozen(channels: int) -> dict[str, Any]:
    """Running statistics that differ from channel to channel."""
    return {
        "training": False,
        "running_mean": torch.linspace(-1, 1, channels),
        "running_var": torch.linspace(0.5, 2, channels),
    }


_MOBILENET = [(16, 112), (64, 112), (72, 56), (240, 28), (480, 14), (960, 7)]

CASES = {
    "batch_norm_act": [
        *(_case(act, "every activation", (3, 16, 5, 4), act=act) for act in ACTIVATIONS),
        *(_case(f"{act}-residual", "activation of a sum", (3, 16, 5, 4), True, act=act) for act in ACTIVATIONS),
        *(_case(f"{act}-frozen", "running statistics", (3, 16, 5, 4), act=act, **_frozen(16)) for act in ACTIVATIONS),
        _case("shortcut", "added after the activation", (3, 17, 5, 4), shortcut=True, act="relu"),
        _case("residual-and-shortcut", "added at both places", (2, 16, 5, 4), True, True, act="hardswish"),
        _case("frozen-residual", "running statistics and a residual", (2, 17, 3, 5), True, act="relu", **_frozen(17)),
        _case("odd", "channels that fit no vector, pixels that fit no line", (3, 17, 5, 11), act="hardswish"),
        _case("few-channels", "many pixels side by side in a line, the last line cut", (2, 3, 33, 31), act="relu6"),
        _case("one-channel", "C = 1: layouts are ambiguous", (2, 1, 5, 5), act="silu"),
        _case("one-pixel", "1x1 image: layouts are ambiguous", (6, 24, 1, 1), act="relu"),
        _case("wide", "a pixel longer than a line has to be", (2, 200, 3, 3), act="hardswish"),
        _case("blocks", "several blocks: sums of sums", (4, 20, 40, 41), act="hardswish"),
        _case("eps", "an eps that matters", (3, 8, 4, 4), eps=0.5),
        Case(
            "no-weights",
            "absent parameters get no gradient; no mean is an integer",
            {"x": (3, 9, 4, 5)},
            {"training": True, "act": "relu"},
        ),
        _case("empty", "a batch of nothing", (0, 4, 3, 3), act="relu", **_frozen(4)),
        *(
            _case(f"mobilenet-{c}x{h}", "MobileNet-V3 at 224 px", (32, c, h, h), bench=True, act="hardswish")
            for c, h in _MOBILENET
        ),
    ],
}
