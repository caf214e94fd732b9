# SPDX-License-Identifier: Apache-2.0
"""What every model of the registry honours: timm's surface, gradients, options, folding."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from starshift.errors import StarshiftError
from starshift.layers import fold_batchnorm
from starshift.models import OptionError, create_model, list_models
from starshift.models._registry import variants
from tests.models.helpers import randomise, small, smallest_image
from tests.tolerance import assert_close


@pytest.fixture(scope="module", params=list_models())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> nn.Module:
    return randomise(small(name))


def test_surface(model: nn.Module) -> None:
    x = smallest_image(model)
    with torch.no_grad():
        logits, features = model(x), model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert_close("head of features", model.forward_head(features), logits)
        assert_close("classifier of pooled", model.get_classifier()(pooled), logits)
    assert logits.shape == (2, 5) and logits.isfinite().all()
    assert features.shape[:2] == (2, model.num_features) and features.dim() == 4
    assert pooled.shape == (2, model.head_hidden_size)
    assert model.num_classes == 5


def test_intermediates_are_what_feature_info_says(model: nn.Module) -> None:
    side = 2 * model.min_size if model.min_size > 1 else 1
    x = torch.randn(1, model.in_chans, side, side)
    with torch.no_grad():
        final, all_of_them = model.forward_intermediates(x)
        (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
        first = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
        (normed,) = model.forward_intermediates(x, indices=[-1], norm=True, intermediates_only=True)
        assert_close("final", final, model.forward_features(x))
    assert len(all_of_them) == len(model.feature_info)
    for feature, info in zip(all_of_them, model.feature_info, strict=True):
        assert feature.shape == (1, info["num_chs"], side // info["reduction"], side // info["reduction"])
        model.get_submodule(info["module"])
    assert torch.equal(last, all_of_them[-1]) and torch.equal(first[0], all_of_them[0])
    assert normed.shape == last.shape
    with pytest.raises(StarshiftError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_gradients_reach_every_parameter(model: nn.Module) -> None:
    model.zero_grad()
    model(smallest_image(model, batch=4)).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
    model.zero_grad()


def test_folding_keeps_the_logits_and_the_original(model: nn.Module) -> None:
    x = smallest_image(model)
    with torch.no_grad():
        before = model(x)
        folded = fold_batchnorm(model)
        assert_close("folded", folded(x), before)
        assert torch.equal(model(x), before)
    left = {type(m) for m in folded.modules() if isinstance(m, nn.BatchNorm2d)}
    assert not left or type(model).__name__ == "ShiftNet"


def test_classifier_can_be_replaced_and_taken_off(model: nn.Module) -> None:
    model = deepcopy(model)
    x = smallest_image(model)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and not any(m.training for m in model.modules())
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    if "catavgmax" in model.pools:
        model.reset_classifier(4, "catavgmax")
        assert model(x).shape == (2, 4) and model.head_hidden_size == 2 * model.num_features
    with pytest.raises(StarshiftError, match="global_pool"):
        model.reset_classifier(4, "median")
    model.reset_classifier(0, "")
    assert model(x).dim() == 4


def test_trains_with_drop_path_and_checkpointing(name: str) -> None:
    model = small(name, drop_path_rate=0.3, drop_rate=0.1).train()
    model.set_grad_checkpointing()
    side = 2 * model.min_size if model.min_size > 1 else 1
    x = torch.randn(3, model.in_chans, side, side)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_wrong_options_and_inputs_are_refused_by_name(name: str, model: nn.Module) -> None:
    with pytest.raises(OptionError, match=r"no option 'num_clases'. Did you mean 'num_classes'"):
        create_model(name, num_clases=3)
    with pytest.raises(StarshiftError, match=rf"\(N, {model.in_chans}, H, W\)"):
        model(torch.zeros(1, model.in_chans + 1, 64, 64))
    if model.min_size > 1:
        with pytest.raises(StarshiftError, match="too small"):
            model(torch.zeros(1, model.in_chans, model.min_size - 1, 64))


def test_default_configuration_has_timms_keys(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, in_chans=1)
    config = model.default_cfg
    assert config is model.pretrained_cfg
    assert config["num_classes"] == model.num_classes == variants()[name].num_classes
    assert model.in_chans == 1
    assert {"input_size", "mean", "std", "interpolation", "crop_pct"} <= set(config)
    assert isinstance(model.get_submodule(config["classifier"]), nn.Linear)
    assert isinstance(model.get_submodule(config["first_conv"]), nn.Conv2d)


def test_timm_makes_it_too(name: str) -> None:
    variant = variants()[name]
    with torch.device("meta"):
        model = timm.create_model(variant.timm_name, num_classes=7)
    assert type(model) is variant.cls and model.num_classes == 7
    with pytest.raises(OptionError):
        timm.create_model(variant.timm_name, nonsense=1)


def test_features_only_through_timm(name: str, model: nn.Module) -> None:
    side = 2 * model.min_size if model.min_size > 1 else 1
    with torch.device("meta"):
        features = timm.create_model(variants()[name].timm_name, features_only=True).eval()
        maps = features(torch.empty(1, model.in_chans, side, side))
    assert len(maps) == variants()[name].cls.feature_levels
    assert [m.shape[1] for m in maps] == features.feature_info.channels()


def test_layerwise_learning_rates_reach_every_depth(model: nn.Module) -> None:
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
    scales = {group["lr_scale"] for group in groups}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert len(scales) > len(model.levels)
