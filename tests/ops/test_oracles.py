# SPDX-License-Identifier: Apache-2.0
"""The references against definitions that share no code with them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from starshift.errors import StarshiftError
from starshift.ops import (
    depthwise_conv2d,
    grouped_offsets,
    interleaved_offsets,
    offsets_permutation,
    pointwise_norm_act,
    shift2d,
    shift_conv2d,
    star,
    star_mlp,
)
from starshift.ops.shift.offsets import per_channel
from tests.tolerance import assert_close


def one_hot_filters(offsets, reach: int) -> torch.Tensor:
    """(C, 1, k, k): a single one where the channel reads."""
    filters = torch.zeros(sum(n for n, _, _ in offsets), 1, 2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    for channel, (dy, dx) in enumerate(per_channel(offsets)):
        filters[channel, 0, reach + dy, reach + dx] = 1
    return filters


ASSIGNMENTS = {"grouped": grouped_offsets, "interleaved": interleaved_offsets}


@pytest.mark.parametrize("assign", ASSIGNMENTS.values(), ids=ASSIGNMENTS)
@given(
    channels=st.integers(1, 60),
    kernel=st.sampled_from([1, 3, 5]),
    dilation=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
)
@settings(max_examples=40, deadline=None)
def test_shift_is_a_one_hot_depthwise_convolution(assign, channels, kernel, dilation, height, width) -> None:
    offsets = assign(channels, kernel, dilation)
    reach = dilation * (kernel // 2)
    x = torch.randn(2, channels, height, width, dtype=torch.float64)
    expected = F.conv2d(x, one_hot_filters(offsets, reach), padding=reach, groups=channels)
    assert torch.equal(shift2d(x, offsets), expected)


@pytest.mark.parametrize(("channels", "kernel", "dilation"), [(20, 3, 1), (9, 3, 2), (53, 5, 1), (5, 3, 1)])
def test_interleaved_follows_the_formula_of_the_reference_code(channels, kernel, dilation) -> None:
    x = torch.randn(1, channels, 8, 9)
    shifted = shift2d(x, interleaved_offsets(channels, kernel, dilation))
    moving = channels // kernel**2 * kernel**2
    for c, row, column in itertools.product(range(channels), range(8), range(9)):
        dx = dilation * (c % kernel - kernel // 2) if c < moving else 0
        dy = dilation * ((c // kernel) % kernel - kernel // 2) if c < moving else 0
        inside = 0 <= row + dy < 8 and 0 <= column + dx < 9
        assert shifted[0, c, row, column] == (x[0, c, row + dy, column + dx] if inside else 0)


@pytest.mark.parametrize(("channels", "kernel"), [(27, 3), (20, 3), (53, 5), (4, 3)])
def test_permutation_converts_weights_exactly_between_assignments(channels, kernel) -> None:
    grouped, interleaved = grouped_offsets(channels, kernel), interleaved_offsets(channels, kernel)
    first, second = torch.randn(channels, 6, 1, 1), torch.randn(5, channels, 1, 1)
    x = torch.randn(2, 6, 7, 7)
    expected = F.conv2d(shift2d(F.conv2d(x, first), interleaved), second)
    order = offsets_permutation(interleaved, grouped)
    assert sorted(order) == list(range(channels))
    assert_close("converted", shift_conv2d(F.conv2d(x, first[order]), second[:, order], None, grouped), expected)


def test_permutation_refuses_other_counts() -> None:
    with pytest.raises(StarshiftError, match="different numbers"):
        offsets_permutation(grouped_offsets(18), grouped_offsets(27))
    with pytest.raises(StarshiftError, match="different numbers"):
        offsets_permutation(grouped_offsets(18, 3, 1), grouped_offsets(18, 3, 2))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
def test_shift_conv_is_a_spatial_convolution_with_one_tap_a_channel(stride, size) -> None:
    offsets = grouped_offsets(20)
    x = torch.randn(2, 20, *size, dtype=torch.float64)
    weight, bias = torch.randn(8, 20, 1, 1, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    dense = weight * one_hot_filters(offsets, 1)[:, 0]
    assert_close("conv", shift_conv2d(x, weight, bias, offsets, stride), F.conv2d(x, dense, bias, stride, padding=1))


def test_star_is_its_polynomial_expansion() -> None:
    """One output has (d+1)(d+2)/2 terms alpha(i, j) x_i x_j, the bias folded in as a constant input (paper, eq. 3)."""
    d = 5
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, d, generator=generator, dtype=torch.float64)
    w1, w2 = (torch.randn(3, d + 1, generator=generator, dtype=torch.float64) for _ in range(2))
    extended = torch.cat([x, torch.ones(7, 1, dtype=torch.float64)], 1)
    pairs = list(itertools.combinations_with_replacement(range(d + 1), 2))
    assert len(pairs) == (d + 1) * (d + 2) // 2
    monomials = torch.stack([extended[:, i] * extended[:, j] for i, j in pairs], 1)
    alpha = torch.stack([w1[:, i] * w2[:, j] + (w1[:, j] * w2[:, i] if i != j else 0) for i, j in pairs], 1)
    branches = F.linear(x, w1[:, :d], w1[:, d]), F.linear(x, w2[:, :d], w2[:, d])
    assert_close("star", star(*branches, act="none"), monomials @ alpha.T)
    identity = torch.eye(3, dtype=torch.float64)
    fused = star_mlp(x, w1[:, :d], w1[:, d], w2[:, :d], w2[:, d], identity, None, act="none")
    assert_close("star_mlp", fused, monomials @ alpha.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_shift_too_large_for_caches_is_the_same_copy(dtype: torch.dtype) -> None:
    x, offsets = torch.randn(4, 96, 160, 150).to(dtype), grouped_offsets(96)
    assert x.numel() * x.element_size() > 16 << 20
    y = shift2d(x.contiguous(memory_format=torch.channels_last), offsets)
    assert torch.equal(y, shift2d(x, offsets))
    assert torch.equal(y[1, :, 7:9], shift2d(x[1:2, :, 6:10], offsets)[0, :, 1:3])


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2), (7, 1)])
def test_a_depthwise_result_too_large_for_caches(kernel: int, stride: int) -> None:
    side = 133 * stride
    x = torch.randn(4, 64, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(64, 1, kernel, kernel, requires_grad=True), torch.randn(64, requires_grad=True)
    y = depthwise_conv2d(x, weight, bias, stride, kernel // 2)
    assert y.numel() * y.element_size() > 16 << 20
    grad = torch.randn_like(y)
    grads = torch.autograd.grad(y, (x, weight, bias), grad)
    expected = F.conv2d(x, weight, bias, stride, kernel // 2, groups=64)
    expected_grads = torch.autograd.grad(expected, (x, weight, bias), grad)
    assert_close("output", y, expected)
    for name, a, e in zip(("x", "weight", "bias"), grads, expected_grads, strict=True):
        assert_close(f"gradient of {name}", a, e)


def test_a_widened_result_too_large_for_caches() -> None:
    x = torch.randn(2, 16, 191, 193).contiguous(memory_format=torch.channels_last)
    w, scale, shift = torch.randn(64, 16, 1, 1), torch.randn(64), torch.randn(64)
    y = pointwise_norm_act(x, w, scale, shift, act="relu6")
    assert y.numel() * y.element_size() > 16 << 20
    expected = F.relu6(F.batch_norm(F.conv2d(x, w), None, None, scale, shift, training=True))
    assert_close("output", y, expected)


def test_depthwise_is_a_sum_over_taps() -> None:
    x, weight = torch.randn(2, 6, 9, 8, dtype=torch.float64), torch.randn(6, 1, 3, 5, dtype=torch.float64)
    padded = F.pad(x, (2, 2, 1, 1))
    taps = (weight[:, 0, i, j].view(-1, 1, 1) * padded[..., i : i + 9, j : j + 8] for i in range(3) for j in range(5))
    assert_close("depthwise", depthwise_conv2d(x, weight, padding=(1, 2)), sum(taps))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: shift2d(torch.zeros(1, 4, 3, 3), grouped_offsets(5)),
        lambda: shift2d(torch.zeros(4, 3, 3), grouped_offsets(4)),
        lambda: grouped_offsets(9, kernel_size=2),
        lambda: shift_conv2d(torch.zeros(1, 4, 3, 3), torch.zeros(2, 5, 1, 1), None, grouped_offsets(4)),
        lambda: star(torch.zeros(2), torch.zeros(2), act="rellu6"),
        lambda: star(torch.zeros(2), torch.zeros(3)),
        lambda: star(torch.zeros(2), torch.zeros(2), placement="last"),
        lambda: star_mlp(
            *[torch.zeros(2, 2), torch.zeros(4, 2), None, torch.zeros(4, 2), None, torch.zeros(2, 3), None]
        ),
        lambda: depthwise_conv2d(torch.zeros(1, 4, 3, 3), torch.zeros(4, 2, 3, 3)),
    ],
)
def test_wrong_arguments_say_what_is_wrong(wrong) -> None:
    with pytest.raises(StarshiftError):
        wrong()
