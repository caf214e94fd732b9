# SPDX-License-Identifier: Apache-2.0
"""StarNet's choices one by one (Ma et al., "Rewrite the Stars", CVPR 2024, the ablation tables of StarNet).

The paper: ImageNet-1k, StarNet-S4: replacing the star by a sum stage by stage loses accuracy with each stage; the four
places of the activation lie close together, and a block with depthwise convolutions at both ends is the best layout.

    python -m experiments run starnet_ablations --data cifar10

Expected: sums lose some points, most in the third stage, where most blocks are; no depthwise convolution loses most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, seeds, training
from experiments._settings import STARNET
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

TITLE = "StarNet's choices, one changed at a time"
SOURCE = "Rewrite the Stars, ablations of StarNet"
SETTING = (
    "`starnet_s050_32px` with a stem of stride 2 on CIFAR-10 (JPEG), 2 epochs of AdamW on one cycle; the paper trains"
    " StarNet-S4 on ImageNet-1k for 300. The first row is the network as it is (expansion 3)"
)
READING = (
    "As in the paper the sum is worse than the star, most of all everywhere at once, and both depthwise "
    "convolutions earn their place. At these small maps it is the first stage's star that counts, not the third's. "
    "Two activations cost 0.7 points, one on the product gains 0.8, and a wider expansion is worth half a point or "
    "less; but a StarNet without any activation in its blocks loses six points, where [DemoNet](#star_activations) "
    "loses none: what is left there are LayerNorms, which are no linear maps, where StarNet's batch norms are, which "
    "may be why. What the paper does not say: the official code initialises its convolutions as PyTorch does (the line"
    " that should draw them from a normal distribution of 0.02 reaches linear layers alone), timm's as was meant; where"
    " training is this short, the official one is well ahead"
)
COST = {
    "smoke": "15 s",
    "small": "25 min on 2 cores",
    "paper": "15 networks of 300 epochs on ImageNet-1k: 8 GPUs, weeks",
}
NEEDS_DATA = True
BASE = "as it is"
CLOSE = 1.5  # points, about twice the range of two repeats
CHANGES: Mapping[str, Mapping[str, Any]] = {
    BASE: {},
    "sum in stage 1": {"mode": ["sum", "star", "star", "star"]},
    "sum in stage 2": {"mode": ["star", "sum", "star", "star"]},
    "sum in stage 3": {"mode": ["star", "star", "sum", "star"]},
    "sum in stage 4": {"mode": ["star", "star", "star", "sum"]},
    "sum everywhere": {"mode": "sum"},
    "act on both branches": {"placement": "both"},
    "act on the product": {"placement": "product"},
    "no act in the blocks": {"act": "none"},
    "depthwise before only": {"layout": "before"},
    "depthwise after only": {"layout": "after"},
    "no depthwise": {"layout": "none"},
    "expansion 3": {"mlp_ratio": 3},
    "expansion 4": {"mlp_ratio": 4},
    "expansion 6": {"mlp_ratio": 6},
    "official initialisation": {"init": "official"},
}
SMOKE = (BASE, "sum in stage 3")


def cells(budget: str) -> list[Cell]:
    own = "expansion 4" if budget == "paper" else "expansion 3"  # of the network as it is
    chosen = SMOKE if budget == "smoke" else [name for name in CHANGES if name != own]
    return [_cell(budget, name, seed) for seed in seeds(budget, 1 if budget == "paper" else 2) for name in chosen]


def _cell(budget: str, name: str, seed: int) -> Cell:
    key = {"change": name, "seed": seed}
    args = dict(CHANGES[name])
    if budget == "paper":
        return training(key, "starnet_s4", recipe="starnet-imagenet", model_args=args, seed=seed)
    stem = {} if budget == "smoke" else {"stem_stride": 2}
    return training(key, "starnet_s050_32px", **{**STARNET, "epochs": 2}, model_args={**stem, **args}, seed=seed)


def table(rows: list[Row]) -> str:
    lines = []
    for name in values(rows, "change"):
        first = next(row for row in rows if row["change"] == name)
        found = text(spread(rows, change=name))
        change = "" if name == BASE else signed(_change(rows, name))
        lines.append((name, f"{int(first['params']) / 1e3:,.0f}k", f"{int(first['macs']) / 1e6:.1f}M", found, change))
    return as_table(("change", "parameters", "MACs", "top-1 %", "points"), lines)


def _change(rows: list[Row], name: str) -> Spread | None:
    return difference(rows, {"change": name}, {"change": BASE})


def figure(rows: list[Row]) -> Any:
    from matplotlib import pyplot as plt

    drawn, ax = plt.subplots(figsize=(7, 5))
    found = [(name, _change(rows, name)) for name in values(rows, "change") if name != BASE]
    found = [(name, change) for name, change in found if change is not None]
    means = [change.mean for _, change in found]
    errors = error_bars([change for _, change in found])
    ax.barh([name for name, _ in found], means, xerr=errors, color="#c2410c", capsize=3)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set(title=TITLE, xlabel="points of top-1 against the network as it is")
    ax.grid(axis="x", alpha=0.3)
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    one_stage = [f"sum in stage {i}" for i in range(1, 5)]
    ends = ["depthwise before only", "depthwise after only", "no depthwise"]
    placed = ["act on both branches", "act on the product", "no act in the blocks"]
    made = [
        _below(rows, ["sum everywhere"], "StarNet with sums in place of all stars is worse", "said"),
        _below(rows, one_stage, "so it is with sums in any one stage", "said of every stage"),
        _below(rows, ends, "depthwise convolutions at both ends are best", "said of the layouts"),
        _close(rows, placed, f"the four places of the activation are within {CLOSE} points", "said of the places"),
        _close(rows, [f"expansion {n}" for n in (3, 4, 6)], f"a wider expansion changes less than {CLOSE} points", "-"),
    ]
    official = _change(rows, "official initialisation")
    if official is not None:
        text = "where training is short, the official initialisation is better than timm's"
        made.append(Claim(text, "-", signed(official), above(official)))
    return [claim for claim in made if claim is not None]


def _below(rows: list[Row], names: Sequence[str], text: str, published: str) -> Claim | None:
    """That each of these changes costs accuracy."""
    return _claim(rows, names, text, published, below)


def _close(rows: list[Row], names: Sequence[str], text: str, published: str) -> Claim | None:
    """That each of these changes gains or costs less than :data:`CLOSE`."""
    return _claim(rows, names, text, published, _is_close)


def _is_close(change: Spread) -> bool | None:
    if len(change.values) < 2:
        return None
    if change.low > -CLOSE and change.high < CLOSE:
        return True
    return False if change.high <= -CLOSE or change.low >= CLOSE else None


def _claim(
    rows: list[Row], names: Sequence[str], text: str, published: str, judge: Callable[[Spread], bool | None]
) -> Claim | None:
    found = {name: change for name in names if (change := _change(rows, name)) is not None}
    if not found:
        return None
    ours = ", ".join(f"{signed(change)} {name}" for name, change in found.items())
    return Claim(text, published, ours, every(judge(change) for change in found.values()))
