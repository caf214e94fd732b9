# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution as a layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.ops import depthwise_conv2d


class DepthwiseConv2d(nn.Conv2d):
    """One spatial filter for each channel; an ``nn.Conv2d`` with ``groups = channels`` that runs our operator.

    Args:
        channels: of input and output.
        kernel_size: odd; the padding keeps the size at stride 1.
        stride, dilation: in pixels.

    Raises:
        StarshiftError: an even kernel.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, dilation: int = 1, bias: bool = True) -> None:
        if kernel_size % 2 == 0:
            raise StarshiftError(f"a depthwise kernel has odd sides, not {kernel_size}")
        padding = dilation * (kernel_size // 2)
        super().__init__(channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        geometry: Any = (self.stride, self.padding, self.dilation)
        return depthwise_conv2d(x, self.weight, self.bias, *geometry)
