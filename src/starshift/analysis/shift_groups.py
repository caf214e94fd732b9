# SPDX-License-Identifier: Apache-2.0
"""Shift groups of a trained network: the two properties that "Shift" (CVPR 2018, section 3.1) asks for, measured.

A group is the channels of a module that move by one displacement. (1) Features of a group should not be redundant: the
correlation of its channels' activations (:func:`group_redundancy`). (2) Each should contribute: accuracy lost when the
group's shift is zeroed, and the norm of the weights that read it (:func:`group_contributions`). Choosing how many
channels
each shift gets, which the paper leaves as future work, follows from the second: :func:`starshift.analysis.allocations`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from starshift.analysis._measure import Batches, ChannelStatistics, evaluating, images_of
from starshift.errors import StarshiftError
from starshift.layers import CSC, PreActCSC, Shift2d, ShiftConv2d
from starshift.layers.activation import one_of
from starshift.layers.fixed_shift import middle_shift
from starshift.ops import Offsets
from starshift.ops.shift.offsets import merge_runs, per_channel

Displacement = tuple[int, int]


@dataclass(frozen=True)
class GroupRedundancy:
    """Mean |Pearson correlation| of a group's channels, by position, before they move.

    Attributes:
        module, dy, dx: which group.
        channels, live: channels of the group, and those of them that vary at all; only these count.
        within: over pairs inside the group; NaN with fewer than two.
        between: over pairs of a channel inside and one outside; NaN where there are none.
    """

    module: str
    dy: int
    dx: int
    channels: int
    live: int
    within: float
    between: float


@dataclass(frozen=True)
class GroupContribution:
    """What a group's shift is worth.

    Attributes:
        module, dy, dx, channels: which group.
        top1: accuracy in percent with the group's shift zeroed (its channels stay in place).
        lost: points of accuracy lost by that; 0 for the group that stays anyway.
        weight_norm: Frobenius norm of the columns of the next convolution that read the group.
        channel_norm: the same over the root of the channels, which groups of different sizes can be compared by.
    """

    module: str
    dy: int
    dx: int
    channels: int
    top1: float
    lost: float
    weight_norm: float
    channel_norm: float


@torch.no_grad()
def group_redundancy(model: nn.Module, batches: Batches) -> list[GroupRedundancy]:
    """One entry a group, module by module, from one pass over ``batches`` in eval mode.

    Args:
        model: a ShiftResNet or ShiftNet with fixed shifts.
        batches: (images, ...) each, such as a loader of :mod:`starshift.data`.

    Raises:
        StarshiftError: a model without fixed shifts, or no images.
    """
    layers = shift_layers(model)
    sums = {name: ChannelStatistics() for name in layers}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda _, inputs, name=name: sums[name].update(inputs[0]))
            stack.callback(hook.remove)
        for batch in batches:
            if len(batch[0]):
                model(images_of(model, batch))
    return [row for name, layer in layers.items() for row in _redundancy(name, layer.offsets, sums[name])]


@torch.no_grad()
def group_contributions(
    model: nn.Module, batches: Batches, modules: Sequence[str] | None = None
) -> list[GroupContribution]:
    """One entry a group: one pass over ``batches`` for each group that moves, and one for the network as it is.

    Choose what to allocate by on held-out training images, never on the test set.

    Args:
        model: a ShiftResNet or ShiftNet with fixed shifts; left as it was.
        batches: (images, classes, ...) each; read several times, so a list or a loader.
        modules: names of those to measure; None: all.

    Raises:
        StarshiftError: a model without fixed shifts, an unknown module, batches that can be read once only, or no
        images.
    """
    if iter(batches) is batches:
        raise StarshiftError("the batches are read once for each group: give a list or a loader, not an iterator")
    layers = shift_layers(model)
    for name in modules or ():
        one_of("modules", name, layers)
    whole = top1(model, batches)
    rows = []
    for name, layer in layers.items():
        if modules is not None and name not in modules:
            continue
        weight = _reader(model.get_submodule(name)).weight.flatten(1).double()
        for (dy, dx), channels in _groups(layer.offsets).items():
            score = whole
            if (dy, dx) != (0, 0):
                with zeroed(layer, (dy, dx)):
                    score = top1(model, batches)
            norm, size = float(weight[:, channels].norm()), len(channels)
            rows.append(GroupContribution(name, dy, dx, size, score, whole - score, norm, norm / math.sqrt(size)))
    return rows


@torch.no_grad()
def top1(model: nn.Module, batches: Batches) -> float:
    """Accuracy in percent over (images, classes, ...), in eval mode.

    Raises:
        StarshiftError: no images.
    """
    right = seen = 0
    with evaluating(model):
        for batch in batches:
            if len(batch[0]):
                answer = model(images_of(model, batch)).argmax(1)
                right += int((answer == batch[1].to(answer.device)).sum())
                seen += len(answer)
    if not seen:
        raise StarshiftError("no images to measure on")
    return 100 * right / seen


@contextmanager
def zeroed(layer: Shift2d | ShiftConv2d, displacement: Displacement) -> Iterator[None]:
    """Within: the channels of ``layer`` that move by ``displacement`` stay in place."""
    before = layer.offsets
    layer.offsets = merge_runs(tuple((n, 0, 0) if (dy, dx) == displacement else (n, dy, dx) for n, dy, dx in before))
    try:
        yield
    finally:
        layer.offsets = before


def shift_layers(model: nn.Module) -> dict[str, Shift2d | ShiftConv2d]:
    """The fixed shift of each module's middle channels, by the module's name.

    Raises:
        StarshiftError: there is none.
    """
    modules = {n: m for n, m in model.named_modules() if isinstance(m, (CSC, PreActCSC))}
    shifts = {name: middle_shift(module) for name, module in modules.items()}
    found = {name: shift for name, shift in shifts.items() if isinstance(shift, (Shift2d, ShiftConv2d))}
    if not found or len(found) < len(shifts):
        raise StarshiftError(
            "the model needs modules with fixed shifts: a ShiftResNet or ShiftNet, after starshift.layers.fix_shifts "
            "where its shifts were learned"
        )
    return found


def _redundancy(name: str, offsets: Offsets, sums: ChannelStatistics) -> Iterator[GroupRedundancy]:
    if not sums.count:
        raise StarshiftError("no images to measure on")
    correlation, live = sums.correlation()
    correlation = correlation.abs().fill_diagonal_(0)
    for (dy, dx), channels in _groups(offsets).items():
        group = torch.zeros_like(live)
        group[channels] = True
        inside, outside = live & group, live & ~group
        here, there = int(inside.sum()), int(outside.sum())
        rows = correlation[inside]
        within = float(rows[:, inside].sum()) / (here * (here - 1)) if here > 1 else math.nan
        between = float(rows[:, outside].sum()) / (here * there) if here * there else math.nan
        yield GroupRedundancy(name, dy, dx, len(channels), here, within, between)


def _groups(offsets: Offsets) -> dict[Displacement, list[int]]:
    """The channels of each displacement."""
    groups: dict[Displacement, list[int]] = {}
    for channel, displacement in enumerate(per_channel(offsets)):
        groups.setdefault(displacement, []).append(channel)
    return groups


def _reader(module: nn.Module) -> nn.Conv2d:
    """The convolution that reads a module's moved channels."""
    conv = module.conv2.conv if isinstance(module, CSC) else module.conv2
    assert isinstance(conv, nn.Conv2d)
    return conv
