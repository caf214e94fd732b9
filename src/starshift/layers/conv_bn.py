# SPDX-License-Identifier: Apache-2.0
"""A convolution and the batch norm after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from starshift.layers.activation import one_of
from starshift.layers.folding import Foldable, Run, fuse_conv_bn_
from starshift.layers.norm import can_normalise, has_kernels, is_watched, norm_act, normalise
from starshift.layers.prepared import run_prepared
from starshift.ops import ACTIVATIONS, stem_conv2d
from starshift.ops._operator import autocast_dtype
from starshift.ops.conv.infer import Prepared

MOST_IMAGE_CHANNELS = 4
"""Channels in of a convolution that is taken for a network's first."""


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
        return conv_norm_act(self.conv, self.bn, x, self.act) if y is None else y

    def fold(self) -> None:
        """The convolution takes the norm in itself, and then runs with its weights laid out once."""
        if fuse_conv_bn_(self.conv, self.bn):
            self.bn = nn.Identity()
        self.folded = True

    def prepare(self) -> Run | None:
        conv = self.conv
        padding = _plain_padding(conv)
        if padding is None or type(self.bn) is not nn.Identity:
            return None
        return Prepared(conv.weight, conv.bias, conv.stride, padding, self.act)


def conv_norm_act(conv: nn.Conv2d, norm: nn.Module, x: Tensor, act: str) -> Tensor:
    """``act(norm(conv(x)))``: images by their own kernel; on a GPU no bias is added that the norm would take away."""
    padding = _plain_padding(conv)
    if padding is None or is_watched(conv):
        return norm_act(norm, conv(x), act)
    if conv.in_channels <= MOST_IMAGE_CHANNELS and _takes(conv, x) and has_kernels(x, "stem_conv2d"):
        stride: Any = conv.stride
        y = stem_conv2d(x, conv.weight, conv.bias, stride, padding)
        return norm_act(norm, y, act)
    trained = type(norm) is nn.BatchNorm2d and norm.training and not is_watched(norm)
    if conv.bias is None or not trained or not _drops_biases(x) or not _is_last(x, conv.weight):
        return norm_act(norm, conv(x), act)
    y = nn.functional.conv2d(x, conv.weight, None, conv.stride, padding)
    if not can_normalise(norm, y):
        return norm_act(norm, y + conv.bias.to(y.dtype).view(-1, 1, 1), act)
    return normalise(norm, y, act, absent=conv.bias)


def _plain_padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """(vertical, horizontal), of a dense convolution that is padded with zeros; None of any other."""
    plain = type(conv) is nn.Conv2d and (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
    if not plain or isinstance(conv.padding, str):
        return None
    vertical, horizontal = conv.padding
    return vertical, horizontal


def _takes(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether the layer itself would take x, in the dtypes that both are in."""
    fits = x.dim() == 4 and x.shape[1] == conv.in_channels and x.is_floating_point()
    return fits and (autocast_dtype(x) is not None or x.dtype == conv.weight.dtype)


def _is_last(*tensors: Tensor) -> bool:
    return any(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


def _drops_biases(x: Tensor) -> bool:
    """A convolution on a GPU adds its bias, and sums the gradient for it, in passes of their own."""
    return x.is_cuda


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
