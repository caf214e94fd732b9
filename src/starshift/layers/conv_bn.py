# SPDX-License-Identifier: Apache-2.0
"""A convolution and the batch norm after it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from starshift.layers.activation import one_of
from starshift.layers.folding import Foldable, Run, fuse_conv_bn_
from starshift.layers.norm import norm_act
from starshift.layers.prepared import run_prepared
from starshift.ops import ACTIVATIONS
from starshift.ops.conv.infer import Prepared


class ConvBN(Foldable):
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
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        y = run_prepared(self, x) if self.folded else None
        return norm_act(self.bn, self.conv(x), self.act) if y is None else y

    def fold(self) -> None:
        """The convolution takes the norm in itself, and then runs with its weights laid out once."""
        if fuse_conv_bn_(self.conv, self.bn):
            self.bn = nn.Identity()
        self.folded = True

    def prepare(self) -> Run | None:
        conv = self.conv
        plain = type(conv) is nn.Conv2d and (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
        if not plain or isinstance(conv.padding, str) or type(self.bn) is not nn.Identity:
            return None
        return Prepared(conv.weight, conv.bias, conv.stride, conv.padding, self.act)


def plain_conv(layer: Any) -> Any:
    """The convolution of a ConvBN that has neither norm nor activation; else None."""
    return layer.conv if type(layer) is ConvBN and type(layer.bn) is nn.Identity and layer.act == "none" else None


def is_pointwise(conv: nn.Conv2d, stride: tuple[int, ...]) -> bool:
    """Whether it is a dense 1x1 convolution of this stride, without padding."""
    return (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), stride, 1) and conv.padding in (
        (0, 0),
        "same",
        "valid",
    )
