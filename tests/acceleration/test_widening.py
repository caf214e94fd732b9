# SPDX-License-Identifier: Apache-2.0
"""A widening convolution with its norm and activation, in the blocks of timm and torchvision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from timm.layers import ConvNormAct
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

import starshift
from starshift.acceleration import expansion
from starshift.ops import _native
from tests.tolerance import assert_close

pytestmark = pytest.mark.skipif(not _native.available(), reason="no compiled kernels on this machine")
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "timm-inverted-residual": lambda: InvertedResidual(12, 12, exp_ratio=4, act_layer=nn.Hardswish),
    "timm-inverted-residual-stride": lambda: InvertedResidual(12, 20, stride=2, exp_ratio=3, drop_path_rate=0.0),
    "timm-conv-norm-act": lambda: ConvNormAct(12, 40, act_layer=nn.ReLU6),
    "timm-conv-norm": lambda: ConvNormAct(12, 40, apply_act=False),
    "torchvision-conv-norm-act": lambda: torchvision.ops.Conv2dNormActivation(12, 40, 1, activation_layer=nn.SiLU),
    "sequence": lambda: nn.Sequential(nn.Conv2d(12, 33, 1, bias=False), nn.BatchNorm2d(33), nn.ReLU(inplace=True)),
    "sequence-without-activation": lambda: nn.Sequential(
        nn.ReLU(), nn.Conv2d(12, 33, 1, bias=False), nn.BatchNorm2d(33, momentum=None), nn.Tanh()
    ),
}
every_block = pytest.mark.parametrize("name", BLOCKS)


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A block, and its accelerated copy."""
    torch.manual_seed(0)
    block = BLOCKS[name]()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    other = copy.deepcopy(block)
    starshift.accelerate(other)
    return block.to(memory_format=torch.channels_last), other


def pixels(size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 12, size, size, generator=generator).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that the operator was given."""
    seen: list[tuple[int, ...]] = []

    def spy(x: Tensor, *args: Any) -> Tensor:
        seen.append(tuple(x.shape))
        return starshift.ops.pointwise_norm_act(x, *args)

    monkeypatch.setattr(expansion, "pointwise_norm_act", spy)
    return seen


@every_block
def test_same_gradients_and_statistics(name: str, widened: list[tuple[int, ...]]) -> None:
    block, other = pair(name)
    for _ in range(2):
        x, y = pixels().requires_grad_(), pixels().requires_grad_()
        expected, actual = block(x), other(y)
        grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
        expected.backward(grad)
        actual.backward(grad)
        assert_close("output", actual, expected)
        assert_close("input gradient", y.grad, x.grad)
    assert widened == [(3, 12, 16, 16)] * 2
    for (key, p), q in zip(block.named_parameters(), other.parameters(), strict=True):
        assert_close(f"gradient of {key}", q.grad, p.grad)
    for (key, b), c in zip(block.named_buffers(), other.buffers(), strict=True):
        assert_close(key, c.float(), b.float(), torch.float32)
    assert_close("evaluation", other.eval()(pixels()), block.eval()(pixels()))
    assert len(widened) == 2, "evaluation runs the layers"


@every_block
def test_a_hook_or_few_pixels_keep_the_layers(name: str, widened: list[tuple[int, ...]]) -> None:
    block, other = pair(name)
    assert_close("few pixels", other(pixels(4)), block(pixels(4)))
    seen: list[int] = []
    for kind in (nn.Conv2d, nn.BatchNorm2d):
        watched = next(m for m in other.modules() if isinstance(m, kind))
        handle = watched.register_forward_hook(lambda *_: seen.append(1))
        assert_close("watched", other(pixels()), block(pixels()))
        handle.remove()
    assert len(seen) == 2 and not widened


def test_mixed_precision(widened: list[tuple[int, ...]]) -> None:
    block, other = pair("timm-inverted-residual")
    with torch.autocast("cpu", torch.bfloat16):
        actual = other(pixels())
        assert actual.dtype == block(pixels()).dtype and widened
    assert_close("output", actual, block(pixels()), torch.bfloat16)


@pytest.mark.parametrize(
    "block",
    [
        lambda: InvertedResidual(12, 12, exp_ratio=4, s2d=1),
        lambda: ConvNormAct(12, 8),
        lambda: ConvNormAct(12, 24, kernel_size=3),
        lambda: ConvNormAct(12, 24, bias=True),
        lambda: ConvNormAct(12, 24, norm_layer="groupnorm1"),
        lambda: nn.Sequential(nn.Conv2d(12, 24, 1, bias=False), nn.SyncBatchNorm(24)),
    ],
    ids=["space-to-depth", "narrows", "kernel-3", "bias", "other-norm", "synchronised"],
)
def test_what_does_not_fit_is_left(block: Callable[[], nn.Module]) -> None:
    report = starshift.accelerate(block())
    assert "widening convolution with norm and activation" not in {r.what for r in report.replaced}
