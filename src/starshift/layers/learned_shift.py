# SPDX-License-Identifier: Apache-2.0
"""Shifts that learn where they go: active (Jeon & Kim, arXiv 1806.07370) and sparse (Chen et al., arXiv 1903.05285).

Each channel has a real displacement (dy, dx). The active shift reads between pixels by bilinear interpolation. The
sparse shift rounds in the forward pass; its gradient is that of the interpolation at the real displacement (straight
through), and an L1 penalty (:func:`displacement_penalty`) makes channels stay.

A bilinear shift by at most R pixels is a depthwise convolution whose (2R + 1)^2 filter is the product of two rows, each
of two neighbouring weights ``1 - r`` and ``r`` with r the fractional part. So forward and backward are one pass of a
depthwise kernel, and autograd carries the filter's gradient, ``in[f + 1] - in[f]``, to the displacement.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers.activation import one_of
from starshift.ops import Offsets, depthwise_conv2d

LEARNED = ("active", "sparse")
SHIFTS = ("fixed", *LEARNED)


class LearnedShift2d(nn.Module):
    """Every channel moved by its own learned displacement, zeros at the border.

    Args:
        channels: of the input.
        kind: ``active`` (interpolates) or ``sparse`` (whole pixels).
        reach: farthest displacement in pixels in each direction; training brings what leaves it back to its edge.

    Shapes: (N, channels, H, W) to the same. The displacements (channels, 2), as (dy, dx), start uniform in [-1, 1], as
    in both papers.

    Raises:
        StarshiftError: unknown kind, or a reach below 1.
    """

    def __init__(self, channels: int, kind: str = "active", reach: int = 1) -> None:
        super().__init__()
        self.kind = one_of("shift", kind, LEARNED)
        if reach < 1:
            raise StarshiftError(f"a learned shift needs a reach of at least 1 pixel (kernel_size 3), not {reach}")
        self.reach = reach
        self.displacement = nn.Parameter(nn.init.uniform_(torch.empty(channels, 2), -1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.displacement.data.clamp_(-self.reach, self.reach)  # .data: graphs of earlier passes stay valid
        return depthwise_conv2d(x, self.taps().to(x.dtype), padding=self.reach)

    def taps(self) -> Tensor:
        """The filters (channels, 1, 2 reach + 1, 2 reach + 1)."""
        where = self.displacement.clamp(-self.reach, self.reach)
        taps = bilinear_taps(where, self.reach)
        if self.kind == "sparse":
            taps = taps + (bilinear_taps(where.detach().round(), self.reach) - taps).detach()
        return taps[:, None]

    def offsets(self) -> Offsets:
        """The whole displacements that a sparse shift makes, one run a channel.

        Raises:
            StarshiftError: an active shift, which stands between pixels.
        """
        if self.kind != "sparse":
            raise StarshiftError("an active shift reads between pixels: only a sparse one is a fixed shift")
        whole = self.displacement.detach().clamp(-self.reach, self.reach).round().int().tolist()
        return tuple((1, dy, dx) for dy, dx in whole)

    def extra_repr(self) -> str:
        return f"{len(self.displacement)}, {self.kind}, reach={self.reach}"


class LearnedShiftConv2d(nn.Conv2d):
    """A learned shift, then a 1x1 convolution.

    Args:
        in_channels, out_channels: of the convolution.
        kind, reach: as in :class:`LearnedShift2d`.
        stride: of the convolution, in pixels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kind: str, reach: int = 1, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=bias)
        self.shift = LearnedShift2d(in_channels, kind, reach)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.shift(x), self.weight, self.bias, self.stride)


def bilinear_taps(displacement: Tensor, reach: int) -> Tensor:
    """Filters that shift by real displacements: (C, 2) within ``reach`` to (C, 2 reach + 1, 2 reach + 1).

    Their derivative is the one from the right, at the right edge from the left: it points to pixels that are there.
    """
    low = displacement.detach().floor().clamp(max=reach - 1)
    rest = displacement - low
    taps = torch.arange(-reach, reach + 1, device=low.device)
    rows = torch.where(taps == low[..., None], 1 - rest[..., None], 0.0)
    rows = torch.where(taps == low[..., None] + 1, rest[..., None], rows)
    return rows[:, 0, :, None] * rows[:, 1, None, :]


def displacement_penalty(model: nn.Module) -> Tensor:
    """Sum of |dy| + |dx| over all learned shifts: the sparse shift's L1 penalty, to be weighted and added to the loss.

    Raises:
        StarshiftError: a model without learned shifts.
    """
    moved = [m.displacement.abs().sum() for m in model.modules() if isinstance(m, LearnedShift2d)]
    if not moved:
        raise StarshiftError("the model has no learned shifts: make it with shift='sparse' or shift='active'")
    return torch.stack(moved).sum()
