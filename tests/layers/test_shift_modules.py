# SPDX-License-Identifier: Apache-2.0
"""Conv-shift-conv modules against their equations, with the shift as a one-hot depthwise convolution."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers import CSC, PreActCSC, Shift2d, ShiftConv2d, make_offsets
from starshift.ops import Offsets, _native
from tests.tolerance import assert_close


def _one_hot_shift(x: Tensor, offsets: Offsets) -> Tensor:
    """A depthwise convolution with one weight of 1 for each channel."""
    reach = max(max(abs(dy), abs(dx)) for _, dy, dx in offsets)
    taps = torch.zeros(x.shape[1], 1, 2 * reach + 1, 2 * reach + 1)
    channel = 0
    for count, dy, dx in offsets:
        taps[channel : channel + count, 0, dy + reach, dx + reach] = 1
        channel += count
    return F.conv2d(x, taps, padding=reach, groups=x.shape[1])


def _bn(x: Tensor, bn: nn.Module) -> Tensor:
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)


def _randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
    return module.eval()


@pytest.mark.parametrize("assignment", ["grouped", "interleaved"])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (5, 1), (3, 2)])
def test_shift_layers(assignment: str, kernel_size: int, dilation: int) -> None:
    offsets = make_offsets(56, kernel_size, dilation, assignment)
    x = torch.randn(2, 56, 9, 8)
    shifted = _one_hot_shift(x, offsets)
    assert torch.equal(Shift2d(offsets)(x), shifted)
    conv = ShiftConv2d(56, 5, offsets, stride=2)
    assert_close("shift conv", conv(x), F.conv2d(shifted, conv.weight, conv.bias, stride=2))
    with pytest.raises(StarshiftError, match="interleaved"):
        make_offsets(9, 3, 1, "interleavd")


@pytest.mark.parametrize("relu", ["branch", "sum"])
@pytest.mark.parametrize("sc2", [False, True])
@pytest.mark.parametrize(("channels", "stride"), [((10, 10), 1), ((10, 20), 2), ((10, 12), 1)])
def test_csc(channels: tuple[int, int], stride: int, sc2: bool, relu: str) -> None:
    module = _randomised(CSC(*channels, stride, expansion=3, relu=relu, sc2=sc2))
    middle = 3 * channels[1]
    x = torch.randn(2, channels[0], 7, 8)
    y = _one_hot_shift(x, make_offsets(channels[0])) if sc2 else x
    y = F.relu(_bn(F.conv2d(y, module.conv1.conv.weight), module.conv1.bn))
    y = _one_hot_shift(y, make_offsets(middle))
    y = _bn(F.conv2d(y, module.conv2.conv.weight, stride=stride), module.conv2.bn)
    if channels[0] == channels[1]:
        assert not list(module.shortcut.parameters())
        short = x
    else:
        short = _bn(F.conv2d(x, module.shortcut.conv.weight, stride=stride), module.shortcut.bn)
    assert_close("csc", module(x), F.relu(y) + short if relu == "branch" else F.relu(y + short))
    assert all(not key.endswith("conv.bias") for key in module.state_dict())


def test_csc_runs_by_layers_with_synchronised_norms() -> None:
    module = CSC(10, 10).train()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module))
    x = torch.randn(2, 10, 6, 6).contiguous(memory_format=torch.channels_last)
    assert module._fusable(x) == _native.available() and not synchronised._fusable(x)
    assert_close("output", synchronised(x), module(x))
    for name, buffer in module.named_buffers():
        assert_close(name, synchronised.get_buffer(name).float(), buffer.float())


@pytest.mark.parametrize("sc2", [False, True])
@pytest.mark.parametrize(("out_channels", "stride"), [(10, 1), (16, 2)])
def test_preact_csc(out_channels: int, stride: int, sc2: bool) -> None:
    module = _randomised(PreActCSC(10, out_channels, stride, expansion=4, kernel_size=5, sc2=sc2))
    new = out_channels - 10 if stride == 2 else 10
    before, between = make_offsets(10, 5), make_offsets(4 * new, 5)
    x = torch.randn(2, 10, 7, 9)
    y = F.relu(_bn(x, module.norm1))
    y = _one_hot_shift(y, before) if sc2 else y
    y = F.conv2d(y, module.conv1.weight)
    y = y if sc2 else _one_hot_shift(y, between)
    y = F.relu(_bn(y, module.norm2))
    y = _one_hot_shift(y, between) if sc2 else y
    y = F.conv2d(y, module.conv2.weight, stride=stride)
    expected = torch.cat((y, F.avg_pool2d(x, 3, 2, 1)), 1) if stride == 2 else x + y
    assert module(x).shape[1] == out_channels
    assert_close("preact csc", module(x), expected)


def test_modules_that_cannot_be() -> None:
    with pytest.raises(StarshiftError, match="must add channels"):
        PreActCSC(10, 10, stride=2)
    with pytest.raises(StarshiftError, match="must keep them"):
        PreActCSC(10, 12, stride=1)
    with pytest.raises(StarshiftError, match=r"expansion=0\.01"):
        CSC(10, 10, expansion=0.01)
    with pytest.raises(StarshiftError, match="relu"):
        CSC(10, 10, relu="end")
