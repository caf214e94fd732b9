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
from experiments._stats import (
    Row,
    Spread,
    above,
    as_table,
    below,
    difference,
    error_bars,
    every,
    signed,
    spread,
    text,
    values,
)

TITLE = "Kernel size and dilation of the shift; CSC against SC²"
SOURCE = "Shift, section 3.3 (the paper has no numbers)"
SETTING = f"ShiftResNet-20 with expansion 3. {SHIFT_SETTING.format(epochs=2)}"
READING = (
    "A network that does not shift loses 23 points: nothing else in it mixes space, but the stem. A larger kernel gains"
    " 1.4 to 2.3 points at these 32 pixels, at the same parameters and multiply-adds; 7 is not seen to gain more than"
    " 5. Spreading nine displacements by dilation gains nothing (-0.7 and -0.1). SC², which shifts twice, gains 2.0 and"
    " 2.6 points, as much as a kernel of 5, and its training takes longer"
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


def _change(rows: list[Row], name: str, base: str = BASE) -> Spread | None:
    return difference(rows, {"change": name}, {"change": base})


def figure(rows: list[Row]) -> Any:
    from matplotlib import pyplot as plt

    drawn, ax = plt.subplots(figsize=(7, 3.2))
    found = {name: s for name in values(rows, "change") if (s := spread(rows, change=name))}
    means, bars = [s.mean for s in found.values()], error_bars(list(found.values()))
    ax.errorbar(means, list(found), xerr=bars, fmt="o", capsize=4, color="#15803d")
    for at, s in enumerate(found.values()):
        ax.annotate(s.text(), (s.mean, at), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    ax.set(title=TITLE, xlabel="top-1 %, range of repeats")
    ax.margins(0.15)
    ax.invert_yaxis()
    ax.grid(alpha=0.3)
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    made = []
    if none := _change(rows, "no shift (kernel 1)"):
        ours = f"{signed(none)} points without it"
        made.append(Claim("the shift is what mixes space", "said; no number", ours, below(none)))
    larger = {name: gap for name in ("kernel 5", "kernel 7") if (gap := _change(rows, name))}
    if larger:
        ours = ", ".join(f"{signed(gap)} {name}" for name, gap in larger.items())
        holds = every(above(gap) for gap in larger.values())
        made.append(Claim(f"a kernel larger than 3 gains at equal {_equal(rows, *larger)}", "-", ours, holds))
    if gap := _change(rows, "kernel 7", "kernel 5"):
        made.append(Claim("a kernel of 7 gains over one of 5", "-", f"{signed(gap)} points", above(gap)))
    for name, text_ in (("SC², kernel 3", "SC² gains over CSC"), ("kernel 3, dilation 2", "dilation 2 gains over 1")):
        if gap := _change(rows, name):
            made.append(Claim(f"{text_} at equal {_equal(rows, name)}", "-", f"{signed(gap)} points", above(gap)))
    return made


def _equal(rows: list[Row], *changes: str) -> str:
    """Which of parameters and MACs these have in common with the base, and how many."""
    of = [row for row in rows if row["change"] in (BASE, *changes)]
    found = {name: values(of, column) for name, column in (("parameters", "params"), ("MACs", "macs"))}
    same = [f"{name} ({int(each[0]):,})" for name, each in found.items() if len(each) == 1]
    return " and ".join(same) or "settings"
