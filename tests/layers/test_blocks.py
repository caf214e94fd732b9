# SPDX-License-Identifier: Apache-2.0
"""Star blocks and DemoNet's block against their equations written out with plain convolutions."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers import (
    DemoBlock,
    DepthwiseConv2d,
    StarBlock,
    StarShiftBlock,
    activation,
    fold_batchnorm,
)
from starshift.models import create_model
from starshift.ops import kernels_switched
from tests.tolerance import assert_close


def _randomised(block: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, 0, 0.4)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return block.eval()


def _combine(x1: Tensor, x2: Tensor, act: str, placement: str, mode: str) -> Tensor:
    f = {"relu6": F.relu6, "gelu": F.gelu, "none": lambda x: x}[act]
    both = x1.mul if mode == "star" else x1.add
    if placement == "product":
        return f(both(x2))
    first, second = f(x1), f(x2) if placement == "both" else x2
    return first * second if mode == "star" else first + second


@pytest.mark.parametrize("mode", ["star", "sum"])
@pytest.mark.parametrize("placement", ["first", "both", "product"])
@pytest.mark.parametrize("act", ["relu6", "none"])
@pytest.mark.parametrize("layout", ["both", "before", "after", "none"])
def test_star_block(layout: str, act: str, placement: str, mode: str) -> None:
    block = _randomised(StarBlock(4, 3, 5, act, placement, mode, layout))
    x = torch.randn(2, 4, 6, 7)
    y = x
    if layout in ("both", "before"):
        conv, bn = block.dwconv.conv, block.dwconv.bn
        y = F.conv2d(y, conv.weight, conv.bias, padding=2, groups=4)
        y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    x1, x2 = (F.conv2d(y, f.conv.weight, f.conv.bias) for f in (block.f1, block.f2))
    y = _combine(x1, x2, act, placement, mode)
    assert y.shape[1] == 12
    bn = block.g.bn
    y = F.conv2d(y, block.g.conv.weight, block.g.conv.bias)
    y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    if layout in ("both", "after"):
        y = F.conv2d(y, block.dwconv2.conv.weight, block.dwconv2.conv.bias, padding=2, groups=4)
    assert_close("block", block(x), x + y)


@pytest.mark.parametrize("mode", ["star", "sum"])
@pytest.mark.parametrize("kernel_size", [7, 0])
@pytest.mark.parametrize("layer_scale", [0.5, None])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_demo_block(mode: str, kernel_size: int, layer_scale: float | None, memory: torch.memory_format) -> None:
    block = _randomised(DemoBlock(6, mode, "gelu", "first", kernel_size, layer_scale))
    x = torch.randn(2, 6, 5, 4)
    y = F.layer_norm(x.movedim(1, 3), (6,), block.norm.weight, block.norm.bias)
    if kernel_size:
        y = F.conv2d(y.movedim(3, 1), block.dwconv.weight, block.dwconv.bias, padding=3, groups=6).movedim(1, 3)
    y = F.linear(y, block.f.weight, block.f.bias)
    assert y.shape[-1] == 36
    y = F.linear(_combine(y[..., :18], y[..., 18:], "gelu", "first", mode), block.g.weight, block.g.bias)
    y = y if layer_scale is None else y * block.gamma
    assert_close("block", block(x.contiguous(memory_format=memory)), x + y.movedim(3, 1))


def test_depthwise_is_a_grouped_convolution() -> None:
    layer = DepthwiseConv2d(6, 5, stride=2, dilation=2)
    x = torch.randn(1, 6, 11, 9)
    assert isinstance(layer, nn.Conv2d)
    assert_close("depthwise", layer(x), nn.Conv2d.forward(layer, x))


def test_activations_by_name() -> None:
    x = torch.linspace(-9, 9, 19)
    assert torch.equal(activation("hardswish")(x), nn.Hardswish()(x))
    assert torch.equal(activation("relu6")(x), x.clamp(0, 6))
    with pytest.raises(StarshiftError, match="Did you mean 'hardswish'"):
        activation("hardswich")


def test_drop_path_is_off_in_eval_and_drops_whole_samples_in_training() -> None:
    block = _randomised(StarBlock(4, drop_path=0.5))
    x = torch.randn(64, 4, 3, 3)
    assert torch.equal(block(x), block(x))
    dropped = (block.train()(x) == x).flatten(1).all(1)
    assert 10 < dropped.sum() < 54


def test_float16_autocast_does_not_overflow_where_timms_starnet_does() -> None:
    """The second branch near 20,000: six times that is beyond float16."""
    ours = create_model("starnet_s050", num_classes=4)
    theirs = timm.create_model("starnet_s050", num_classes=4)
    with torch.no_grad():
        ours.stages[0][1].f2.conv.bias.fill_(20_000)
        ours.stages[0][1].f1.conv.bias.fill_(10)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 64, 64)
    with torch.autocast("cpu", torch.float16):
        assert not theirs(x).isfinite().all()
        loss = F.cross_entropy(ours(x).float(), torch.arange(4))
    (loss * 1024).backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize("watched", [False, True])
def test_demo_block_does_not_overflow_in_float16_autocast(watched: bool) -> None:
    block = DemoBlock(8, act="relu", layer_scale=None)
    with torch.no_grad():
        block.f.bias.fill_(600)
    if watched:
        block.g.register_forward_hook(lambda *_: None)
    x = torch.randn(2, 8, 6, 7)
    with torch.autocast("cpu", torch.float16):
        y = block(x).float()
    y.mean().backward()
    assert y.isfinite().all() and y.abs().max() > 1e4
    assert all(p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("space", ["shift", "depthwise", "none"])
def test_star_shift_block(space: str, twice: bool) -> None:
    block = _randomised(StarShiftBlock(11, 3, space, 3, twice))
    x = torch.randn(2, 11, 6, 7)

    def move(x: Tensor, module: nn.Module) -> Tensor:
        if space == "none":
            return x
        if space == "depthwise":
            return F.conv2d(x, module.weight, module.bias, padding=1, groups=11)
        taps = torch.zeros(11, 1, 3, 3)  # the shift as a depthwise convolution with one tap a channel
        start = 0
        for count, dy, dx in module.offsets:
            taps[start : start + count, 0, 1 + dy, 1 + dx] = 1
            start += count
        return F.conv2d(x, taps, padding=1, groups=11)

    bn, last = block.norm, block.g.bn
    y = F.batch_norm(move(x, block.space), bn.running_mean, bn.running_var, bn.weight, bn.bias)
    x1, x2 = (F.conv2d(y, f.conv.weight, f.conv.bias) for f in (block.f1, block.f2))
    y = F.conv2d(F.relu6(x1) * x2, block.g.conv.weight, block.g.conv.bias)
    y = F.batch_norm(y, last.running_mean, last.running_var, last.weight, last.bias)
    wanted = x + (move(y, block.space2) if twice else y)
    last_format = x.to(memory_format=torch.channels_last)
    assert_close("block", block(x), wanted)
    assert_close("block, channels last", block(last_format), wanted)
    folded = fold_batchnorm(block)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert_close("folded", folded(last_format), wanted)


def test_star_shift_block_keeps_running_statistics() -> None:
    """The norms moved by operators, as they move by themselves."""
    torch.manual_seed(0)
    block = StarShiftBlock(8, 2)
    x = torch.randn(4, 8, 5, 5)
    plain = deepcopy(block)
    with kernels_switched(False):
        expected = plain(x)
    assert_close("out", block(x.to(memory_format=torch.channels_last)), expected)
    for (name, ours), (_, theirs) in zip(block.named_buffers(), plain.named_buffers(), strict=True):
        assert_close(name, ours.float(), theirs.float())


def test_star_shift_block_names_wrong_options() -> None:
    with pytest.raises(StarshiftError, match="space"):
        StarShiftBlock(8, space="warp")
    with pytest.raises(StarshiftError):
        StarShiftBlock(8, kernel_size=4)


@pytest.mark.parametrize("mode", ["star", "sum"])
def test_demo_block_calls_parts_that_are_watched_or_replaced(mode: str) -> None:
    torch.manual_seed(0)
    block, x, seen = DemoBlock(8, mode, layer_scale=None), torch.randn(2, 8, 5, 5), []
    expected = block(x)
    block.g.register_forward_hook(lambda *_: seen.append("g"))
    block.f = nn.Sequential(block.f)
    assert_close("the same", block(x), expected)
    assert seen == ["g"]
