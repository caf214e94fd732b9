# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of accuracy with star and with sum along one axis."""

from __future__ import annotations

from typing import Any

from experiments._stats import Row, as_table, difference, signed, spread, text, values


def gap_table(rows: list[Row], axis: str) -> str:
    lines = []
    for value in values(rows, axis):
        star, total = ({"mode": mode, axis: value} for mode in ("star", "sum"))
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
    for mode, colour in (("star", "#c2410c"), ("sum", "#1d4ed8")):
        found = [spread(rows, **{"mode": mode, axis: p}) for p in points]
        kept = [(at, f) for at, f in zip(x, found, strict=True) if f is not None]
        top.plot([at for at, _ in kept], [f.mean for _, f in kept], "o-", color=colour, label=mode)
        top.fill_between(
            [at for at, _ in kept], [f.low for _, f in kept], [f.high for _, f in kept], color=colour, alpha=0.2
        )
    gaps = [
        (at, difference(rows, {"mode": "star", axis: p}, {"mode": "sum", axis: p}))
        for at, p in zip(x, points, strict=True)
    ]
    width = (max(x) - min(x)) / 20 if len(x) > 1 else 1
    below.bar([at for at, g in gaps if g], [g.mean for _, g in gaps if g], width, color="#78716c")
    top.set(title=title, ylabel="top-1 %")
    below.set(xlabel=axis, ylabel="gap, points")
    top.legend()
    for ax in (top, below):
        ax.grid(alpha=0.3)
    return figure
