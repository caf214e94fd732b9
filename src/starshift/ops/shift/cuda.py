# SPDX-License-Identifier: Apache-2.0
"""Which calls of the shift operators the Triton kernels answer on CUDA devices. Imports Triton only where one is."""

from __future__ import annotations

from torch import Tensor

from starshift.ops import _triton
from starshift.ops._operator import OPERATORS

LONGEST_SIDE = 2**15 - 1
"""Pixels: two displacements share an int32."""


def supports_shift2d(x: Tensor, offsets: list[int]) -> bool:
    n, _, height, width = x.shape
    return _triton.usable(x) and max(height, width) <= LONGEST_SIDE and n * height * width < _triton.MOST_PIXELS


def supports_shift_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, offsets: list[int], stride: int) -> bool:
    tensors = [t for t in (x, weight, bias) if t is not None]
    return supports_shift2d(x, offsets) and _triton.usable(*tensors) and len({t.dtype for t in tensors}) == 1


def supports_shift_conv2d_backward(grad: Tensor, x: Tensor, weight: Tensor, offsets: list[int], stride: int) -> bool:
    return supports_shift_conv2d(x, weight, None, offsets, stride) and grad.dtype == x.dtype


def register(device: str = "cuda") -> None:
    """Add the kernels. Imports Triton."""
    from starshift.ops.shift import _triton_conv, _triton_shift

    OPERATORS["shift2d"].add_kernel("triton", device, _triton_shift.shift2d, supports_shift2d)
    OPERATORS["shift_conv2d"].add_kernel("triton", device, _triton_conv.shift_conv2d, supports_shift_conv2d)
    OPERATORS["shift_conv2d_backward"].add_kernel(
        "triton", device, _triton_conv.shift_conv2d_backward, supports_shift_conv2d_backward
    )


if _triton.available():
    register()
