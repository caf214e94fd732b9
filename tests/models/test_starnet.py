# SPDX-License-Identifier: Apache-2.0
"""StarNet is timm's network to the last bit of rounding, and its options are the paper's ablations."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from starshift.models import create_model
from tests.models.helpers import STARNETS, randomise, small, smallest_image
from tests.tolerance import assert_close


@pytest.fixture(scope="module", params=STARNETS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """Ours and timm's with one state dict and statistics of batch norm unlike the initial ones."""
    torch.manual_seed(1)
    theirs = randomise(timm.create_model(request.param, num_classes=10, drop_path_rate=0.2))
    ours = create_model(request.param, num_classes=10, drop_path_rate=0.2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    return ours, theirs


def _images(side: int = 64, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_logits_in_eval_mode(pair: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = (model.eval() for model in pair)
    with torch.no_grad():
        for side in (64, 75):
            logits = theirs(_images(side))
            assert (ours(_images(side)) - logits).abs().max() <= 1e-5 * logits.abs().max()


def test_logits_and_statistics_in_train_mode(pair: tuple[nn.Module, nn.Module]) -> None:
    """Against timm's in float64: batch norms over few values magnify every rounding, timm's as ours."""
    results = []
    for model, dtype in zip((*pair, pair[1]), (torch.float32, torch.float32, torch.float64), strict=True):
        copied = copy.deepcopy(model).to(dtype).train()
        torch.manual_seed(3)  # drop path draws the same
        with torch.no_grad():
            results.append((copied(_images().to(dtype)), copied.state_dict()["stages.3.0.bn.running_var"]))
    (logits, variance), (theirs, _), (expected, expected_variance) = results
    error, their_error = ((x - expected).norm() / expected.norm() for x in (logits, theirs))
    assert error <= 3 * their_error
    assert_close("running variance", variance, expected_variance)


def test_gradients(pair: tuple[nn.Module, nn.Module]) -> None:
    grads = []
    for model in pair:
        model.eval().zero_grad()
        F.cross_entropy(model(_images(32)), torch.tensor([1, 2, 3])).backward()
        grads.append(dict(model.named_parameters()))
    for key in ("stem.0.conv.weight", "stages.2.1.f1.conv.weight", "stages.3.1.dwconv2.conv.bias"):
        assert_close(key, grads[0][key].grad, grads[1][key].grad, torch.bfloat16)


def test_features_and_intermediates_agree_with_timm(pair: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = (model.eval() for model in pair)
    with torch.no_grad():
        for kwargs in ({}, {"indices": [1, 3], "norm": True}, {"indices": 2}):
            final, maps = ours.forward_intermediates(_images(), **kwargs)
            their_final, their_maps = theirs.forward_intermediates(_images(), **kwargs)
            assert_close("final", final, their_final)
            for a, b in zip(maps, their_maps, strict=True):
                assert_close("map", a, b)
    assert [{**i} for i in ours.feature_info] == [{k: i[k] for k in ours.feature_info[0]} for i in theirs.feature_info]


def test_channels_last_gives_the_same() -> None:
    model = randomise(small("starnet_s050"))
    x = smallest_image(model)
    with torch.no_grad():
        expected = model(x)
        got = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert_close("channels last", got, expected)


def _spread(model: nn.Module, key: str) -> float:
    return model.state_dict()[key].std().item()


@pytest.mark.parametrize("name", ["starnet_s050", "starshift_s"])
def test_initialisations_differ_in_the_convolutions(name: str) -> None:
    key = "stages.3.1.f1.conv.weight"  # 128 inputs: PyTorch's default is uniform within 1 / sqrt(128)
    timms, official = small(name, init="timm"), small(name, init="official")
    assert _spread(timms, key) == pytest.approx(0.02, rel=0.05)
    assert _spread(official, key) == pytest.approx((1 / 128) ** 0.5 / 3**0.5, rel=0.05)
    for model in (timms, official):
        assert _spread(model, "head.weight") == pytest.approx(0.02, rel=0.1)
        assert model.head.bias.abs().sum() == 0


def test_32px_form_keeps_weights_and_looks_at_larger_maps() -> None:
    plain, fine = small("starnet_s050").eval(), small("starnet_s050_32px").eval()
    fine.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(1, 3, 32, 32)
    assert [m.shape[-1] for m in plain.forward_intermediates(x, intermediates_only=True)] == [8, 4, 2, 1]
    assert [m.shape[-1] for m in fine.forward_intermediates(x, intermediates_only=True)] == [32, 16, 8, 4]


@pytest.mark.parametrize(
    "options",
    [
        {"act": "none"},
        {"act": "hardswish"},
        {"placement": "both"},
        {"placement": "product"},
        {"mode": "sum"},
        {"mode": ("sum", "star", "sum", "star")},
        {"kernel_size": 3},
        {"layout": "before"},
        {"layout": "after"},
        {"layout": "none"},
        {"mlp_ratio": 2},
        {"stem_stride": 1},
    ],
    ids=str,
)
def test_options_change_the_network(options: dict) -> None:
    plain, other = randomise(small("starnet_s050")), randomise(small("starnet_s050", **options))
    shared = {k: v for k, v in plain.state_dict().items() if k in other.state_dict()}
    other.load_state_dict({k: v for k, v in shared.items() if v.shape == other.state_dict()[k].shape}, strict=False)
    x = smallest_image(plain)
    with torch.no_grad():
        assert not torch.allclose(plain(x), other(x))
