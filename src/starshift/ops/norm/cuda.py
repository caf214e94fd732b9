# SPDX-License-Identifier: Apache-2.0
"""Which batch norms the Triton kernels answer on CUDA devices. Imports Triton only where one is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from starshift.ops import _triton
from starshift.ops._operator import OPERATORS


def supports(x: Tensor, *rest: Any) -> bool:
    """Images with as many pixels as int32 can count."""
    return _triton.usable(x) and x.dim() == 4 and x.shape[1] > 0 and x.numel() // x.shape[1] < _triton.MOST_PIXELS


def register(device: str = "cuda") -> None:
    """Add the kernels. Imports Triton."""
    from starshift.ops.norm import _triton_norm as kernels

    OPERATORS["batch_norm_act"].add_kernel("triton", device, kernels.batch_norm_act, supports)
    OPERATORS["batch_norm_act_backward"].add_kernel(
        "triton", device, kernels.batch_norm_act_backward, lambda grad, x, *rest: supports(x)
    )


if _triton.available():
    register()
