# SPDX-License-Identifier: Apache-2.0
"""Statistics of coefficients from closed forms against the explicit expansion; the penalties' gradients."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from scipy.stats import kurtosis

from starshift.analysis import (
    block_coefficients,
    coefficient_penalty,
    coefficient_stats,
    find_branches,
    form_eigenvalues,
    star_coefficients,
)
from starshift.errors import StarshiftError
from starshift.layers import PENALTIES
from starshift.layers.coefficients import coefficient_gram, power_sums
from starshift.models import create_model
from tests.models.helpers import randomise
from tests.tolerance import assert_close

f64 = torch.float64


def _pair(d: int = 6, channels: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(d)
    return torch.randn(channels, d, dtype=f64) + 0.3, torch.randn(channels, d, dtype=f64) - 0.2


@pytest.mark.parametrize("d", [1, 2, 6])
def test_power_sums_and_gram_are_those_of_the_expansion(d: int) -> None:
    a, b = _pair(d)
    alpha = star_coefficients(a, None, b, None)
    for power, closed in enumerate(power_sums(a, b), 1):
        assert_close(f"power {power}", closed, (alpha**power).sum(1))
    assert_close("gram", coefficient_gram(a, b), alpha @ alpha.T)


def test_eigenvalues_of_the_form() -> None:
    a, b = _pair()
    matrices = a[:, :, None] * b[:, None] + b[:, :, None] * a[:, None]
    values = torch.linalg.eigvalsh(matrices)
    positive, negative = form_eigenvalues(a, b)
    assert_close("positive", positive, values[:, -1])
    assert_close("negative", negative, values[:, 0])
    assert values[:, 1:-1].abs().max() < 1e-12


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", ["star", "sum"])
@torch.no_grad()
def test_stats_are_those_of_the_coefficients(mode: str, bias: bool) -> None:
    torch.manual_seed(0)
    model = create_model("demonet_2d", mode=mode, width=10).double()
    for block in model.blocks:
        torch.nn.init.normal_(block.f.bias)
    for found, branches in zip(coefficient_stats(model, bias), find_branches(model), strict=True):
        alpha = block_coefficients(branches, bias)
        assert (found.block, found.mode, found.channels, found.terms) == (branches.name, mode, *alpha.shape)
        share = alpha.square() / alpha.square().sum(1, keepdim=True)
        values = torch.linalg.eigvalsh(alpha @ alpha.T)
        expected = {
            "mean": alpha.mean(),
            "std": alpha.std(correction=0),
            "kurtosis": torch.tensor(kurtosis(alpha.flatten(), fisher=False)),
            "effective_terms": (1 / share.square().sum(1)).mean(),
            "effective_share": (1 / share.square().sum(1)).mean() / alpha.shape[1],
            "effective_features": values.sum() ** 2 / values.square().sum(),
        }
        if mode == "star":
            i, j = torch.triu_indices(10 + bias, 10 + bias)
            expected["square_share"] = share[:, i == j].sum(1).mean()
            expected["positive"] = form_eigenvalues(branches.first[:, : 10 + bias], branches.second[:, : 10 + bias])[
                0
            ].mean()
        for name, value in expected.items():
            assert_close(name, torch.tensor(getattr(found, name), dtype=f64), value)
        assert math.isnan(found.cosine) == (mode == "sum")


def test_extreme_forms() -> None:
    model = create_model("demonet_2d", width=8, depth=1)
    block = model.blocks[0]
    with torch.no_grad():
        block.f.weight[24:] = block.f.weight[:24]
    (square,) = coefficient_stats(model)
    assert_close("square", torch.tensor([square.cosine, square.form_rank]), torch.ones(2))
    assert abs(square.negative) < 1e-6 * square.positive
    with torch.no_grad():
        block.f.weight.zero_()
        block.f.weight[:24, 0] = block.f.weight[24:, 1] = 1
    (crossed,) = coefficient_stats(model)  # every channel is x_0 x_1
    assert crossed.cosine == 0 and crossed.form_rank == 2 and crossed.square_share == 0
    assert_close("crossed", torch.tensor([crossed.effective_terms, crossed.effective_features]), torch.ones(2))


def test_our_starnet_and_timms_give_the_same() -> None:
    ours = create_model("starnet_s050", num_classes=5)
    theirs = timm.create_model("starnet_s050", num_classes=5)
    theirs.load_state_dict(ours.state_dict())
    assert coefficient_stats(ours) == coefficient_stats(theirs) and len(coefficient_stats(ours)) == 6
    mixed = create_model("starnet_s050_32px", mode=["star", "sum", "star", "sum"])
    assert [s.mode for s in coefficient_stats(mixed)] == ["star", "sum", "star", "star", "star", "sum"]
    with pytest.raises(StarshiftError, match="DemoNet or a StarNet"):
        coefficient_stats(create_model("shiftresnet20"))


@pytest.mark.parametrize("name", ["starnet_s050_32px", "starshift_s_32px"])
def test_standardised_coefficients_are_those_before_the_norm(name: str) -> None:
    model = randomise(create_model(name)).double()
    block = model.stages[0][1]
    found, *_ = find_branches(model, standardised=True)
    norm = block.norm if name == "starshift_s_32px" else block.dwconv.bn
    z = torch.randn(2, norm.num_features, 3, 3, dtype=f64)  # what the norm scales and shifts
    y = block.f2(z * norm.weight[:, None, None] + norm.bias[:, None, None])
    constant = torch.cat((z, torch.ones_like(z[:, :1])), 1)
    assert_close("second branch", torch.einsum("kc,nchw->nkhw", found.second, constant), y)
    plain, other = coefficient_stats(model), coefficient_stats(model, standardised=True)
    assert plain[0].effective_terms != other[0].effective_terms
    untrained = create_model(name)
    assert coefficient_stats(untrained) == coefficient_stats(untrained, standardised=True)


@pytest.mark.parametrize("kind", PENALTIES)
def test_penalty_is_what_it_says_and_has_its_gradient(kind: str) -> None:
    a, b = (w.requires_grad_() for w in _pair())
    alpha = star_coefficients(a, None, b, None)
    share = alpha.square() / alpha.square().sum(1, keepdim=True)
    i, j = torch.triu_indices(6, 6)
    directions = alpha / alpha.norm(dim=1, keepdim=True)
    expected = {
        "participation": (math.log(21) + share.square().sum(1).log()).mean(),
        "cosine": torch.cosine_similarity(a, b, dim=1).square().mean(),
        "diagonal": share[:, i == j].sum(1).mean(),
        "redundancy": ((directions @ directions.T) ** 2).fill_diagonal_(0).sum() / 12,
    }[kind]
    penalty = PENALTIES[kind]
    assert_close(kind, penalty(a, b), expected)
    assert_close("scale", penalty(3 * a, 0.1 * b), expected)
    assert torch.autograd.gradcheck(penalty, (a, b))


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("name", ["starnet_s050_32px", "demonet_2d"])
def test_penalty_falls_when_followed(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model = create_model(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    values = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = coefficient_penalty(model, kind)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert all(math.isfinite(v) and v >= 0 for v in values) and values[-1] < values[0]


def test_penalty_needs_stars() -> None:
    with pytest.raises(StarshiftError, match="no star blocks"):
        coefficient_penalty(create_model("demonet_2d", mode="sum"))
    with pytest.raises(StarshiftError, match="Did you mean 'cosine'"):
        coefficient_penalty(create_model("demonet_2d"), "cosin")
