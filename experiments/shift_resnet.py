# SPDX-License-Identifier: Apache-2.0
"""ShiftResNet-20 against ResNets of the same size (Wu et al., "Shift", CVPR 2018, tables 3 and 4).

The paper, CIFAR-10, best epoch of 164: ShiftResNet-20 with E = 1, 3, 6, 9: 85.78, 89.56, 91.07, 91.79; ResNet-20
reduced to the same sizes: 84.77, 88.81, 91.30, 91.96; ResNet-20 whole: 91.35. Depthwise ResNets are given for
CIFAR-100 alone (61.32 to 65.59, where ShiftResNet-20 has 55.05 to 70.77).

    python -m experiments run shift_resnet --data cifar10

Expected: within a point or two of each other at equal size; the small shift networks a little ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, seeds, training
from experiments._settings import SHIFT, SHIFT_SETTING
from experiments._stats import Row, above, as_table, difference, error_bars, every, signed, spread, text

TITLE = "ShiftResNet-20 against residual networks of equal size"
SOURCE = "Shift, tables 3 and 4"
EPOCHS = {"smoke": 2, "small": 2, "gpu": 10}
SETTING = SHIFT_SETTING.format(epochs="10 (budget gpu) or 2 (small)") + (
    ". `net` divides all widths of ResNet-20, `block` the inner width of its blocks, `depthwise` is the bottleneck with"
    " a 3×3 depthwise convolution; each reduced to the parameters of its row's ShiftResNet, as near as widths come"
)
COST = {
    "smoke": "15 s",
    "small": "80 min on 2 cores",
    "gpu": "34 networks of 10 epochs side by side: 10 min on one GPU and 16 cores",
    "paper": "17 networks of 164 epochs on CIFAR-10: one GPU, a day",
}
NEEDS_DATA = True
EXPANSIONS = (1, 3, 6, 9)
# The reduction at which each comes nearest to the ShiftResNet's parameters.
REDUCTIONS = {
    "net": {1: 7.12, 3: 2.7, 6: 1.42, 9: 0.96},
    "block": {1: 8.02, 3: 2.8, 6: 1.44, 9: 0.98},
    "depthwise": {1: 1.105, 3: 0.37, 6: 0.185, 9: 0.125},
}
PUBLISHED = {
    "shift": {1: 85.78, 3: 89.56, 6: 91.07, 9: 91.79},
    "reduced": {1: 84.77, 3: 88.81, 6: 91.30, 9: 91.96},
    "whole": 91.35,
}


def cells(budget: str) -> list[Cell]:
    expansions = (1,) if budget == "smoke" else EXPANSIONS
    made = []
    for seed in seeds(budget):
        for e in expansions:
            made.append(_cell(budget, "shift", e, seed, "shiftresnet20", {"expansion": e}))
            made += [_reduced(budget, mode, e, seed) for mode in ("net", "block")]
            made.append(_cell(budget, "depthwise", e, seed, "dwresnet20", {"reduction": REDUCTIONS["depthwise"][e]}))
        if budget != "smoke":
            made.append(_cell(budget, "whole", 0, seed, "resnet20", {}))
    return made


def _reduced(budget: str, mode: str, e: int, seed: int) -> Cell:
    args = {"reduction": REDUCTIONS[mode][e], "reduction_mode": mode}
    return _cell(budget, mode, e, seed, "resnet20", args)


def _cell(budget: str, kind: str, e: int, seed: int, model: str, args: Mapping[str, Any]) -> Cell:
    key = {"kind": kind, "expansion": e, "seed": seed}
    if budget == "paper":
        return training(key, model, recipe="shiftresnet-cifar", model_args=dict(args), seed=seed)
    settings = {**SHIFT, "epochs": EPOCHS[budget]} | ({"kernels": False} if budget == "gpu" else {})
    return training(key, model, **settings, model_args=dict(args), seed=seed)


def table(rows: list[Row]) -> str:
    lines = []
    for e in EXPANSIONS:
        shift = next((row for row in rows if row["kind"] == "shift" and row["expansion"] == str(e)), None)
        size = f"{int(shift['params']):,}, {int(shift['macs']) / 1e6:.1f}M" if shift else "-"
        found = [text(spread(rows, kind=kind, expansion=e)) for kind in ("shift", "net", "block", "depthwise")]
        lines.append((str(e), size, *found, f"{PUBLISHED['shift'][e]} / {PUBLISHED['reduced'][e]}"))
    whole = next((row for row in rows if row["kind"] == "whole"), None)
    size = f"{int(whole['params']):,}, {int(whole['macs']) / 1e6:.1f}M" if whole else "-"
    lines.append(("ResNet-20", size, "", text(spread(rows, kind="whole")), "", "", f"{PUBLISHED['whole']}"))
    header = ("E", "parameters, MACs", "shift, top-1 %", "net", "block", "depthwise", "paper: shift / reduced")
    return as_table(header, lines)


def figure(rows: list[Row]) -> Any:
    from matplotlib import pyplot as plt

    drawn, ax = plt.subplots(figsize=(7, 4.5))
    for kind, colour in (("shift", "#15803d"), ("net", "#1d4ed8"), ("block", "#7c3aed"), ("depthwise", "#c2410c")):
        points = []
        for e in EXPANSIONS:
            found = spread(rows, kind=kind, expansion=e)
            if found:
                row = next(r for r in rows if r["kind"] == kind and r["expansion"] == str(e))
                points.append((int(row["params"]), found))
        if points:
            errors = error_bars([f for _, f in points])
            ax.errorbar([p for p, _ in points], [f.mean for _, f in points], errors, fmt="o-", color=colour, label=kind)
    ax.set(title=TITLE, xlabel="parameters", ylabel="top-1 %", xscale="log")
    ax.legend()
    ax.grid(alpha=0.3)
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    made = []
    sizes = ", ".join(f"{PUBLISHED['shift'][e] - PUBLISHED['reduced'][e]:+.2f} at E={e}" for e in EXPANSIONS)
    for kind, published in (("net", sizes), ("depthwise", "-6.3 to +5.2 on CIFAR-100")):
        gaps = {
            e: difference(rows, {"kind": "shift", "expansion": e}, {"kind": kind, "expansion": e}) for e in EXPANSIONS
        }
        if any(gaps.values()):
            better = every(above(gap) for gap in gaps.values() if gap is not None)
            ours = ", ".join(f"{signed(gap)} at E={e}" for e, gap in gaps.items())
            name = "a ResNet reduced to its size" if kind == "net" else "a depthwise ResNet of its size"
            made.append(Claim(f"ShiftResNet-20 is above {name}", published, ours, better))
    return made
