# SPDX-License-Identifier: Apache-2.0
"""A network's first convolution in plain torch. x_NCHW, w_KCIJ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def stem_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    return F.conv2d(x.to(weight.dtype), weight, bias, stride, padding)


def stem_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias."""
    options = ([weight.shape[0]], stride, padding, [1, 1], False, [0, 0], 1, [False, True, True])
    _, weight_grad, bias_grad = torch.ops.aten.convolution_backward(grad, x.to(weight.dtype), weight, *options)
    return weight_grad.contiguous(), bias_grad
