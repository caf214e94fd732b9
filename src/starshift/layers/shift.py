# SPDX-License-Identifier: Apache-2.0
"""The shift as layers: alone, and together with the 1x1 convolution after it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers.activation import one_of
from starshift.layers.learned_shift import SHIFTS, LearnedShift2d, LearnedShiftConv2d
from starshift.ops import Offsets, grouped_offsets, interleaved_offsets, shift2d, shift_conv2d

ASSIGNMENTS = {"grouped": grouped_offsets, "interleaved": interleaved_offsets}


Assignment = str | Sequence[Sequence[int]]


def make_offsets(channels: int, kernel_size: int = 3, dilation: int = 1, assignment: Assignment = "grouped") -> Offsets:
    """Which channel moves where.

    Args:
        assignment: ``grouped`` (contiguous groups, the paper's text), ``interleaved`` (its code), or the runs
            themselves, each [channels, dy, dx] in pixels; kernel size and dilation then say nothing.

    Raises:
        StarshiftError: unknown assignment, an even kernel size, or runs that do not add up to the channels.

    Example:
        >>> from starshift.layers import make_offsets
        >>> make_offsets(4, assignment=[[3, 0, 0], [1, 0, -1]])
        ((3, 0, 0), (1, 0, -1))
    """
    if not isinstance(assignment, str):
        return _explicit(channels, assignment)
    return ASSIGNMENTS[one_of("offsets", assignment, ASSIGNMENTS)](channels, kernel_size, dilation)


def shift_layer(channels: int, kernel_size: int, dilation: int, offsets: Assignment, shift: str = "fixed") -> nn.Module:
    """A shift by name: ``fixed``, ``active`` or ``sparse``; learned ones reach as far as the kernel does."""
    if one_of("shift", shift, SHIFTS) == "fixed":
        return Shift2d(make_offsets(channels, kernel_size, dilation, offsets))
    return LearnedShift2d(channels, shift, dilation * (kernel_size // 2))


def shift_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    dilation: int,
    offsets: Assignment,
    shift: str = "fixed",
    stride: int = 1,
) -> nn.Conv2d:
    """A shift by name and the 1x1 convolution after it, without bias."""
    if one_of("shift", shift, SHIFTS) == "fixed":
        moves = make_offsets(in_channels, kernel_size, dilation, offsets)
        return ShiftConv2d(in_channels, out_channels, moves, stride, bias=False)
    return LearnedShiftConv2d(in_channels, out_channels, shift, dilation * (kernel_size // 2), stride, bias=False)


def per_module(offsets: str | Sequence[Assignment], modules: int) -> list[Assignment]:
    """The assignment of each module from a model's option: one name for all, or a list with one entry for each.

    Raises:
        StarshiftError: a list of another length.
    """
    if isinstance(offsets, str):
        return [offsets] * modules
    if len(offsets) != modules:
        raise StarshiftError(
            f"offsets has {len(offsets)} entries: give a name, or one entry for each of {modules} modules"
        )
    return list(offsets)


def _explicit(channels: int, runs: Sequence[Sequence[int]]) -> Offsets:
    fits = all(
        isinstance(run, (list, tuple)) and len(run) == 3 and all(type(v) is int for v in run) and run[0] >= 0
        for run in runs
    )
    if not fits or sum(run[0] for run in runs) != channels:
        raise StarshiftError(
            f"offsets {list(runs)}: runs [channels, dy, dx] of whole numbers whose channels add up to {channels}"
        )
    return tuple((n, dy, dx) for n, dy, dx in runs if n)


class Shift2d(nn.Module):
    """Every channel moved by its own displacement, zeros at the border; no parameters.

    Args:
        offsets: runs (channels, dy, dx), from :func:`make_offsets`.
    """

    def __init__(self, offsets: Offsets) -> None:
        super().__init__()
        self.offsets = offsets

    def forward(self, x: Tensor) -> Tensor:
        return shift2d(x, self.offsets)

    def extra_repr(self) -> str:
        return f"{sum(n for n, _, _ in self.offsets)}, groups={len(self.offsets)}"


class ShiftConv2d(nn.Conv2d):
    """Shift, then a 1x1 convolution, as one operator.

    Args:
        in_channels, out_channels: of the convolution.
        offsets: for the in_channels, from :func:`make_offsets`.
        stride: of the convolution, in pixels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, offsets: Offsets, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=bias)
        self.offsets = offsets

    def forward(self, x: Tensor) -> Tensor:
        return shift_conv2d(x, self.weight, self.bias, self.offsets, self.stride[0])
