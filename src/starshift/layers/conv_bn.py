# SPDX-License-Identifier: Apache-2.0
"""A convolution and the batch norm after it."""

from __future__ import annotations

from torch import Tensor, nn

from starshift.layers.folding import Foldable, fuse_conv_bn_


class ConvBN(Foldable, nn.Module):
    """``bn(conv(x))``, with StarNet's parameter names ``conv`` and ``bn``.

    Args:
        conv: any convolution (plain, depthwise, shifted).
        bn: False leaves the norm out (the names stay).
    """

    def __init__(self, conv: nn.Conv2d, bn: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels) if bn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def fold(self) -> None:
        if fuse_conv_bn_(self.conv, self.bn):
            self.bn = nn.Identity()
