# SPDX-License-Identifier: Apache-2.0
"""Star or sum by width (Ma et al., "Rewrite the Stars", CVPR 2024, figure 1 and the table of widths).

The paper: ImageNet-1k, depth 12, widths from 96 to 288; at width 192 star has 71.7%, 5.5 points above sum, and the gap
narrows as the network widens.

    python -m experiments run star_width --data cifar10

Expected: star some points above sum at every width.
"""

from __future__ import annotations

from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, seeds, training
from experiments._settings import DEMONET, DEMONET_SETTING
from experiments._star_or_sum import gap_figure, gap_table
from experiments._stats import Row, above, difference, signed, values

TITLE = "Star or sum by width, at fixed depth"
SOURCE = "Rewrite the Stars, figure 1"
SETTING = f"{DEMONET_SETTING}. Depth 6 (paper 12)"
COST = {
    "smoke": "20 s",
    "small": "20 min on 2 cores",
    "paper": "14 networks of 300 epochs on ImageNet-1k: 8 GPUs, weeks",
}
NEEDS_DATA = True
WIDTHS = {"smoke": (16,), "small": (16, 32, 48, 64), "paper": (96, 128, 160, 192, 224, 256, 288)}


def cells(budget: str) -> list[Cell]:
    return [
        _cell(budget, width, mode, seed)
        for seed in seeds(budget, 1 if budget == "paper" else 2)
        for width in WIDTHS[budget]
        for mode in ("star", "sum")
    ]


def _cell(budget: str, width: int, mode: str, seed: int) -> Cell:
    key = {"width": width, "mode": mode, "seed": seed}
    if budget == "paper":
        args: dict[str, Any] = {"depth": 12, "width": width, "mode": mode}
        return training(key, "demonet_d12_w192", recipe="demonet-imagenet", model_args=args, seed=seed)
    patch = 2 if budget == "smoke" else 4
    args = {"depth": 6, "width": width, "mode": mode, "patch_size": patch}
    return training(key, "demonet_d12_w192", **DEMONET, model_args=args, seed=seed)


def table(rows: list[Row]) -> str:
    return gap_table(rows, "width")


def figure(rows: list[Row]) -> Any:
    return gap_figure(rows, "width", TITLE)


def claims(rows: list[Row]) -> list[Claim]:
    gaps = {
        w: difference(rows, {"mode": "star", "width": w}, {"mode": "sum", "width": w}) for w in values(rows, "width")
    }
    verdicts = [above(gap) for gap in gaps.values()]
    better = True if all(verdicts) else False if all(v is False for v in verdicts) else None
    ours = ", ".join(f"{signed(gap)} at {width}" for width, gap in gaps.items())
    found = [gap for gap in gaps.values() if gap is not None and len(gap.values) > 1]
    narrows = None
    if len(found) > 1 and (found[0].low > found[-1].high or found[0].high < found[-1].low):
        narrows = found[0].mean > found[-1].mean
    return [
        Claim("star is above sum at every width", "+5.5 points at width 192", ours, better),
        Claim("the gap narrows as the network widens", "said of widths 96 to 288", ours, narrows),
    ]
