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

from collections.abc import Callable, Mapping
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
    return Cell({"kind": kind, "state": state, "seed": seed}, measure, {"model": "demonet_d12_w192", **settings})


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


def _means(model: Any) -> dict[str, float]:
    from starshift.analysis import coefficient_stats

    blocks = coefficient_stats(model)
    return {name: round(sum(getattr(block, name) for block in blocks) / len(blocks), 5) for name in SHOWN}


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


def claims(rows: list[Row]) -> list[Claim]:
    gaps = {
        weight: difference(rows, {"kind": f"star, penalty {weight}"}, {"kind": "star", "state": "trained"})
        for weight in ("0.01", "0.1")
    }
    found = {weight: gap for weight, gap in gaps.items() if gap is not None}
    if not found:
        return []
    verdicts = [above(gap) for gap in found.values()]
    holds = True if any(verdicts) else False if all(v is False for v in verdicts) else None
    ours = ", ".join(f"{signed(gap)} points at weight {weight}" for weight, gap in found.items())
    return [Claim("shaping the coefficients by a penalty gains accuracy", "open", ours, holds)]
