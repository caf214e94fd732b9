# SPDX-License-Identifier: Apache-2.0
"""Which calls of the star operators the Triton kernels answer on CUDA devices. Imports Triton only where one is."""

from __future__ import annotations

import torch
from torch import Tensor

from starshift.ops import _triton
from starshift.ops._operator import OPERATORS

WIDEST = {
    (torch.bfloat16, torch.bfloat16): 256,
    (torch.float16, torch.float16): 256,
    (torch.float16, torch.float32): 128,
    (torch.float32, torch.float32): 64,
}
"""Channels in or out, by the dtypes of branches and projection: a program of ``star_mlp`` holds all of them for its
rows. Beyond, float32 products, which no tensor core multiplies exactly, leave little to gain."""


def supports_star(x1: Tensor, x2: Tensor, act: str, placement: str) -> bool:
    """Branches of one dtype that lie in one order, without gaps."""
    dense = x1.is_contiguous() or (x1.dim() == 4 and x1.is_contiguous(memory_format=torch.channels_last))
    return _triton.usable(x1, x2) and x1.dtype == x2.dtype and x1.stride() == x2.stride() and dense


def supports_star_backward(grad: Tensor, x1: Tensor, x2: Tensor, act: str, placement: str) -> bool:
    return supports_star(x1, x2, act, placement) and grad.dtype == x1.dtype


def supports_star_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    wg: Tensor,
    bg: Tensor | None,
    act: str,
    placement: str,
) -> bool:
    """Branches of one dtype, projected in the same, or float16 branches in float32; channels up to :data:`WIDEST`."""
    branches = [t for t in (x, w1, b1, w2, b2) if t is not None]
    projection = [t for t in (wg, bg) if t is not None]
    return (
        _triton.usable(*branches, *projection)
        and all(t.dtype == x.dtype for t in branches)
        and all(t.dtype == wg.dtype for t in projection)
        and max(w1.shape[1], wg.shape[0]) <= WIDEST.get((x.dtype, wg.dtype), 0)
        and min(*w1.shape[:2], wg.shape[0]) > 0
    )


def supports_star_mlp_backward(
    grad: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    wg: Tensor,
    act: str,
    placement: str,
) -> bool:
    return supports_star_mlp(x, w1, b1, w2, b2, wg, None, act, placement) and grad.dtype == wg.dtype


def register(device: str = "cuda") -> None:
    """Add the kernels. Imports Triton."""
    from starshift.ops.star import _triton_backward, _triton_mlp, _triton_star

    OPERATORS["star"].add_kernel("triton", device, _triton_star.star, supports_star)
    OPERATORS["star_backward"].add_kernel("triton", device, _triton_star.star_backward, supports_star_backward)
    OPERATORS["star_mlp"].add_kernel("triton", device, _triton_mlp.star_mlp, supports_star_mlp)
    OPERATORS["star_mlp_backward"].add_kernel(
        "triton", device, _triton_backward.star_mlp_backward, supports_star_mlp_backward
    )


if _triton.available():
    register()
