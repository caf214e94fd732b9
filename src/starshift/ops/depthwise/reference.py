# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution in plain torch: one k x k filter for each channel. x_NCHW, w_C1kk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=weight.shape[0])


def depthwise_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (x, weight, bias)."""
    channels = weight.shape[0]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [channels], stride, padding, dilation, False, [0, 0], channels, [True, True, True]
    )
