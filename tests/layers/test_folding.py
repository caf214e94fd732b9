# SPDX-License-Identifier: Apache-2.0
"""Batch norms merged into the weights beside them, and left where that would not be exact."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from starshift.layers import ConvBN, PreActCSC, ShiftConv2d, fold_batchnorm, make_offsets
from starshift.models import create_model
from tests.models.helpers import randomise
from tests.tolerance import assert_close


def _norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def _same(model: nn.Module, x: Tensor) -> nn.Module:
    model = randomise(model)
    with torch.no_grad():
        folded = fold_batchnorm(model)
        assert_close("folded", folded(x), model(x))
    return folded


@pytest.mark.parametrize("bias", [True, False])
def test_conv_bn(bias: bool) -> None:
    x = torch.randn(2, 9, 5, 6)
    for conv in (nn.Conv2d(9, 4, 3, 2, 1, bias=bias), ShiftConv2d(9, 4, make_offsets(9), bias=bias)):
        folded = _same(ConvBN(conv), x)
        assert _norms(folded) == 0 and folded.conv.bias is not None and type(folded.conv) is type(conv)


def test_starnet_loses_all_and_the_last_goes_into_the_classifier() -> None:
    model = create_model("starnet_s050", num_classes=6)
    folded = _same(model, torch.randn(2, 3, 64, 64))
    assert _norms(model) > 0 == _norms(folded)
    assert isinstance(folded.norm, nn.Identity)


@pytest.mark.parametrize("pool", ["max", "avgmax"])
def test_a_norm_before_another_pool_stays(pool: str) -> None:
    assert _norms(_same(create_model("starnet_s050", global_pool=pool), torch.randn(2, 3, 64, 64))) == 1


def test_a_norm_before_no_classifier_stays() -> None:
    assert _norms(_same(create_model("starnet_s050", num_classes=0), torch.randn(2, 3, 64, 64))) == 1


def test_preactivation_modules_keep_what_cannot_go() -> None:
    x = torch.randn(2, 9, 6, 6)
    assert _norms(_same(PreActCSC(9, 9, expansion=3), x)) == 2
    assert _norms(_same(PreActCSC(9, 9, expansion=3, sc2=True), x)) == 1


def test_sequences_of_others() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    assert _norms(_same(model, torch.randn(2, 3, 7, 7))) == 1
    assert _norms(_same(timm.create_model("starnet_s050"), torch.randn(2, 3, 64, 64))) == 1
    _same(timm.create_model("mobilenetv3_small_050"), torch.randn(2, 3, 64, 64))
    _same(timm.create_model("resnet18"), torch.randn(2, 3, 64, 64))


class _Backwards(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for module in reversed(list(self)):
            x = module(x)
        return x


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.normed = nn.Sequential(self.conv, nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.normed(x) + self.conv(x)


def test_what_only_looks_adjacent_is_left_alone() -> None:
    x = torch.randn(2, 4, 5, 5)
    assert _norms(_same(_Backwards(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), x)) == 1
    assert _norms(_same(_Shared(), x)) == 1
    hooked = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    hooked[0].register_forward_hook(lambda module, args, out: out.abs())
    assert _norms(_same(hooked, x)) == 1
    without_statistics = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert _norms(fold_batchnorm(without_statistics)) == 1


def test_folding_needs_no_parameters_to_be_trainable_and_keeps_the_dtype() -> None:
    model = randomise(create_model("shiftresnet20")).double().requires_grad_(False)
    folded = fold_batchnorm(model)
    assert {p.dtype for p in folded.parameters()} == {torch.float64}
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    assert_close("double", folded(x), model(x))


def test_parts_that_serve_elsewhere_or_are_watched_stay() -> None:
    """As the convolutions of a detector's head, shared by levels that have norms of their own."""
    x, conv = torch.randn(2, 8, 5, 5), nn.Conv2d(8, 8, 3, padding=1)
    assert _norms(_same(nn.Sequential(ConvBN(conv), ConvBN(conv)), x)) == 2
    twice = ConvBN(nn.Conv2d(8, 8, 3, padding=1))
    assert _norms(_same(nn.Sequential(twice, twice), x)) == 0
    watched = ConvBN(nn.Conv2d(8, 8, 3, padding=1))
    watched.bn.register_forward_hook(lambda module, args, out: out.abs())
    assert _norms(_same(watched, x)) == 1
