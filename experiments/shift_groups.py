# SPDX-License-Identifier: Apache-2.0
"""Shift groups: redundancy, contribution, and better assignments (Wu et al., "Shift", CVPR 2018, section 3.1).

The paper asks that channels inside a shift group be not redundant and that every group contribute, and leaves the
assignment of channels to shifts as future work.

    python -m experiments run shift_groups --data cifar10

One network is trained with the uniform grouping and measured; then four at equal cost: uniform again, channels given to
shifts by what each contributed (accuracy lost on training images when its shift is zeroed, or weight norm), and shifts
that are learned (active: real-valued; sparse: whole pixels). Expected: groups no more redundant inside than between;
allocation changes little, learned shifts gain a little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, Context, seeds, trained_row
from experiments._settings import SHIFT, SHIFT_SETTING
from experiments._stats import Row, above, as_table, difference, signed, spread, text, values

TITLE = "Shift groups: redundancy, contribution, and better assignments"
SOURCE = "Shift, section 3.1 (future work there; no numbers)"
SETTING = (
    f"ShiftResNet-20 with expansion 3. {SHIFT_SETTING.format(epochs=2)}. Correlations and contributions are measured on"
    " training images, 100 of each class, in evaluation mode"
)
READING = (
    "Channels inside a group are as alike as those of different groups, and a group's shift is worth half a point in"
    " the mean, a diagonal one twice as much as a straight one: the uniform grouping has the two properties that the"
    " paper asks for. Giving channels to shifts by contribution gains nothing at two epochs, and learned shifts scatter"
    " around it or lie a little below, at a higher cost of training"
)
COST = {"smoke": "30 s", "small": "35 min on 2 cores", "paper": "10 networks of 164 epochs on CIFAR-10: one GPU, a day"}
NEEDS_DATA = True
IMAGES = {"smoke": 100, "small": 1000, "paper": 10_000}
ASSIGNMENTS = ("uniform", "by accuracy lost", "by weight norm", "active", "sparse")
MODEL = "shiftresnet20"


def cells(budget: str) -> list[Cell]:
    made = [Cell({"what": "groups", "assignment": "uniform", "seed": 0}, _groups(budget), _settings(budget, 0))]
    chosen = ("by accuracy lost", "sparse") if budget == "smoke" else ASSIGNMENTS
    for seed in seeds(budget):
        for name in chosen:
            key = {"what": "accuracy", "assignment": name, "seed": seed}
            made.append(Cell(key, _train(budget, name, seed), {**_settings(budget, seed), "images": IMAGES[budget]}))
    return made


def _settings(budget: str, seed: int, **args: Any) -> dict[str, Any]:
    own = {"recipe": "shiftresnet-cifar"} if budget == "paper" else {**SHIFT, "epochs": 2}
    return {**own, "model_args": {"expansion": 3, **args}, "seed": seed}


def _groups(budget: str) -> Callable[[Context], dict[str, Any]]:
    """Means over groups that move: correlation inside and between, accuracy lost without each, and weights."""

    def measure(context: Context) -> dict[str, Any]:
        import statistics

        from starshift.analysis import group_redundancy
        from starshift.models import load_model

        run = context.train(MODEL, _settings(budget, 0))
        model = load_model(run.path).model
        batches = context.batches(run, "train", IMAGES[budget])
        redundancy = [r for r in group_redundancy(model, batches) if r.within == r.within and r.between == r.between]
        found = _contributions(context, budget, 0)
        moving = [c for c in found if (c.dy, c.dx) != (0, 0)]
        still = [c for c in found if (c.dy, c.dx) == (0, 0)]
        straight = [c for c in moving if 0 in (c.dy, c.dx)]
        diagonal = [c for c in moving if 0 not in (c.dy, c.dx)]
        return {
            "within": statistics.mean(r.within for r in redundancy),
            "between": statistics.mean(r.between for r in redundancy),
            "groups": len(redundancy),
            "more_within": sum(r.within > r.between for r in redundancy),
            "lost": statistics.mean(c.lost for c in moving),
            "lost_most": max(c.lost for c in moving),
            "lost_straight": statistics.mean(c.lost for c in straight),
            "lost_diagonal": statistics.mean(c.lost for c in diagonal),
            "norm_still": statistics.mean(c.channel_norm for c in still),
            "norm_straight": statistics.mean(c.channel_norm for c in straight),
            "norm_diagonal": statistics.mean(c.channel_norm for c in diagonal),
        }

    return measure


def _contributions(context: Context, budget: str, seed: int) -> list[Any]:
    from starshift.analysis import group_contributions
    from starshift.models import load_model

    run = context.train(MODEL, _settings(budget, seed))
    return group_contributions(load_model(run.path).model, context.batches(run, "train", IMAGES[budget]))


def _train(budget: str, name: str, seed: int) -> Callable[[Context], dict[str, Any]]:
    def measure(context: Context) -> dict[str, Any]:
        args: Mapping[str, Any] = {}
        if name.startswith("by "):
            from starshift.analysis import allocations

            by = "lost" if "lost" in name else "weight_norm"
            args = {"offsets": allocations(_contributions(context, budget, seed), by, smooth=0.5)}
        elif name != "uniform":
            args = {"shift": name}
        return trained_row(context.train(MODEL, _settings(budget, seed, **args)))

    return measure


def table(rows: list[Row]) -> str:
    accuracy = [row for row in rows if row["what"] == "accuracy"]
    lines = [
        (name, text(spread(accuracy, assignment=name)), "" if name == "uniform" else signed(_gain(accuracy, name)))
        for name in values(accuracy, "assignment")
    ]
    parts = [as_table(("channels given to shifts", "top-1 %", "points"), lines)]
    for row in rows:
        if row["what"] == "groups":
            parts.append(_measured(row))
    return "".join(parts)


def _measured(row: Row) -> str:
    def of(name: str, digits: int = 2) -> str:
        return f"{float(row[name]):.{digits}f}"

    return (
        f"\nIn the uniform network the mean correlation between two channels is {of('within', 3)} inside a group and"
        f" {of('between', 3)} between groups; {row['more_within']} of {row['groups']} groups are more redundant"
        f" inside. Zeroing one group's shift loses {of('lost')} points in the mean, {of('lost_most')} at most:"
        f" {of('lost_straight')} for groups that move straight, {of('lost_diagonal')} for those that move"
        f" diagonally. The weights that read a channel have norm {of('norm_still', 3)} where it stays,"
        f" {of('norm_straight', 3)} straight, {of('norm_diagonal', 3)} diagonal.\n\n"
    )


def _gain(rows: list[Row], name: str) -> Any:
    return difference(rows, {"assignment": name}, {"assignment": "uniform"})


def claims(rows: list[Row]) -> list[Claim]:
    made = []
    accuracy = [row for row in rows if row["what"] == "accuracy"]
    for name, claim in (
        ("by accuracy lost", "giving channels to shifts by what they contribute gains accuracy"),
        ("active", "learned real-valued shifts gain accuracy over uniform ones"),
        ("sparse", "learned whole-pixel shifts gain accuracy over uniform ones"),
    ):
        gain = _gain(accuracy, name)
        if gain is not None:
            made.append(Claim(claim, "future work", f"{signed(gain)} points", above(gain)))
    return made
