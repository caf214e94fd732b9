# SPDX-License-Identifier: Apache-2.0
"""The shift operation in plain torch: pad, slice each run of channels at its displacement, concatenate. x_NCHW."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from starshift.ops.shift.offsets import flatten, negate, unflatten


def shift2d(x: Tensor, offsets: list[int]) -> Tensor:
    runs = unflatten(offsets)
    height, width = x.shape[2:]
    reach_y = max([0, *[abs(dy) for _, dy, _ in runs]])  # in a form that torch.compile of 2.11 reads too
    reach_x = max([0, *[abs(dx) for _, _, dx in runs]])
    padded = F.pad(x, (reach_x, reach_x, reach_y, reach_y))
    parts, first = [], 0
    for channels, dy, dx in runs:
        top, left = reach_y + dy, reach_x + dx
        parts.append(padded[:, first : first + channels, top : top + height, left : left + width])
        first += channels
    return torch.cat(parts, 1)


def shift_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, offsets: list[int], stride: int) -> Tensor:
    return F.conv2d(shift2d(x, offsets), weight, bias, stride)


def shift_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, offsets: list[int], stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (x, weight, bias): the convolution's, then the shift by the opposite offsets."""
    shifted_grad, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
        grad,
        shift2d(x, offsets),
        weight,
        [weight.shape[0]],
        [stride, stride],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, True, True],
    )
    return shift2d(shifted_grad, flatten(negate(unflatten(offsets)))), weight_grad, bias_grad
