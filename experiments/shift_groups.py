# SPDX-License-Identifier: Apache-2.0
"""Shift groups: redundancy, contribution, and better assignments (Wu et al., "Shift", CVPR 2018, section 3.1).

The paper asks that channels inside a shift group be not redundant and that every group contribute, and leaves the
assignment of channels to shifts as future work.

    python -m experiments run shift_groups --data cifar10

A network with the uniform grouping is trained and its groups are measured; then four others are trained: channels given
to shifts by what each contributed (accuracy lost on training images when its shift is zeroed, or weight norm), and
shifts that are learned (active: real-valued; sparse: whole pixels), which cost more.
Expected: groups no more redundant inside than between; allocation changes little, learned shifts gain a little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments._book import Claim
from experiments._cells import Cell, Context, seeds, trained_row
from experiments._settings import SHIFT, SHIFT_SETTING
from experiments._stats import (
    Row,
    Spread,
    above,
    as_table,
    below,
    difference,
    error_bars,
    signed,
    spread,
    text,
    values,
)

TITLE = "Shift groups: redundancy, contribution, and better assignments"
SOURCE = "Shift, section 3.1 (future work there; no numbers)"
SETTING = (
    f"ShiftResNet-20 with expansion 3. {SHIFT_SETTING.format(epochs=2)}. Correlations and contributions are measured in"
    " evaluation mode on 100 images of each class that the network was trained on: they say what it makes use of, not"
    " what generalises"
)
READING = (
    "Channels inside a group are about as alike as channels of different groups (mean correlation 0.252 and 0.253): the"
    " first property. Of the second: zeroing one group's shift costs 0.9 points on training images in the mean, more "
    "where the group moves diagonally, but in one of the two networks 22 of 72 groups lose nothing, in the other none. "
    "Giving channels to shifts by contribution changes less than two repeats can tell (-0.2 to +0.3 points). Learned "
    "shifts gain nothing at two epochs (sparse -0.6 and -0.2, active -1.2 and +0.6), at a fifth more MACs and longer "
    "training"
)
COST = {"smoke": "30 s", "small": "35 min on 2 cores", "paper": "10 networks of 164 epochs on CIFAR-10: one GPU, a day"}
NEEDS_DATA = True
IMAGES = {"smoke": 100, "small": 1000, "paper": 10_000}
ASSIGNMENTS = ("uniform", "by accuracy lost", "by weight norm", "active", "sparse")
MODEL = "shiftresnet20"
ALIKE = 0.01  # of correlation: a difference that is taken for none


def cells(budget: str) -> list[Cell]:
    made = []
    chosen = ("by accuracy lost", "sparse") if budget == "smoke" else ASSIGNMENTS
    for seed in seeds(budget):
        key = {"what": "groups", "assignment": "uniform", "seed": seed}
        made.append(Cell(key, _groups(budget, seed), _settings(budget, seed)))
        for name in chosen:
            key = {"what": "accuracy", "assignment": name, "seed": seed}
            made.append(Cell(key, _train(budget, name, seed), {**_settings(budget, seed), "images": IMAGES[budget]}))
    return made


def _settings(budget: str, seed: int, **args: Any) -> dict[str, Any]:
    own = {"recipe": "shiftresnet-cifar"} if budget == "paper" else {**SHIFT, "epochs": 2}
    return {**own, "model_args": {"expansion": 3, **args}, "seed": seed}


def _groups(budget: str, seed: int) -> Callable[[Context], dict[str, Any]]:
    """Means over groups that move: correlation inside and between, accuracy lost without each, and weights."""

    def measure(context: Context) -> dict[str, Any]:
        import statistics

        from starshift.analysis import group_redundancy
        from starshift.models import load_model

        run = context.train(MODEL, _settings(budget, seed))
        model = load_model(run.path).model
        batches = context.batches(run, "train", IMAGES[budget])
        redundancy = [r for r in group_redundancy(model, batches) if r.within == r.within and r.between == r.between]
        found = _contributions(context, budget, seed)
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
            "moving": len(moving),
            "lost_none": sum(c.lost <= 0 for c in moving),
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
    accuracy, groups = _parts(rows)
    lines = [
        (name, text(spread(accuracy, assignment=name)), "" if name == "uniform" else signed(_gain(accuracy, name)))
        for name in values(accuracy, "assignment")
    ]
    return as_table(("channels given to shifts", "top-1 %", "points"), lines) + (_measured(groups) if groups else "")


def _parts(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Rows of accuracy, and rows of groups."""
    return [row for row in rows if row["what"] == "accuracy"], [row for row in rows if row["what"] == "groups"]


def _measured(groups: list[Row]) -> str:
    def of(name: str, digits: int = 2) -> str:
        return text(spread(groups, name), digits)

    return (
        f"\nIn the uniform network (seed {' and '.join(values(groups, 'seed'))}) the mean correlation between two"
        f" channels is {of('within', 3)} inside a group and {of('between', 3)} between groups; {of('more_within', 0)}"
        f" of {groups[0]['groups']} groups are more redundant inside. Zeroing one group's shift loses {of('lost')}"
        f" points on training images in the mean, {of('lost_most')} at most: {of('lost_straight')} for groups that move"
        f" straight, {of('lost_diagonal')} for those that move diagonally;{_none(groups)}. The weights that read a"
        f" channel have norm {of('norm_still', 3)} where it stays, {of('norm_straight', 3)} straight,"
        f" {of('norm_diagonal', 3)} diagonal.\n\n"
    )


def _none(groups: list[Row]) -> str:
    """How many groups cost nothing, by seed: rows of before this was counted do not say."""
    counts = [f"{r['lost_none']} of {r['moving']} (seed {r['seed']})" for r in groups if r.get("lost_none")]
    return f" {', '.join(counts)} lose nothing" if counts else " how many lose nothing was not counted"


def _gain(rows: list[Row], name: str) -> Spread | None:
    return difference(rows, {"assignment": name}, {"assignment": "uniform"})


def figure(rows: list[Row]) -> Any:
    """What a group's shift is worth by its direction, the weights that read it, and accuracy by assignment."""
    from matplotlib import pyplot as plt

    accuracy, groups = _parts(rows)
    drawn, (lost, norm, top1) = plt.subplots(1, 3, figsize=(13, 3.6), width_ratios=(2, 3, 4))
    for ax, column, directions in (
        (lost, "lost", ("straight", "diagonal")),
        (norm, "norm", ("still", "straight", "diagonal")),
    ):
        found = {name: s for name in directions if (s := spread(groups, f"{column}_{name}"))}
        heights, bars = [s.mean for s in found.values()], error_bars(list(found.values()))
        ax.bar(list(found), heights, yerr=bars, capsize=4, color="#78716c")
    by = {name: s for name in values(accuracy, "assignment") if (s := spread(accuracy, assignment=name))}
    names, means = list(by), [s.mean for s in by.values()]
    top1.errorbar(means, names, xerr=error_bars(list(by.values())), fmt="o", capsize=4, color="#15803d")
    top1.invert_yaxis()
    lost.set(title="zeroing one group's shift", ylabel="points lost, training images")
    norm.set(title="weights that read a channel", ylabel="norm")
    top1.set(title="channels given to shifts", xlabel="top-1 %, range of repeats")
    for ax in (lost, norm, top1):
        ax.grid(alpha=0.3)
    drawn.tight_layout()
    return drawn


def claims(rows: list[Row]) -> list[Claim]:
    accuracy, groups = _parts(rows)
    made = _properties(groups) if groups else []
    for name, claim in (
        ("by accuracy lost", "giving channels to shifts by what they contribute gains accuracy"),
        ("active", "learned real-valued shifts gain accuracy over uniform ones"),
        ("sparse", "learned whole-pixel shifts gain accuracy over uniform ones"),
    ):
        gain = _gain(accuracy, name)
        if gain is not None:
            made.append(Claim(claim, "future work", f"{signed(gain)} points", above(gain)))
    return made


def _properties(groups: list[Row]) -> list[Claim]:
    """The two that the paper asks for. Of one network, or of rows that did not count, nothing is said."""
    inside, between, lost = (text(spread(groups, name), 3) for name in ("within", "between", "lost"))
    more = Spread(tuple(float(row["within"]) - float(row["between"]) for row in groups))
    return [
        Claim(
            f"channels of one group are no more alike than channels of different groups, within {ALIKE}",
            "asked for; no number",
            f"correlation {inside} inside, {between} between",
            below(more, ALIKE),
        ),
        Claim(
            "every group that moves contributes: zeroing its shift loses accuracy on training images",
            "asked for; no number",
            f"{lost} points in the mean;{_none(groups)}",
            below(spread(groups, "lost_none"), 0.5),
        ),
    ]
