# SPDX-License-Identifier: Apache-2.0
"""Activations with star and with sum (Ma et al., "Rewrite the Stars", CVPR 2024, the network without activations).

The paper: removing every activation costs star 1.2 points on ImageNet-1k (DemoNet, width 192, depth 12) and sum 33.8.

    python -m experiments run star_activations --data cifar10

Expected: star hardly falls, sum falls far: without activations its blocks are affine but for LayerNorm.
"""

from __future__ import annotations

from typing import Any

from experiments._book import Claim
from experiments._cells import Cell
from experiments._settings import DEMONET_SETTING
from experiments._star_or_sum import demonet_cells
from experiments._stats import Row, Spread, above, as_table, below, difference, error_bars, signed, spread, text, values

TITLE = "Activations, with star and with sum"
SOURCE = "Rewrite the Stars, table of activations"
SETTING = f"{DEMONET_SETTING}. Depth 6, width 32 (paper 12, 192)"
READING = (
    "What is left of a sum without activations is linear but for its LayerNorms, and on CIFAR-10's ten classes a "
    "linear classifier is far from lost, where on ImageNet's thousand it is: the likely cause of a smaller fall than "
    "the paper's. A star without activations is still, but for the same LayerNorms, a polynomial of degree 2^6. "
    "StarNet, with batch norms and ReLU6, does lose by theirs: see [starnet_ablations](#starnet_ablations)"
)
COST = {
    "smoke": "15 s",
    "small": "15 min on 2 cores",
    "paper": "12 networks of 300 epochs on ImageNet-1k: 8 GPUs, weeks",
}
NEEDS_DATA = True
LITTLE, FAR = 3, 3
ACTS = {
    "smoke": ("none",),
    "small": ("gelu", "none", "relu", "relu6", "hardswish"),
    "paper": ("gelu", "none", "relu", "relu6", "hardswish", "silu"),
}


def cells(budget: str) -> list[Cell]:
    return demonet_cells(
        budget, "act", ACTS[budget], small={"depth": 6, "width": 32}, paper={"depth": 12, "width": 192}, default="gelu"
    )


def table(rows: list[Row]) -> str:
    lines = []
    for act in values(rows, "act"):
        line: list[str] = [act]
        for mode in ("star", "sum"):
            line.append(text(spread(rows, act=act, mode=mode)))
            line.append(signed(_change(rows, act, mode)) if act != "gelu" else "")
        lines.append(line)
    return as_table(("activation", "star, top-1 %", "against GELU", "sum, top-1 %", "against GELU"), lines)


def _change(rows: list[Row], act: str, mode: str) -> Spread | None:
    return difference(rows, {"act": act, "mode": mode}, {"act": "gelu", "mode": mode})


def figure(rows: list[Row]) -> Any:
    from matplotlib import pyplot as plt

    drawn, ax = plt.subplots(figsize=(7, 4))
    acts = values(rows, "act")
    for at, (mode, colour) in enumerate((("star", "#c2410c"), ("sum", "#1d4ed8"))):
        found = [spread(rows, act=act, mode=mode) for act in acts]
        x = [i + 0.4 * at for i, f in enumerate(found) if f]
        means = [f.mean for f in found if f]
        errors = error_bars([f for f in found if f])
        ax.bar(x, means, 0.38, yerr=errors, color=colour, label=mode, capsize=3)
    ax.set_xticks([i + 0.2 for i in range(len(acts))], acts)
    ax.set(title=TITLE, ylabel="top-1 %")
    ax.legend()
    ax.grid(axis="y", alpha=0.3)
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    star, total = (_change(rows, "none", mode) for mode in ("star", "sum"))
    if star is None or total is None:
        return []
    more = Spread(tuple(b - a for a, b in zip(star.values, total.values, strict=True)))
    return [
        Claim(
            f"without any activation star loses less than {LITTLE} points", "-1.2", signed(star), above(star, -LITTLE)
        ),
        Claim(
            f"without any activation sum loses at least {FAR} points more than star",
            "-33.8 against -1.2",
            f"{signed(total)} against {signed(star)}",
            below(more, -FAR),
        ),
    ]
