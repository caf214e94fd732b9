# SPDX-License-Identifier: Apache-2.0
"""A convolution and the batch norm after it."""

from __future__ import annotations

from torch import Tensor, nn

from starshift.layers.activation import one_of
from starshift.layers.folding import Foldable, fuse_conv_bn_
from starshift.layers.norm import norm_act
from starshift.ops import ACTIVATIONS


class ConvBN(Foldable, nn.Module):
    """``act(bn(conv(x)))``, with StarNet's parameter names ``conv`` and ``bn``.

    Args:
        conv: any convolution (plain, depthwise, shifted).
        bn: False leaves the norm out (the names stay).
        act: activation after the norm, one of :data:`starshift.ops.ACTIVATIONS`.
    """

    def __init__(self, conv: nn.Conv2d, bn: bool = True, act: str = "none") -> None:
        super().__init__()
        self.act = one_of("act", act, ACTIVATIONS)
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels) if bn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(self.bn, self.conv(x), self.act)

    def fold(self) -> None:
        if fuse_conv_bn_(self.conv, self.bn):
            self.bn = nn.Identity()
