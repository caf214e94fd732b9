# SPDX-License-Identifier: Apache-2.0
"""Compression is orthogonal to the shift (Wu et al., "Shift", CVPR 2018, section 2): also to the star?

The paper says that shift goes together with compression, tensor factorisation and low-bit weights, and gives no
table.

    python -m experiments run compression --data cifar10

A ShiftResNet-20 and a StarNet, and beside each a control of its size (depthwise convolutions for shifts, sums for
stars), are trained, then compressed without training: 1x1 convolutions in two factors of low rank, fitted to the
outputs on training images, at several shares of their weights, with and without weights of one byte (a scale for each
output channel). Expected: int8 weights cost next to nothing, low rank some points at half the weights, and the two
add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, Context, seeds
from experiments._settings import SHIFT, STARNET
from experiments._stats import Row, Spread, above, as_table, difference, every, signed, spread, text, values
from experiments.shift_resnet import REDUCTIONS

TITLE = "Low rank and int8 weights on top of shift and star"
SOURCE = "Shift, section 2 (said; no numbers)"
SETTING = (
    "ShiftResNet-20 (expansion 3; 2 epochs of SGD) and `starnet_s050_32px` (stem stride 2; 3 epochs of AdamW) on"
    " CIFAR-10 (JPEG), compressed without further training; accuracy on all test images, size of the stored tensors."
    " Controls, trained alike: `dwresnet20`, a ResNet with depthwise bottlenecks reduced to ShiftResNet's parameters,"
    " and the StarNet with sums for stars. Batch norms are not folded before, as"
    " [the guide](analysis.md#compression) advises for a file to deploy: their values are part of the sizes here"
)
READING = (
    "Weights of one byte cost 0.3 points at most in any run of the four networks, with or without low rank, at 0.27 "
    "to 0.46 of the bytes: low rank and int8 add up. Low rank alone is dear for the two small networks: ShiftResNet "
    "loses 3.6 points where a quarter of the 1×1 weights is gone and 18 where half is (15 and 21 by seed), the "
    "depthwise network of its size 3.1 and 25 (17 and 33), so the shift takes compression as well as what it stands "
    "for. StarNet, which has four times the bytes, loses 0.2 and 1.5, with sums for stars 0.2 and 1.2: by half the "
    "weights the star loses more in one repeat and less in the other. None was trained after its compression, which "
    "may win some of that back"
)
COST = {"smoke": "20 s", "small": "1 h on 2 cores", "paper": "8 networks of 164 epochs on CIFAR-10: one GPU, hours"}
NEEDS_DATA = True
STAR, SUM = "starnet_s050_32px", "starnet_s050_32px, sum"
# The depthwise one as in shift_resnet, E=3: one training serves both.
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "shiftresnet20": ("shiftresnet20", {**SHIFT, "epochs": 2, "model_args": {"expansion": 3}}),
    "dwresnet20": ("dwresnet20", {**SHIFT, "epochs": 2, "model_args": {"reduction": REDUCTIONS["depthwise"][3]}}),
    STAR: (STAR, {**STARNET, "model_args": {"stem_stride": 2}}),
    SUM: (STAR, {**STARNET, "model_args": {"stem_stride": 2, "mode": "sum"}}),
}
CONTROLS = {"shiftresnet20": "dwresnet20", STAR: SUM}
SHARES = (1.0, 0.75, 0.5, 0.35)
CLOSE = 0.5  # points, taken for none
COMPRESSED = {"int8": ("1.0", "8"), "half the weights": ("0.5", "32"), "both": ("0.5", "8")}
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
    """A panel for each network with its control, which is dashed."""
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(1, 2, figsize=(10, 4))
    for ax, (ours, control) in zip(axes, CONTROLS.items(), strict=True):
        for name, line in ((ours, "o-"), (control, "s--")):
            for bits, colour in (("32", "#1d4ed8"), ("8", "#c2410c")):
                of = [row for row in rows if row["network"] == name and row["bits"] == bits]
                if of:
                    shares = values(of, "weights")
                    sizes = [int(next(r["bytes"] for r in of if r["weights"] == share)) / 1e3 for share in shares]
                    means = [found.mean for share in shares if (found := spread(of, weights=share))]
                    ax.plot(sizes, means, line, color=colour, label=f"{name}, {bits}-bit weights")
        ax.set(title=ours, xlabel="kB", ylabel="top-1 %", xscale="log")
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
        ax.grid(alpha=0.3)
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    """Whether low rank and int8 add up, which is our question; whether shift and star take compression as well as what
    they are put in place of, which is what of the paper's sentence can be tested."""
    made = []
    for name in CONTROLS:
        parts = {what: _change(rows, name, *at) for what, at in COMPRESSED.items()}
        extra = _sum(rows, (1, name, "both"), (-1, name, "int8"), (-1, name, "half the weights"))
        if extra:
            ours = ", ".join(f"{what} {signed(part, 2)}" for what, part in parts.items())
            text_ = f"low rank and int8 together lose no more than they lose apart, within {CLOSE} points, on {name}"
            made.append(Claim(text_, "-", f"{ours} points", above(extra, -CLOSE)))
    for name, control in CONTROLS.items():
        gaps = {what: gap for what in COMPRESSED if (gap := _sum(rows, (1, name, what), (-1, control, what)))}
        if gaps:
            ours = ", ".join(f"{signed(gap, 2)} {what}" for what, gap in gaps.items())
            text_ = f"{name} loses no more by compression than its control ({control}), within {CLOSE} points"
            said = "-" if name == STAR else "said that it combines with compression; no number"
            holds = every(above(gap, -CLOSE) for gap in gaps.values())
            made.append(Claim(text_, said, f"{ours} points (below 0: loses more)", holds))
    return made


def _sum(rows: list[Row], *terms: tuple[int, str, str]) -> Spread | None:
    """Of changes by compression (sign, network, which), seed by seed, of the seeds that have all."""
    found = []
    for seed in sorted(set(values(rows, "seed"))):
        of = [row for row in rows if row["seed"] == seed]
        parts = [(sign, _change(of, name, *COMPRESSED[what])) for sign, name, what in terms]
        known = [sign * change.mean for sign, change in parts if change]
        if len(known) == len(terms):
            found.append(sum(known))
    return Spread(tuple(found)) if found else None
