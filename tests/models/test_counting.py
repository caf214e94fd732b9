# SPDX-License-Identifier: Apache-2.0
"""Parameters and MACs against the papers' figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from starshift.errors import StarshiftError
from starshift.layers import fold_batchnorm
from starshift.models import count_macs, count_params, create_model, model_info
from starshift.models._counting import measure


@pytest.mark.parametrize(
    ("name", "params", "macs", "folded"),
    [
        ("starnet_s1", 2.9, 425, 422),
        ("starnet_s2", 3.7, 547, 544),
        ("starnet_s3", 5.8, 757, 754),
        ("starnet_s4", 7.5, 1054, 1050),  # the paper states 1075
    ],
)
def test_starnet(name: str, params: float, macs: int, folded: int) -> None:
    info = measure(name)
    assert round(info.params / 1e6, 1) == params
    assert round(info.macs / 1e6) == macs
    assert round(info.macs_folded / 1e6) == folded


def test_starnet_s1_at_244_pixels_is_what_users_report() -> None:
    assert round(count_macs(create_model("starnet_s1"), (244, 244)) / 1e6) == 539


@pytest.mark.parametrize(
    ("name", "options", "params", "reference_macs"),
    [
        ("shiftresnet20", {"expansion": 3}, 95_642, 16_581_248),
        ("resnet20", {}, 272_474, 40_960_640),
    ],
)
def test_cifar_networks_exactly(name: str, options: dict, params: int, reference_macs: int) -> None:
    model = create_model(name, **options)
    assert count_params(model) == params
    assert model.reference_macs() == reference_macs
    stem_miscounted = 32 * 32 * 9 * (64 - 3 * 16)
    assert count_macs(fold_batchnorm(model), (32, 32)) == reference_macs - stem_miscounted


@pytest.mark.parametrize(
    ("name", "params", "macs"), [("shiftnet_a", 4.19, 1424), ("shiftnet_b", 1.18, 371), ("shiftnet_c", 0.69, 97)]
)
def test_shiftnet(name: str, params: float, macs: int) -> None:
    model = create_model(name)
    assert round(count_params(model) / 1e6, 2) == params
    assert round(count_macs(model, (224, 224), norms=False) / 1e6) == macs
    info = measure(name)
    assert info.macs == info.macs_folded > macs * 1e6  # a norm after a shift stays


def test_shapes_that_shrink_and_stay() -> None:
    """One layer of each kind, by hand."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 5))
    assert count_macs(model, (8, 8), norms=False) == 16 * 8 * 27 + 128 * 5
    assert count_macs(model, (8, 8)) == 16 * 8 * 27 + 128 * 5 + 2 * 128
    assert next(model.parameters()).device == torch.device("cpu")


def test_grouped_dilated_and_shared_form_cost_the_same() -> None:
    plain = count_macs(create_model("shiftresnet20", expansion=3), (32, 32))
    for options in ({"offsets": "interleaved"}, {"dilation": 2}, {"kernel_size": 5}, {"sc2": True}):
        assert count_macs(create_model("shiftresnet20", expansion=3, **options), (32, 32)) == plain


def test_reductions_reach_the_size_asked_for() -> None:
    full = count_params(create_model("resnet20"))
    assert count_params(create_model("resnet20", reduction=2.9)) == pytest.approx(full / 2.9, rel=0.15)
    block = create_model("resnet20", reduction=3, reduction_mode="block")
    assert block.stages[2][1].conv1.conv.weight.shape[0] == 64 // 3
    assert count_params(block) < full / 2


def test_timms_models_are_counted_and_too_small_images_refused() -> None:
    assert model_info("resnet18").params == 11_689_512
    assert round(model_info("resnet18").macs_folded / 1e9, 2) == 1.82
    with pytest.raises(StarshiftError, match="too small"):
        count_macs(create_model("demonet_d6_w192"), (8, 8))


def test_published_accuracies_stand_beside_the_models() -> None:
    assert model_info("shiftresnet20").published_top1["cifar10 E=3"] == 89.56
    assert model_info("starnet_s1").published_top1 == {"imagenet-1k": 73.5}
