# SPDX-License-Identifier: Apache-2.0
"""StarNet's block through its fused operator: for our StarBlock and for timm's, whose parts have the same names."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from starshift.layers.conv_bn import ConvBN, is_pointwise, plain_conv
from starshift.layers.depthwise import DepthwiseConv2d
from starshift.layers.norm import has_kernels, is_watched, next_momentum
from starshift.layers.shift import Shift2d
from starshift.ops._operator import autocast_dtype
from starshift.ops.norm import move_running
from starshift.ops.star_block import Weights, star_block
from starshift.ops.star_block.cuda import why_not_on_gpu
from starshift.ops.star_block.infer import Depthwise, Folded, Prepared, Space

_PARTS = {
    "dwconv": ("conv", "bn"),
    "f1": ("conv",),
    "f2": ("conv",),
    "g": ("conv", "bn"),
    "dwconv2": ("conv",),
    "drop_path": (),
}


def why_unfused(block: nn.Module, x: Tensor) -> str | None:
    """Why this block cannot run as one operator on x, in a few words; None when it can.

    The fused operator calls no inner module: a hook on one of them, or a module of another type (folded, parametrised,
    synchronised between processes), makes the block run layer by layer.
    """
    if not has_kernels(x, "star_block"):
        return "no kernel"
    if unfusable := why_unfusable(block):
        return unfusable
    norm: Any = block._modules["dwconv"]._modules["bn"]  # type: ignore[union-attr]
    if x.dim() != 4 or x.shape[1] != norm.num_features:
        return f"an input of {tuple(x.shape)}"
    if norm.training and x.numel() == x.shape[1]:
        return "one value a channel"
    if x.device.type == "cpu":
        return None
    return why_not_on_gpu(block.parameters(), x.shape[1], autocast_dtype(x) or x.dtype)


def why_unfusable(block: nn.Module) -> str | None:
    """As :func:`why_unfused`, for any input: what stands in the way inside the block."""
    parts: dict[str, Any] = {}
    for name, inner in _PARTS.items():
        part = block._modules.get(name)
        if part is None:
            return f"no {name}"
        parts[name] = part
        for child in inner:
            parts[f"{name}.{child}"] = part._modules.get(child)
    for name, part in parts.items():
        if not _known(name, part):
            return f"{name} is {type(part).__name__}"
        if is_watched(part):
            return f"a hook on {name}"
    for name in ("f1", "f2", "dwconv2"):
        if type(parts[name]._modules.get("bn")) not in (type(None), nn.Identity):
            return f"{name} has a norm"
    for name in _PARTS:
        if vars(parts[name]).get("act", "none") != "none":  # getattr would raise inside where there is none
            return f"{name} has an activation"
    if parts["dwconv.bn"].training != parts["g.bn"].training or block.training != parts["drop_path"].training:
        return "parts in different modes"
    return None


def run(block: Any, x: Tensor, act: str, placement: str) -> Tensor:
    """The block's forward as one operator; its batch norms' running statistics move as they would."""
    norm1, norm2, drop = block.dwconv.bn, block.g.bn, block.drop_path
    training = norm1.training
    x = x.to(autocast_dtype(x) or x.dtype).contiguous(memory_format=torch.channels_last)
    weights = Weights(
        *(block.dwconv.conv.weight, block.dwconv.conv.bias, norm1.weight, norm1.bias),
        *(block.f1.conv.weight, block.f1.conv.bias, block.f2.conv.weight, block.f2.conv.bias),
        *(block.g.conv.weight, block.g.conv.bias, norm2.weight, norm2.bias),
        *(block.dwconv2.conv.weight, block.dwconv2.conv.bias),
    )
    scale = None
    if isinstance(drop, DropPath) and drop.training and drop.drop_prob > 0:
        scale = drop(x.new_ones(x.shape[0], 1, 1, 1)).float().view(-1)
    out, statistics = star_block(
        x,
        weights,
        (norm1.running_mean, norm1.running_var, norm2.running_mean, norm2.running_var),
        sample_scale=scale,
        training=training,
        eps=(norm1.eps, norm2.eps),
        act=act,
        placement=placement,
    )
    if training:
        _move_running(norm1, norm2, statistics, x.numel() // x.shape[1])
    return out


def _move_running(norm1: Any, norm2: Any, statistics: Tensor, count: int) -> None:
    """Both norms' statistics together: each operation on so few numbers costs as much as one on many."""
    norms, (means, variances) = (norm1, norm2), (statistics[::2], statistics[1::2])
    momentum = [next_momentum(norm) for norm in norms]
    running = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
    if momentum[0] == momentum[1] and all(t.dtype == statistics.dtype for t in running):
        unbiased = variances * (count / (count - 1))
        torch._foreach_lerp_(running, [*means.unbind(), *unbiased.unbind()], momentum[0])
        return
    for norm, mean, var, weight in zip(norms, means, variances, momentum, strict=True):
        move_running(norm.running_mean, norm.running_var, mean, var, count, weight)


def prepare(block: Any, before: nn.Module, after: nn.Module, act: str, placement: str = "first") -> Prepared | None:
    """The forward of a block whose norms are folded away, its weights laid out once; None where that cannot be.

    Args:
        block: with ConvBN ``f1``, ``f2``, ``g``, and ``drop_path``.
        before, after: what mixes its pixels: depthwise convolutions, shifts, or nothing.
    """
    convs = [plain_conv(layer) for layer in (block.f1, block.f2, block.g)]
    if not all(_known("g.conv", conv) for conv in convs) or not _known("drop_path", block.drop_path):
        return None
    f1, f2, g = convs
    first, last = (_space(layer, f1.in_channels) for layer in (before, after))
    if (
        first is None
        or last is None
        or f1.weight.shape != f2.weight.shape
        or g.weight.shape[:2] != f1.weight.shape[1::-1]
    ):
        return None
    weights = (f1.weight, f1.bias, f2.weight, f2.bias, g.weight, g.bias)
    return Prepared(Folded(first, *weights, last), act, placement)


def _space(layer: nn.Module, channels: int) -> Space | None:
    """The layer as the block's kernel takes it; None: it cannot."""
    if type(layer) is nn.Identity:
        return ()
    if type(layer) is Shift2d:
        return layer.offsets if sum(n for n, _, _ in layer.offsets) == channels else None
    conv: Any = plain_conv(layer) if type(layer) is ConvBN else layer
    return Depthwise(conv.weight, conv.bias) if _known("dwconv.conv", conv) and conv.in_channels == channels else None


def _known(name: str, part: Any) -> bool:
    if name in ("dwconv.conv", "dwconv2.conv"):
        return type(part) in (nn.Conv2d, DepthwiseConv2d) and _depthwise(part)
    if name.endswith(".conv"):
        return type(part) is nn.Conv2d and is_pointwise(part, (1, 1))
    if name.endswith(".bn"):
        tracked = type(part) is nn.BatchNorm2d and part.track_running_stats and part.running_mean is not None
        return tracked and part.affine
    if name == "drop_path":
        return type(part) in (DropPath, nn.Identity)
    return isinstance(part, nn.Module)


def _depthwise(conv: Any) -> bool:
    kernel = conv.kernel_size
    return (
        not isinstance(conv.padding, str)
        and conv.groups == conv.in_channels == conv.out_channels
        and kernel[0] == kernel[1] == 2 * conv.padding[0] + 1
        and conv.padding[0] == conv.padding[1]
        and (conv.stride, conv.dilation, conv.padding_mode) == ((1, 1), (1, 1), "zeros")
    )
