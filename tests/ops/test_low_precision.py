# SPDX-License-Identifier: Apache-2.0
"""Star operators under autocast: large branches overflow float16 in the plain form and not in ours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from starshift.ops import depthwise_conv2d, grouped_offsets, shift_conv2d, star, star_mlp
from tests.tolerance import assert_close


def branches_of(value: float, c: int = 4, k: int = 8) -> list[torch.Tensor]:
    """x (2, C, 3, 3) of ones and 1x1 weights for which every branch equals ``value``."""
    x = torch.ones(2, c, 3, 3, requires_grad=True)
    w = torch.full((k, c, 1, 1), value / c, requires_grad=True)
    wg = torch.full((c, k, 1, 1), 1 / k, requires_grad=True)
    return [x, w, wg]


@pytest.mark.parametrize("placement", ["first", "product"])
def test_float16_autocast_does_not_overflow_at_300(placement) -> None:
    x, w, wg = branches_of(300.0)
    with torch.autocast("cpu", torch.float16):
        plain = F.conv2d(F.conv2d(x, w) * F.conv2d(x, w), wg)
        ours = star_mlp(x, w, None, w, None, wg, None, act="none", placement=placement)
    assert not plain.isfinite().any()  # 300 * 300 is above 65504
    assert ours.dtype == torch.float32
    assert_close("product", ours, torch.full_like(ours, 90000.0), torch.float16)
    ours.mean().backward()
    assert all(t.grad.isfinite().all() and t.grad.abs().sum() > 0 for t in (x, w, wg))


def test_star_alone_leaves_float16_under_autocast() -> None:
    a = torch.full((4,), 300.0)
    with torch.autocast("cpu", torch.float16):
        assert star(a.half(), a.half(), act="none").tolist() == [90000.0] * 4


def test_half_tensors_sum_the_product_in_float32() -> None:
    """Without autocast the result is float16 as asked, but the intermediate product does not overflow."""
    x, w, wg = (t.detach().half() for t in branches_of(300.0))
    out = star_mlp(x, w, None, w, None, wg / 64, None, act="none")
    assert out.dtype == torch.float16
    assert_close("half", out, torch.full_like(out, 90000 / 64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_parameters_and_returns_their_gradients_in_float32(dtype) -> None:
    x = torch.randn(2, 9, 5, 5, requires_grad=True)
    weight, filters = torch.randn(4, 9, 1, 1, requires_grad=True), torch.randn(9, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype):
        shifted = shift_conv2d(x, weight, None, grouped_offsets(9))
        filtered = depthwise_conv2d(x, filters, padding=1)
    assert shifted.dtype == filtered.dtype == dtype
    (shifted.sum() + filtered.sum()).backward()
    assert x.grad.dtype == weight.grad.dtype == filters.grad.dtype == torch.float32


def test_inside_an_operator_autocast_is_off() -> None:
    """Under float16 autocast the projection runs in float32: 1 + 2**-12 survives, which float16 would round away."""
    x, one = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    with torch.autocast("cpu", torch.float16):
        out = star_mlp(x, one, None, one, None, one * (1 + 2**-12), None, act="none")
    assert out.item() == 1 + 2**-12
