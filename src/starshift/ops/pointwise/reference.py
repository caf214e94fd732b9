# SPDX-License-Identifier: Apache-2.0
"""Pointwise convolution, and two of them with an activation between, in plain torch.

x is (N, C, H, W) with weights (K, C, 1, 1), or (..., C) with weights (K, C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from starshift.ops.star.reference import ACTIVATIONS


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias) if weight.dim() == 4 else F.linear(x, weight, bias)


def pointwise_conv2d_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (x, weight, bias)."""
    if weight.dim() == 4:
        return torch.ops.aten.convolution_backward(
            grad, x, weight, [weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True]
        )
    rows = grad.reshape(-1, grad.shape[-1])
    return grad @ weight, rows.T @ x.reshape(-1, x.shape[-1]), rows.sum(0)


def pointwise_mlp(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, act: str) -> Tensor:
    return pointwise_conv2d(ACTIVATIONS[act][0](pointwise_conv2d(x, w1, b1)), w2, b2)


def pointwise_mlp_backward(
    grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, act: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (x, w1, b1, w2, b2)."""
    f, df = ACTIVATIONS[act]
    z = pointwise_conv2d(x, w1, b1)
    grad, w2_grad, b2_grad = pointwise_conv2d_backward(grad, f(z), w2)
    return *pointwise_conv2d_backward(df(grad, z), x, w1), w2_grad, b2_grad
