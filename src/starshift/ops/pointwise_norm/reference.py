# SPDX-License-Identifier: Apache-2.0
"""1x1 convolution, batch norm and activation in plain torch. x_NCHW, w_EC11, norm_E."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from starshift.ops.norm.reference import batch_norm_act, batch_norm_act_backward


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean (C,) and biased covariance (C, C) of the pixels of x, in ``dtype``."""
    pixels = x.to(dtype).movedim(1, -1).reshape(-1, x.shape[1])
    mean = pixels.mean(0)
    away = pixels - mean
    return mean, away.T @ away / max(1, len(pixels))


def pointwise_norm_act(
    x: Tensor, w: Tensor, weight: Tensor, bias: Tensor, eps: float, act: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result; mean and biased variance of u = w x; mean and biased covariance (C, C) of x."""
    y, mean, var = batch_norm_act(F.conv2d(x, w.to(x.dtype)), weight, bias, None, None, None, None, eps, act)
    return y, mean, var, *moments(x, mean.dtype)


def pointwise_norm_act_backward(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    x_mean: Tensor,
    covariance: Tensor,
    eps: float,
    act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (x, w, weight, bias)."""
    u = F.conv2d(x, w.to(x.dtype))
    u_grad, _, weight_grad, bias_grad = batch_norm_act_backward(grad, u, weight, bias, None, mean, var, eps, act, True)
    x_grad, w_grad, _ = torch.ops.aten.convolution_backward(
        u_grad, x, w.to(x.dtype), [0], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return x_grad, w_grad.to(w.dtype), weight_grad.to(weight.dtype), bias_grad.to(bias.dtype)
