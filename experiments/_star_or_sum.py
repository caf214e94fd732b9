# SPDX-License-Identifier: Apache-2.0
"""Accuracy with star and with sum along one axis: the cells, the gaps, their table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments._cells import Cell, seeds, training
from experiments._settings import DEMONET
from experiments._stats import Row, Spread, as_table, difference, signed, spread, text, values

MODES = ("star", "sum")


def demonet_cells(
    budget: str,
    axis: str,
    points: Sequence[Any],
    *,
    small: Mapping[str, Any],
    paper: Mapping[str, Any],
    default: Any = None,
) -> list[Cell]:
    """DemoNets along an axis, with star and with sum.

    Args:
        budget: smoke, small or paper.
        axis: the model's option that varies, over ``points``.
        small, paper: its other options, at 32 pixels and in the paper's setting.
        default: the point that is the model's own default, which is not passed: studies then share that network.
    """
    made = []
    settings = {"recipe": "demonet-imagenet"} if budget == "paper" else DEMONET
    fixed = paper if budget == "paper" else {**small, "patch_size": 2 if budget == "smoke" else 4}
    for seed in seeds(budget, 1 if budget == "paper" else 2):
        for point in points:
            for mode in MODES:
                args = {**fixed, **({} if point == default else {axis: point}), "mode": mode}
                key = {axis: point, "mode": mode, "seed": seed}
                made.append(training(key, "demonet_d12_w192", **settings, model_args=args, seed=seed))
    return made


def gaps(rows: list[Row], axis: str) -> dict[str, Spread | None]:
    """Star less sum at each point of the axis."""
    return {p: difference(rows, {"mode": "star", axis: p}, {"mode": "sum", axis: p}) for p in values(rows, axis)}


def narrows(found: Mapping[str, Spread | None]) -> bool | None:
    """Whether the gap is smaller at the last point than at the first, apart by more than their repeats; None where
    that cannot be told, or one of the two was run once."""
    known = [gap for gap in found.values() if gap is not None and len(gap.values) > 1]
    if len(known) < 2 or (known[0].low <= known[-1].high and known[-1].low <= known[0].high):
        return None
    return known[0].mean > known[-1].mean


def gap_table(rows: list[Row], axis: str) -> str:
    lines = []
    for value in values(rows, axis):
        star, total = ({"mode": mode, axis: value} for mode in MODES)
        lines.append(
            (
                value,
                f"{int(next(r['params'] for r in rows if r[axis] == value)) / 1e3:,.0f}k",
                text(spread(rows, **star)),
                text(spread(rows, **total)),
                signed(difference(rows, star, total)),
            )
        )
    return as_table((axis, "parameters", "star, top-1 %", "sum, top-1 %", "star - sum, points"), lines)


def gap_figure(rows: list[Row], axis: str, title: str) -> Any:
    """Both accuracies along the axis, with the range of the repeats, and the gap below."""
    from matplotlib import pyplot as plt

    figure, (top, below) = plt.subplots(2, 1, figsize=(6, 6), sharex=True, height_ratios=(3, 1))
    points = values(rows, axis)
    x = [float(p) for p in points]
    for mode, colour in zip(MODES, ("#c2410c", "#1d4ed8"), strict=True):
        found = [spread(rows, **{"mode": mode, axis: p}) for p in points]
        kept = [(at, f) for at, f in zip(x, found, strict=True) if f is not None]
        top.plot([at for at, _ in kept], [f.mean for _, f in kept], "o-", color=colour, label=mode)
        top.fill_between(
            [at for at, _ in kept], [f.low for _, f in kept], [f.high for _, f in kept], color=colour, alpha=0.2
        )
    known = {float(p): gap.mean for p, gap in gaps(rows, axis).items() if gap is not None}
    width = (max(x) - min(x)) / 20 if len(x) > 1 else 1
    below.bar(list(known), list(known.values()), width, color="#78716c")
    top.set(title=title, ylabel="top-1 %")
    below.set(xlabel=axis, ylabel="gap, points")
    top.legend()
    for ax in (top, below):
        ax.grid(alpha=0.3)
    return figure
