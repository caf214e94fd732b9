# SPDX-License-Identifier: Apache-2.0
"""Layers rewritten in operators that other runtimes are fast at, before a network is exported."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from starshift.layers import Shift2d, ShiftConv2d, StarBlock
from starshift.ops import Offsets, star

SHIFTS = ("depthwise", "slices")
"""How a shift can be written: as a depthwise convolution, or as pad, slices and concatenation."""


@dataclass(frozen=True)
class Lowering:
    """How layers are written for a target.

    Attributes:
        shift: one of :data:`SHIFTS`.
        merge_branches: a star block's f1 and f2 as one convolution, its result cut in two. Not for int8, where one
            range would have to hold both.
    """

    shift: str = "depthwise"
    merge_branches: bool = False


LOWERINGS = {"torch": Lowering("slices")}
"""The choice for each target, the default where it is not said; ``starshift bench lowerings`` measures them."""


def lower_(model: nn.Module, target: str, lowering: Lowering | None = None) -> nn.Module:
    """Rewrite a folded network for a target, in place, by ``lowering`` or the target's own."""
    lowering = lowering or LOWERINGS.get(target, Lowering())
    if lowering.shift == "depthwise":
        lower_shifts_(model)
    if lowering.merge_branches:
        merge_branches_(model)
    return model


def merge_branches_(model: nn.Module) -> nn.Module:
    """Make one convolution of f1 and f2 in every star block, in place. The result is the same but for rounding."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, StarBlock) and child.mode == "star":
                setattr(module, name, _MergedBlock(child))
    return model


class _MergedBlock(nn.Module):
    """A folded star block, both branches by one convolution."""

    def __init__(self, block: StarBlock) -> None:
        super().__init__()
        self.act, self.placement = block.act, block.placement
        self.before, self.after, self.g = block.dwconv, block.dwconv2, block.g
        pair = (block.f1.conv, block.f2.conv)
        self.f = nn.Conv2d(pair[0].in_channels, 2 * pair[0].out_channels, 1)
        self.f.weight = nn.Parameter(torch.cat([conv.weight for conv in pair]).detach())
        self.f.bias = nn.Parameter(torch.cat([conv.bias for conv in pair if conv.bias is not None]).detach())

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.f(self.before(x)).chunk(2, dim=1)
        return x + self.after(self.g(star(x1, x2, self.act, self.placement)))


def lower_shifts_(model: nn.Module) -> nn.Module:
    """Replace every shift by a depthwise convolution with a single one in each channel's kernel, in place.

    The result is the same to the last bit. As pad, slices and concatenation a shift in nine groups is 29 nodes that
    copy the image several times: slower to run, and the exporter takes minutes over a deep network of them. The stride
    of a convolution behind the shift moves into the depthwise one.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ShiftConv2d):
                setattr(module, name, _shift_conv(child))
            elif isinstance(child, Shift2d):
                setattr(module, name, one_hot_conv(child.offsets))
    return model


def one_hot_conv(offsets: Offsets, stride: int = 1) -> nn.Conv2d:
    """The depthwise convolution that moves channels by ``offsets`` and keeps every ``stride``-th pixel."""
    channels = sum(n for n, _, _ in offsets)
    moves = [abs(d) for _, dy, dx in offsets for d in (dy, dx)]
    dilation = math.gcd(*moves) or 1
    reach = max(moves, default=0) // dilation
    conv = nn.Conv2d(channels, channels, 2 * reach + 1, stride, reach * dilation, dilation, groups=channels, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        first = 0
        for n, dy, dx in offsets:
            conv.weight[first : first + n, 0, reach + dy // dilation, reach + dx // dilation] = 1
            first += n
    return conv


def _shift_conv(layer: ShiftConv2d) -> nn.Sequential:
    pointwise = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None)
    pointwise.weight, pointwise.bias = layer.weight, layer.bias
    return nn.Sequential(one_hot_conv(layer.offsets, layer.stride[0]), pointwise)
