# SPDX-License-Identifier: Apache-2.0
"""The star layer written out, its rank, its degree and its kernel, against closed forms."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from starshift.analysis import (
    degrees,
    estimate_kernel,
    exact_degree,
    implicit_rank,
    integer_layers,
    monomial_count,
    monomial_indices,
    monomials,
    published_stacked_log10,
    stacked_count,
    star_coefficients,
    star_kernel,
)
from starshift.errors import StarshiftError
from starshift.layers import DemoBlock, StarBlock
from starshift.ops import star
from tests.tolerance import assert_close

f64 = torch.float64


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("d", [1, 2, 7, 32])
def test_the_expansion_is_the_layer(d: int, bias: bool) -> None:
    torch.manual_seed(d)
    w1, w2, b1, b2 = torch.randn(5, d, dtype=f64), torch.randn(5, d, dtype=f64), *torch.randn(2, 5, dtype=f64)
    x = torch.randn(40, d, dtype=f64)
    biases = (b1, b2) if bias else (None, None)
    alpha = star_coefficients(w1, biases[0], w2, biases[1])
    assert alpha.shape == (5, monomial_count(d, bias)) and monomials(x, bias).shape == (40, monomial_count(d, bias))
    layer = star(x @ w1.T + b1 * bias, x @ w2.T + b2 * bias, "none")
    assert_close("expansion", monomials(x, bias) @ alpha.T, layer)
    i, j = monomial_indices(d, bias)
    assert bool((i <= j).all()) and int(j.max()) == d - 1 + bias


def test_the_expansion_is_what_a_block_multiplies() -> None:
    block = StarBlock(6, act="none").double()
    x = torch.randn(2, 6, 5, 4, dtype=f64)
    weights = [t for f in (block.f1, block.f2) for t in (f.conv.weight.flatten(1), f.conv.bias)]
    product = monomials(x.permute(0, 2, 3, 1).reshape(-1, 6)) @ star_coefficients(*weights).T
    assert_close("block", product.reshape(2, 5, 4, 24).permute(0, 3, 1, 2), block.f1(x) * block.f2(x))


def test_what_does_not_fit_is_refused() -> None:
    w, b = torch.ones(2, 3), torch.ones(2)
    with pytest.raises(StarshiftError, match="biases both or neither"):
        star_coefficients(w, b, w, None)
    with pytest.raises(StarshiftError, match="case='square'"):
        implicit_rank(3, "square", act="relu")
    with pytest.raises(StarshiftError, match="choose from"):
        implicit_rank(3, "squares")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("d", [1, 2, 5, 12])
@pytest.mark.parametrize("case", ["star", "branch", "branch_channel", "square"])
def test_rank_is_the_count(case: str, d: int, bias: bool) -> None:
    wide = d + bias
    counts = {
        "star": wide * (wide + 1) // 2,
        "branch": d * (d + 1) // 2 + d * bias,
        "branch_channel": wide,
        "square": d,
    }
    found = implicit_rank(d, case, bias=bias)
    assert found.rank == found.expected == counts[case]
    assert found.next < found.threshold < 1e-6 * found.smallest  # no value near the threshold
    assert abs(found.quadratic_share - 1) < 1e-12


def test_an_activation_lifts_the_bound_but_not_where_it_is_linear() -> None:
    count = monomial_count(4)
    smooth = implicit_rank(4, act="gelu", channels=100)
    assert smooth.rank == 100 > count
    assert 0.9 < smooth.quadratic_share < 1
    relu = implicit_rank(4, act="relu", channels=100)
    assert count < relu.rank <= 100
    assert implicit_rank(4, act="relu", channels=400, radius=1e-4).rank == count


@pytest.mark.parametrize(("d", "layers"), [(1, 2), (2, 2), (3, 2), (4, 2), (2, 3)])
def test_rank_of_stacked_layers_is_that_of_all_polynomials(d: int, layers: int) -> None:
    found = implicit_rank(d, layers=layers)
    assert found.rank == found.expected == stacked_count(d, layers)


def test_the_published_estimate_counts_monomials_more_than_once() -> None:
    assert 1023 < published_stacked_log10(128, 10) / 1.9566 < 1025  # "about 90^1024"; log10(90.5) = 1.9566
    assert len(str(stacked_count(128, 10))) < 200 < published_stacked_log10(128, 10)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_stacked_stars_have_degree_two_to_the_depth(depth: int) -> None:
    layers = integer_layers(3, 3, depth, seed=1)
    found = exact_degree(layers, (1, -2, 1), (2, 1, 3))
    assert max(found) == 2**depth and all(k <= 2**depth for k in found)
    assert max(exact_degree(layers, (1, -2, 1), (2, 1, 3), mode="sum")) == 1


def test_degree_of_a_real_block_s_weights() -> None:
    torch.manual_seed(0)
    blocks = [DemoBlock(2, act="none", kernel_size=0) for _ in range(2)]
    layers = [
        tuple(t for w, b in zip(m.f.weight.chunk(2), m.f.bias.chunk(2), strict=True) for t in (w, b)) for m in blocks
    ]
    first, second = layers
    narrowed = tuple(t[:2] for t in first)  # as many channels as the next layer takes
    assert exact_degree([narrowed, second], (0.5, 0.25), (1.0, -0.75)) == [4] * 6


def test_degrees_tells_what_is_no_polynomial_of_the_degree() -> None:
    assert degrees(lambda t: [Fraction(t**3 - t), Fraction(7), Fraction(0)], most=4) == [3, 0, -1]
    with pytest.raises(StarshiftError, match="no polynomial of degree 2"):
        degrees(lambda t: [Fraction(t**3)], most=2)


@pytest.mark.parametrize("mode", ["star", "sum"])
def test_random_features_are_the_polynomial_kernel(mode: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 3), torch.randn(5, 3)
    found = estimate_kernel(x, y, 200_000, weight_std=0.8, bias_std=0.6, mode=mode)
    assert found.deviation.abs().max() < 4
    assert (found.standard_error < 0.02 * found.closed_form.abs().max()).all()
    from sklearn.metrics.pairwise import polynomial_kernel

    if mode == "star":
        theirs = torch.from_numpy(polynomial_kernel(x.double(), y.double(), 2, 0.8**2, 0.6**2))
        assert_close("sklearn", star_kernel(x.double(), y.double(), 0.8, 0.6), theirs)
    other = star_kernel(x.double(), y.double(), 0.9, 0.6, mode)
    assert ((found.estimate - other) / found.standard_error).abs().max() > 10  # the test can tell


def test_the_stack_s_kernel_is_the_wide_limit() -> None:
    torch.manual_seed(0)
    x = 0.5 * torch.randn(3, 2, dtype=f64)
    limit, errors = star_kernel(x, x, layers=2), []
    for wide in (100, 1_000_000):
        first, second = (
            x @ torch.randn(2, wide, dtype=f64) + torch.randn(wide, dtype=f64) for _ in range(2)
        )  # hidden weights of variance 1, the next layer's of 1 / wide
        hidden = first * second
        errors.append((star_kernel(hidden, hidden, wide**-0.5) / limit - 1).abs().max())
    assert errors[1] < 0.02 < errors[0]
