# SPDX-License-Identifier: Apache-2.0
"""Compression is orthogonal to the shift (Wu et al., "Shift", CVPR 2018, section 2): also to the star?

The paper says that shift goes together with compression, tensor factorisation and low-bit weights, and gives no
table.

    python -m experiments run compression --data cifar10

A ShiftResNet-20 and a StarNet are trained, then compressed without training: 1x1 convolutions in two factors of low
rank, fitted to the outputs on training images, at several shares of their weights, with and without weights of one
byte (a scale for each output channel). Expected: int8 weights cost next to nothing, low rank some points at half the
weights, and the two add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, Context, seeds
from experiments._settings import SHIFT, STARNET
from experiments._stats import Row, Spread, as_table, difference, signed, spread, text, values

TITLE = "Low rank and int8 weights on top of shift and star"
SOURCE = "Shift, section 2 (said; no numbers)"
SETTING = (
    "ShiftResNet-20 (expansion 3; 2 epochs of SGD) and `starnet_s050_32px` (stem stride 2; 3 epochs of AdamW) on"
    " CIFAR-10 (JPEG), compressed without further training; accuracy on all test images, size of the stored tensors"
)
READING = (
    "Weights of one byte cost two tenths of a point at most, with or without low rank, at 0.27 to 0.43 of the bytes: "
    "the two add up. Low rank alone is dear where 1x1 convolutions are all there is: ShiftResNet, whose matrices are "
    "small, loses 3.6 points where a quarter of their weights is gone and 18 where half is. StarNet's are wide: a "
    "quarter gone costs it a quarter of a point, half 1.5 points. None was trained after its compression, "
    "which would win some of that back"
)
COST = {"smoke": "20 s", "small": "10 min on 2 cores", "paper": "4 networks of 164 epochs on CIFAR-10: one GPU, hours"}
NEEDS_DATA = True
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "shiftresnet20": ("shiftresnet20", {**SHIFT, "epochs": 2, "model_args": {"expansion": 3}}),
    "starnet_s050_32px": ("starnet_s050_32px", {**STARNET, "model_args": {"stem_stride": 2}}),
}
SHARES = (1.0, 0.75, 0.5, 0.35)
IMAGES = {"smoke": (100, 100), "small": (1000, 10_000), "paper": (10_000, 10_000)}


def cells(budget: str) -> list[Cell]:
    shares = (1.0, 0.5) if budget == "smoke" else SHARES
    return [
        _cell(budget, name, share, bits, seed)
        for seed in seeds(budget)
        for name in NETWORKS
        for share in shares
        for bits in (32, 8)
    ]


def _cell(budget: str, name: str, share: float, bits: int, seed: int) -> Cell:
    model, settings = NETWORKS[name]
    settings = {**settings, "seed": seed}
    if budget == "smoke":
        settings["model_args"] = {k: v for k, v in settings["model_args"].items() if k != "stem_stride"}
    if budget == "paper":
        settings = {"recipe": "shiftresnet-cifar", "model_args": settings["model_args"], "seed": seed}
    key = {"network": name, "weights": share, "bits": bits, "seed": seed}
    return Cell(key, _measure(budget, model, settings, share, bits), {"model": model, **settings})


def _measure(
    budget: str, model: str, settings: Mapping[str, Any], share: float, bits: int
) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        from starshift.analysis import int8_model, low_rank, pack_int8, size_in_bytes, top1
        from starshift.models import load_model

        run = context.train(model, settings)
        network = load_model(run.path).model
        fit, test = IMAGES[budget]
        if share < 1:
            network, _ = low_rank(network, params=share, batches=context.batches(run, "train", fit))
        size = size_in_bytes(pack_int8(network)) if bits == 8 else size_in_bytes(network)
        if bits == 8:
            network = int8_model(network)
        return {"bytes": size, "top1": round(top1(network, context.batches(run, "val", test)), 3)}

    return measure


def table(rows: list[Row]) -> str:
    lines = []
    for name in values(rows, "network"):
        for share in values(rows, "weights"):
            for bits in ("32", "8"):
                of = [r for r in rows if (r["network"], r["weights"], r["bits"]) == (name, share, bits)]
                if of:
                    size = f"{int(of[0]['bytes']) / 1e3:,.0f}"
                    change = "" if (share, bits) == ("1.0", "32") else signed(_change(rows, name, share, bits), 2)
                    lines.append((name, f"{float(share):.0%}", bits, size, text(spread(of), 2), change))
    return as_table(("network", "share of 1×1 weights", "bits", "kB", "top-1 %", "points"), lines)


def _change(rows: list[Row], name: str, share: str, bits: str) -> Spread | None:
    """Against the network as it was trained."""
    of = [row for row in rows if row["network"] == name]
    return difference(of, {"weights": share, "bits": bits}, {"weights": "1.0", "bits": "32"})


def figure(rows: list[Row]) -> Any:
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(1, 2, figsize=(10, 4))
    for ax, name in zip(axes, NETWORKS, strict=True):
        for bits, colour in (("32", "#1d4ed8"), ("8", "#c2410c")):
            of = [row for row in rows if row["network"] == name and row["bits"] == bits]
            shares = values(of, "weights")
            sizes = [int(next(r["bytes"] for r in of if r["weights"] == share)) / 1e3 for share in shares]
            means = [found.mean for share in shares if (found := spread(of, weights=share))]
            ax.plot(sizes, means, "o-", color=colour, label=f"{bits}-bit weights")
        ax.set(title=name, xlabel="kB", ylabel="top-1 %", xscale="log")
        ax.legend()
        ax.grid(alpha=0.3)
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    made = []
    for name in values(rows, "network"):
        plain, low, both = (_change(rows, name, *at) for at in (("1.0", "8"), ("0.5", "32"), ("0.5", "8")))
        if plain and low and both:
            ours = f"int8 {signed(plain, 2)}, half the weights {signed(low, 2)}, both {signed(both, 2)} points"
            extra = [b - low_ - p for b, low_, p in zip(both.values, low.values, plain.values, strict=True)]
            holds = True if min(extra) > -0.5 else False if max(extra) < -0.5 else None
            text_ = f"low rank and int8 add up on {name} (both together lose what they lose apart, within half a point)"
            made.append(Claim(text_, "said", ours, holds))
    return made
