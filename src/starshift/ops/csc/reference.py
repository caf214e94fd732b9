# SPDX-License-Identifier: Apache-2.0
"""1x1 convolution, batch norm, ReLU, shift and 1x1 convolution in plain torch. x_NCHW, w1_EC11, w2_KE11, norm_E."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from starshift.ops.norm.reference import batch_norm_act, batch_norm_act_backward
from starshift.ops.pointwise_norm.reference import moments
from starshift.ops.shift.reference import shift_conv2d, shift_conv2d_backward


def csc(
    x: Tensor, w1: Tensor, weight: Tensor, bias: Tensor, w2: Tensor, offsets: list[int], stride: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result; mean and biased variance of the wide tensor u = w1 x; mean and biased covariance (C, C) of x."""
    u = F.conv2d(x, w1.to(x.dtype))
    r, mean, var = batch_norm_act(u, weight, bias, None, None, None, None, eps, "relu")
    return shift_conv2d(r, w2.to(x.dtype), None, offsets, stride), mean, var, *moments(x, mean.dtype)


def csc_backward(
    grad: Tensor,
    x: Tensor,
    w1: Tensor,
    weight: Tensor,
    bias: Tensor,
    w2: Tensor,
    mean: Tensor,
    var: Tensor,
    x_mean: Tensor,
    covariance: Tensor,
    offsets: list[int],
    stride: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (x, w1, weight, bias, w2)."""
    u = F.conv2d(x, w1.to(x.dtype))
    r = batch_norm_act(u, weight, bias, None, None, mean, var, eps, "relu")[0]
    r_grad, w2_grad, _ = shift_conv2d_backward(grad, r, w2.to(x.dtype), offsets, stride)
    u_grad, _, weight_grad, bias_grad = batch_norm_act_backward(
        r_grad, u, weight, bias, None, mean, var, eps, "relu", True
    )
    x_grad, w1_grad, _ = torch.ops.aten.convolution_backward(
        u_grad, x, w1.to(x.dtype), [0], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return (
        x_grad,
        w1_grad.to(w1.dtype),
        weight_grad.to(weight.dtype),
        bias_grad.to(bias.dtype),
        w2_grad.to(w2.dtype),
    )
