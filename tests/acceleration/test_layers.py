# SPDX-License-Identifier: Apache-2.0
"""The accelerated layers, one at a time, against the layers whose place they take."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, Mlp, freeze_batch_norm_2d
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

import starshift
from starshift import acceleration, layers
from starshift.ops import batch_norm_act, depthwise_conv2d
from tests.acceleration.conftest import LEAST_INFERENCE
from tests.tolerance import assert_close

NORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "cumulative": {"momentum": None},
    "momentum-0": {"momentum": 0.0},
    "untracked": {"track_running_stats": False},
    "plain": {"affine": False},
    "eps": {"eps": 0.1},
}


def pixels(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 1
    return x.contiguous(memory_format=torch.channels_last)


def depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


def pair(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The layer and its accelerated copy."""
    other = copy.deepcopy(layer)
    assert starshift.accelerate(other).replaced
    return layer, other


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("act", [nn.ReLU, nn.Hardswish, nn.SiLU, nn.LeakyReLU, nn.Identity])
def test_batch_norm_keeps_the_same_statistics(act: type[nn.Module], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    norm = BatchNormAct2d(12, act_layer=act, inplace=False, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm, other = pair(norm)
    for step in range(4):
        training = step < 3
        norm.train(training), other.train(training)
        x, y = pixels(3 + step, 12, 5, 4).requires_grad_(), pixels(3 + step, 12, 5, 4).requires_grad_()
        expected, actual = norm(x), other(y)
        assert_close("output", actual, expected)
        weights = torch.randn_like(expected)
        (expected * weights).sum().backward()
        (actual * weights).sum().backward()
        assert_close("gradient", y.grad, x.grad)
    for (name, a), b in zip(norm.state_dict().items(), other.state_dict().values(), strict=True):
        assert a.dtype == b.dtype
        assert_close(name, b.double(), a.double(), torch.float32)
    for (name, a), b in zip(norm.named_parameters(), other.parameters(), strict=True):
        assert_close(name, b.grad, a.grad)


def test_frozen_norm_is_differentiable() -> None:
    norm, other = pair(nn.BatchNorm2d(6).eval())
    x, y = pixels(2, 6, 3, 3).requires_grad_(), pixels(2, 6, 3, 3).requires_grad_()
    norm(x).square().sum().backward()
    other(y).square().sum().backward()
    assert_close("x", y.grad, x.grad)
    assert_close("weight", other.weight.grad, norm.weight.grad)


def test_one_value_a_channel_is_the_error_that_it_was() -> None:
    norm, other = pair(nn.BatchNorm2d(6))
    for layer in (norm, other):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(pixels(1, 6, 1, 1))


def test_statistics_of_a_mean_far_from_zero() -> None:
    """As good as PyTorch's, whose two passes lose nothing: the variance of values around a thousand."""
    norm, other = pair(nn.BatchNorm2d(20, momentum=1.0))
    x = torch.randn(4, 20, 40, 40, generator=torch.Generator().manual_seed(0)) + 1000
    x[:2] -= 50  # two halves of the batch with means of their own
    x = x.contiguous(memory_format=torch.channels_last)
    other(x)
    exact = norm.double()
    exact(x.double())
    assert_close("mean", other.running_mean, exact.running_mean)
    assert_close("variance", other.running_var, exact.running_var)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_other_dtypes_and_layouts_run_the_original(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    norm, other = pair(nn.BatchNorm2d(6))
    norm, other = norm.to(dtype), other.to(dtype)
    x = pixels(2, 6, 4, 4).to(dtype).contiguous(memory_format=memory_format)
    assert torch.equal(norm(x), other(x))


@pytest.mark.parametrize("padding", [0, 1, (0, 2), "same", "valid"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_depthwise_padding(padding: Any, dilation: int) -> None:
    conv, other = pair(nn.Conv2d(8, 8, (3, 5), padding=padding, dilation=dilation, groups=8))
    x = pixels(2, 8, 9, 11)
    assert_close("output", other(x), conv(x))
    assert_close("one image", other(x[0]), conv(x[0]))


@pytest.mark.parametrize("act", [nn.GELU, nn.SiLU])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_mlp(act: type[nn.Module], drop: float) -> None:
    """Dropout that does something, and hooks inside, run the original."""
    torch.manual_seed(0)
    mlp, other = pair(Mlp(12, 20, act_layer=act, use_conv=True, drop=drop))
    x, y = pixels(2, 12, 24, 30).requires_grad_(), pixels(2, 12, 24, 30).requires_grad_()
    outputs = []
    for layer, z in ((mlp, x), (other, y)):
        torch.manual_seed(1)
        out = layer(z)
        out.square().sum().backward()
        outputs.append(out)
    assert_close("output", outputs[1], outputs[0])
    assert_close("gradient", y.grad, x.grad)
    for (name, a), b in zip(mlp.named_parameters(), other.parameters(), strict=True):
        assert_close(name, b.grad, a.grad)
    seen: list[Tensor] = []
    other.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert_close("watched", other.eval()(y), mlp.eval()(x))
    assert len(seen) == 1


@pytest.mark.parametrize("size", [4, 32])
def test_pointwise(size: int) -> None:
    conv, other = pair(nn.Conv2d(12, 20, 1))
    x, y = pixels(2, 12, size, size).requires_grad_(), pixels(2, 12, size, size).requires_grad_()
    conv(x).square().sum().backward()
    other(y).square().sum().backward()
    assert_close("gradient", y.grad, x.grad)
    assert_close("weight", other.weight.grad, conv.weight.grad)
    assert_close("bias", other.bias.grad, conv.bias.grad)


def test_geometry_changed_afterwards_is_kept_to() -> None:
    """As by code that turns a network's last strides into dilation."""
    x = pixels(2, 12, 32, 30).requires_grad_()
    depthwise, other = pair(nn.Conv2d(12, 12, 3, padding=1, groups=12))
    for conv in (depthwise, other):
        conv.dilation, conv.padding = (2, 2), (2, 2)
    assert_close("dilated", other(x), depthwise(x))
    pointwise, other = pair(nn.Conv2d(12, 20, 1))
    for conv in (pointwise, other):
        conv.stride, conv.padding = (2, 2), (1, 1)
    assert_close("strided", other(x), pointwise(x))


class _Wrapped(nn.Module):
    """As an adapter stands around a layer whose weight it shows."""

    def __init__(self, inner: nn.Conv2d) -> None:
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def test_parts_replaced_afterwards_are_called() -> None:
    torch.manual_seed(0)
    x = pixels(2, 12, 24, 30)
    mlp, other = pair(Mlp(12, 20, use_conv=True))
    for layer in (mlp, other):
        layer.fc2 = _Wrapped(layer.fc2)
    assert_close("mlp", other(x), mlp(x))
    block, other = pair(InvertedResidual(12, 12, exp_ratio=4, act_layer=nn.ReLU6))
    for layer in (block, other):
        layer.conv_pw = _Wrapped(layer.conv_pw)
    assert_close("block", other(x), block(x))
    mlp, other = pair(Mlp(12, 20, use_conv=True))
    for layer in (mlp, other):
        layer.drop1, layer.norm = nn.Identity(), nn.ReLU6()
    assert_close("parts between", other(x), mlp(x))
    norm, other = pair(BatchNormAct2d(12))
    for layer in (norm, other):
        layer.drop = nn.ReLU6()
    assert_close("after the norm", other(x), norm(x))
    block, other = pair(InvertedResidual(12, 12, exp_ratio=4, act_layer=nn.ReLU6))
    frozen = freeze_batch_norm_2d(other)
    assert_close("frozen", frozen(x), freeze_batch_norm_2d(block)(x))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(8), BatchNormAct2d(8), depthwise(8), Conv2dSame(8, 8, 3, groups=8)])
def test_one_small_image_is_left_to_pytorch(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, and below a size: there our kernels' calls cost more than they gain."""
    called = []
    for operator in (batch_norm_act, depthwise_conv2d):
        name = operator.__name__
        for module in (acceleration.convolution, layers.norm):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *a, f=operator, **k: called.append(f) or f(*a, **k))
    layer, other = pair(layer.eval())
    monkeypatch.setattr(layers.norm, "_LEAST_INFERENCE", LEAST_INFERENCE)
    with torch.no_grad():
        assert_close("small", other(pixels(1, 8, 9, 7)), layer(pixels(1, 8, 9, 7)))
        assert not called
        other(pixels(1, 8, 512, 256))
        assert len(called) == 1
    other(pixels(1, 8, 9, 7))
    assert len(called) == 2, "with gradients"
    with torch.no_grad():
        other.train()(pixels(2, 8, 9, 7))
    assert len(called) == (2 if isinstance(layer, nn.Conv2d) else 3), "a norm in training"
