# SPDX-License-Identifier: Apache-2.0
"""Which star blocks the Triton kernels answer on CUDA devices. Imports Triton only where one is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from starshift.ops import _triton
from starshift.ops._operator import OPERATORS
from starshift.ops.depthwise.cuda import LARGEST
from starshift.ops.star.cuda import WIDEST


def why_not_on_gpu(weights: Iterable[Tensor | None], channels: int, dtype: torch.dtype) -> str | None:
    """What of a block's weights, and of images of this many channels, the kernels do not take; None where they do."""
    there = [w for w in weights if w is not None]
    if channels > WIDEST.get((dtype, dtype), 0):
        return f"{channels} channels of {dtype}"
    if any(w.dtype != torch.float32 for w in there):
        return "weights not in float32"
    if any(max(w.shape[2:]) > LARGEST for w in there if w.dim() == 4):
        return f"filters larger than {LARGEST}"
    return None


def supports(x: Tensor, weights: Sequence[Tensor | None]) -> bool:
    """Weights in float32, x in float32 or bfloat16; filters and channels within what the parts' kernels hold."""
    n, channels, height, width = x.shape
    padded = n * (height + LARGEST) * (width + LARGEST)
    return (
        _triton.usable(x, *weights)
        and x.dtype in (torch.float32, torch.bfloat16)
        and padded < _triton.MOST_PIXELS
        and why_not_on_gpu(weights, channels, x.dtype) is None
    )


def register(device: str = "cuda") -> None:
    """Add the kernels. Imports Triton."""
    from starshift.ops.star_block import _triton_block as kernels

    def backward_supports(grad: Tensor, x: Tensor, y: Tensor, z: Tensor, statistics: Tensor, *rest: Any) -> bool:
        return supports(x, rest[:14]) and x.dtype == y.dtype == z.dtype == grad.dtype

    OPERATORS["star_block"].add_kernel("triton", device, kernels.star_block, lambda x, *rest: supports(x, rest[:14]))
    OPERATORS["star_block_backward"].add_kernel("triton", device, kernels.star_block_backward, backward_supports)


if _triton.available():
    register()
