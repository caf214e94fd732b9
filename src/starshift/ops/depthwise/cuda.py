# SPDX-License-Identifier: Apache-2.0
"""Which depthwise convolutions the Triton kernels answer on CUDA devices. Imports Triton only where one is."""

from __future__ import annotations

from torch import Tensor

from starshift.ops import _triton
from starshift.ops._operator import OPERATORS

LARGEST = 7
"""Taps in one direction: the kernels are written out for up to so many."""
MOST_UNROLLED = 64
"""Rows of the input that four rows of the output may reach over, with stride and dilation."""


def supports(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int]
) -> bool:
    """One dtype, filters of 1x1 to 7x7, and as many pixels as int32 can count."""
    tensors = [t for t in (x, weight, bias) if t is not None]
    n, _, height, width = x.shape
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    padded = n * (height + 2 * padding[0]) * (width + 2 * padding[1])
    return (
        _triton.usable(*tensors)
        and len({t.dtype for t in tensors}) == 1
        and max(weight.shape[2:]) <= LARGEST
        and 3 * stride[0] + (weight.shape[2] - 1) * dilation[0] < MOST_UNROLLED
        and padded < _triton.MOST_PIXELS
        and height + 2 * padding[0] > reach[0]
        and width + 2 * padding[1] > reach[1]
    )


def supports_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> bool:
    return supports(x, weight, None, stride, padding, dilation) and grad.dtype == x.dtype


def register(device: str = "cuda") -> None:
    """Add the kernels. Imports Triton."""
    from starshift.ops.depthwise import _triton_backward, _triton_forward

    OPERATORS["depthwise_conv2d"].add_kernel("triton", device, _triton_forward.depthwise_conv2d, supports)
    OPERATORS["depthwise_conv2d_backward"].add_kernel(
        "triton", device, _triton_backward.depthwise_conv2d_backward, supports_backward
    )


if _triton.available():
    register()
