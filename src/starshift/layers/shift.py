# SPDX-License-Identifier: Apache-2.0
"""The shift as layers: alone, and together with the 1x1 convolution after it."""

from __future__ import annotations

from torch import Tensor, nn

from starshift.layers.activation import one_of
from starshift.ops import Offsets, grouped_offsets, interleaved_offsets, shift2d, shift_conv2d

ASSIGNMENTS = {"grouped": grouped_offsets, "interleaved": interleaved_offsets}


def make_offsets(channels: int, kernel_size: int = 3, dilation: int = 1, assignment: str = "grouped") -> Offsets:
    """Which channel moves where: ``grouped`` (contiguous groups, the paper's text) or ``interleaved`` (its code).

    Raises:
        StarshiftError: unknown assignment, or an even kernel size.
    """
    return ASSIGNMENTS[one_of("offsets", assignment, ASSIGNMENTS)](channels, kernel_size, dilation)


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
