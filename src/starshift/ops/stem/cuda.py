# SPDX-License-Identifier: Apache-2.0
"""Which first convolutions the Triton kernels answer on CUDA devices. Imports Triton only where one is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from starshift.ops import _triton
from starshift.ops._operator import OPERATORS

MOST_TAPS = 64
"""Input values that an output meets: a program holds them for all its outputs."""
MOST_CHANNELS = 128
"""Channels out, which a program computes all."""


def supports(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> bool:
    """Weight and bias of one dtype, images of any; few input values for each output."""
    n, _, height, width = x.shape
    pixels = n * (height + 2 * padding[0]) * (width + 2 * padding[1])
    return (
        _triton.usable(x, weight, bias)
        and (bias is None or bias.dtype == weight.dtype)
        and weight.shape[1:].numel() <= MOST_TAPS
        and weight.shape[0] <= MOST_CHANNELS
        and pixels < _triton.MOST_PIXELS
        and height + 2 * padding[0] >= weight.shape[2]
        and width + 2 * padding[1] >= weight.shape[3]
    )


def register(device: str = "cuda") -> None:
    """Add the kernels. Imports Triton."""
    from starshift.ops.stem import _triton_stem as kernels

    def backward_supports(grad: Tensor, x: Tensor, weight: Tensor, *geometry: Any) -> bool:
        return supports(x, weight, None, *geometry) and _triton.usable(grad) and grad.dtype == weight.dtype

    OPERATORS["stem_conv2d"].add_kernel("triton", device, kernels.stem_conv2d, supports)
    OPERATORS["stem_conv2d_backward"].add_kernel("triton", device, kernels.stem_conv2d_backward, backward_supports)


if _triton.available():
    register()
