# SPDX-License-Identifier: Apache-2.0
"""Star or sum by depth (Ma et al., "Rewrite the Stars", CVPR 2024, the table of depths).

The paper: ImageNet-1k, width 192, depths 10 to 22; star's lead falls from 6.5 points to 4.8.

    python -m experiments run star_depth --data cifar10

Expected: star some points above sum at every depth.
"""

from __future__ import annotations

from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, seeds, training
from experiments._settings import DEMONET, DEMONET_SETTING
from experiments._star_or_sum import gap_figure, gap_table
from experiments._stats import Row, above, difference, signed, values

TITLE = "Star or sum by depth, at fixed width"
SOURCE = "Rewrite the Stars, table of depths"
SETTING = f"{DEMONET_SETTING}. Width 32 (paper 192)"
COST = {
    "smoke": "15 s",
    "small": "15 min on 2 cores",
    "paper": "14 networks of 300 epochs on ImageNet-1k: 8 GPUs, weeks",
}
NEEDS_DATA = True
DEPTHS = {"smoke": (2,), "small": (2, 4, 8, 12), "paper": (10, 12, 14, 16, 18, 20, 22)}


def cells(budget: str) -> list[Cell]:
    return [
        _cell(budget, depth, mode, seed)
        for seed in seeds(budget, 1 if budget == "paper" else 2)
        for depth in DEPTHS[budget]
        for mode in ("star", "sum")
    ]


def _cell(budget: str, depth: int, mode: str, seed: int) -> Cell:
    key = {"depth": depth, "mode": mode, "seed": seed}
    if budget == "paper":
        args: dict[str, Any] = {"depth": depth, "width": 192, "mode": mode}
        return training(key, "demonet_d12_w192", recipe="demonet-imagenet", model_args=args, seed=seed)
    patch = 2 if budget == "smoke" else 4
    args = {"depth": depth, "width": 32, "mode": mode, "patch_size": patch}
    return training(key, "demonet_d12_w192", **DEMONET, model_args=args, seed=seed)


def table(rows: list[Row]) -> str:
    return gap_table(rows, "depth")


def figure(rows: list[Row]) -> Any:
    return gap_figure(rows, "depth", TITLE)


def claims(rows: list[Row]) -> list[Claim]:
    gaps = {
        d: difference(rows, {"mode": "star", "depth": d}, {"mode": "sum", "depth": d}) for d in values(rows, "depth")
    }
    verdicts = [above(gap) for gap in gaps.values()]
    better = True if all(verdicts) else False if all(v is False for v in verdicts) else None
    ours = ", ".join(f"{signed(gap)} at {depth}" for depth, gap in gaps.items())
    return [Claim("star is above sum at every depth", "+6.5 points at depth 10, +4.8 at 22", ours, better)]
