# SPDX-License-Identifier: Apache-2.0
"""Layers rewritten in operators that other runtimes are fast at, before a network is exported."""

from __future__ import annotations

import math

import torch
from torch import nn

from starshift.layers import Shift2d, ShiftConv2d
from starshift.ops import Offsets

SHIFTS = {"torch": "slices", "aotinductor": "slices"}
"""How a shift is written for a target; ``depthwise`` where it is not said."""


def lower_(model: nn.Module, target: str) -> nn.Module:
    """Rewrite a folded network for a target, in place."""
    return lower_shifts_(model) if SHIFTS.get(target, "depthwise") == "depthwise" else model


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
