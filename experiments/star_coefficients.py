# SPDX-License-Identifier: Apache-2.0
"""The coefficients' distribution, which "Rewrite the Stars" (Ma et al., CVPR 2024, discussion) leaves open.

Each channel of a star is a quadratic form whose coefficients alpha(i, j) the growth of the implicit dimension fixes in
number and training in value. How are they distributed before and after training, and does a penalty that spreads them
help?

    python -m experiments run star_coefficients --data cifar10

Expected: at the start those of products of normal variables; training makes some coefficients large and the effective
number of terms falls. A penalty can undo that; whether accuracy gains is open.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, Context, seeds, trained_row
from experiments._settings import DEMONET, DEMONET_SETTING
from experiments._stats import Row, above, as_table, difference, signed, spread, text, values

TITLE = "Coefficients of trained blocks, and a penalty that shapes them"
SOURCE = "Rewrite the Stars, discussion (an open question; no numbers)"
SETTING = (
    f"{DEMONET_SETTING}. Depth 6, width 32. Mean over blocks. `terms` is the share of a channel's coefficients that"
    " are effectively at work (participation ratio of their squares), `squares` that of the x_i² in their energy,"
    " `cos²` the squared cosine of a channel's two branches, `channels` the effective number of different ones of"
    " 96; a sum has linear coefficients. The penalty is the mean of log M - log(participation ratio)"
)
READING = (
    "Training hardly thins the coefficients out (19 to 17 percent at work), but it gives them heavy tails, turns the"
    " two branches of a channel towards each other (cos² from 0.03 to 0.28) and makes channels alike: of 73 different"
    " ones 27 are left. So much of the implicit dimension goes unused, and the sum, whose 24 become 7, wastes more. The"
    " light penalty spreads the energy, keeps more channels apart and gains a point in both repeats; ten times its"
    " weight spreads further and gains next to nothing. Two repeats of three epochs: a hint, no proof"
)
COST = {
    "smoke": "15 s",
    "small": "15 min on 2 cores",
    "paper": "8 networks of 300 epochs on ImageNet-1k: 8 GPUs, weeks",
}
NEEDS_DATA = True
KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "star": ("star", {}),
    "sum": ("sum", {}),
    "star, penalty 0.01": ("star", {"penalty": "participation", "penalty_weight": 0.01}),
    "star, penalty 0.1": ("star", {"penalty": "participation", "penalty_weight": 0.1}),
}
BINS, REACH = (
    32,
    8.0,
)  # of the histogram: |alpha| over the root mean square of its channel; the last bin has what is beyond
SHOWN = ("kurtosis", "effective_share", "square_share", "cosine_squared", "effective_features")


def cells(budget: str) -> list[Cell]:
    chosen = ("star", "star, penalty 0.1") if budget == "smoke" else KINDS
    made = [_cell(budget, kind, seed, "initial") for seed in seeds(budget) for kind in ("star", "sum")]
    return made + [_cell(budget, kind, seed, "trained") for seed in seeds(budget) for kind in chosen]


def _cell(budget: str, kind: str, seed: int, state: str) -> Cell:
    mode, extra = KINDS[kind]
    if budget == "paper":
        settings: dict[str, Any] = {
            "recipe": "demonet-imagenet",
            "model_args": {"depth": 12, "width": 192, "mode": mode},
        }
    else:
        args = {"depth": 6, "width": 32, "mode": mode, "patch_size": 2 if budget == "smoke" else 4}
        settings = {**DEMONET, "model_args": args}
    settings |= {**extra, "seed": seed}
    measure = _initial(settings) if state == "initial" else _trained(settings)
    kept = {"model": "demonet_d12_w192", "bins": BINS, **settings}
    return Cell({"kind": kind, "state": state, "seed": seed}, measure, kept)


def _initial(settings: Mapping[str, Any]) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        import torch

        from starshift.models import create_model

        torch.manual_seed(settings["seed"])
        return _means(create_model("demonet_d12_w192", num_classes=10, **settings["model_args"]))

    return measure


def _trained(settings: Mapping[str, Any]) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        from starshift.models import load_model

        run = context.train("demonet_d12_w192", settings)
        return {**trained_row(run), **_means(load_model(run.path).model)}

    return measure


def _means(model: Any) -> dict[str, Any]:
    from starshift.analysis import coefficient_stats

    blocks = coefficient_stats(model)
    means = {name: round(sum(getattr(block, name) for block in blocks) / len(blocks), 5) for name in SHOWN}
    return {**means, "histogram": json.dumps(_histogram(model))}


def _histogram(model: Any) -> list[float]:
    """The share of all blocks' coefficients in each bin."""
    import torch

    from starshift.analysis import block_coefficients, find_branches

    counts = torch.zeros(BINS, dtype=torch.float64)
    with torch.no_grad():
        for branches in find_branches(model):
            size = block_coefficients(branches).abs()
            size /= size.square().mean(1, keepdim=True).sqrt()
            counts += torch.histc(size.clamp(max=REACH), BINS, 0, REACH)
    return [round(share, 8) for share in (counts / counts.sum()).tolist()]


def table(rows: list[Row]) -> str:
    lines = []
    for state in ("initial", "trained"):
        for kind in values(rows, "kind"):
            of = [row for row in rows if row["kind"] == kind and row["state"] == state]
            if of:
                shown = [_shown(of, name) for name in SHOWN]
                lines.append((kind, state, *shown, text(spread(of)) if state == "trained" else ""))
    header = ("blocks", "weights", "kurtosis", "terms, %", "squares, %", "cos²", "channels", "top-1 %")
    return as_table(header, lines)


def _shown(rows: list[Row], name: str) -> str:
    known = [row for row in rows if row.get(name) not in (None, "", "nan")]
    found = spread(known, name)
    if found is None:
        return "-"
    if name.endswith("share"):
        return f"{100 * found.mean:.1f}"
    return f"{found.mean:.3f}" if name == "cosine_squared" else f"{found.mean:.1f}"


def figure(rows: list[Row]) -> Any:
    """How many coefficients are how large, beside those of a normal distribution."""
    import math

    from matplotlib import pyplot as plt

    drawn, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    edges = [REACH * i / BINS for i in range(BINS + 1)]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    normal = [math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2)) for a, b in pairwise(edges)]
    for ax, mode in zip(panels, ("star", "sum"), strict=True):
        for kind, state in dict.fromkeys((row["kind"], row["state"]) for row in rows):
            of = [json.loads(r["histogram"]) for r in rows if (r["kind"], r["state"]) == (kind, state)]
            if kind.partition(",")[0] == mode:
                means = [sum(shares) / len(of) or math.nan for shares in zip(*of, strict=True)]
                ax.plot(middles, means, "o-", markersize=3, label=f"{kind}, {state}")
        ax.plot(middles, normal, color="#78716c", linestyle=":", label="normal")
        ax.set(title=mode, xlabel="|coefficient| / root mean square of its channel", yscale="log", ylim=(1e-6, 1))
        ax.legend()
        ax.grid(alpha=0.3)
    panels[0].set_ylabel(f"share of the coefficients, by {REACH / BINS:g}")
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    made = []
    for weight in ("0.01", "0.1"):
        gap = difference(rows, {"kind": f"star, penalty {weight}"}, {"kind": "star", "state": "trained"})
        if gap is not None:
            text = f"a penalty of weight {weight} that spreads the coefficients gains accuracy"
            made.append(Claim(text, "open", f"{signed(gap)} points", above(gap)))
    return made
