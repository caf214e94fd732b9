# SPDX-License-Identifier: Apache-2.0
"""Operators among PyTorch's other ways: changes in place, default dtypes, second derivatives, function transforms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from starshift.errors import StarshiftError
from starshift.ops import csc, depthwise_conv2d, pointwise_conv2d, pointwise_mlp, shift2d, shift_conv2d, star_mlp
from tests.ops.test_every_operator import ALL, call, gradients, make
from tests.tolerance import assert_close

FIRST = {name: case for name, case in reversed(ALL) if "empty" not in case.name}
every_operator = pytest.mark.parametrize("name", FIRST)
LAST = torch.channels_last


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_operator
def test_a_result_may_be_changed_in_place(name: str, dtype: torch.dtype) -> None:
    tensors = make(FIRST[name], dtype, LAST)
    expected = gradients(torch.relu(call(name, tensors, FIRST[name]) + 1), tensors)
    changed = call(name, tensors, FIRST[name])
    changed += 1
    for key, grad in gradients(changed.relu_(), tensors).items():
        assert_close(key, grad, expected[key], dtype)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
@every_operator
def test_the_default_dtype_changes_nothing(name: str, default: torch.dtype) -> None:
    tensors = make(FIRST[name], torch.float32, LAST)
    expected = call(name, tensors, FIRST[name])
    grads = gradients(expected, tensors)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        actual = call(name, tensors, FIRST[name])
        found = gradients(actual, tensors)
    finally:
        torch.set_default_dtype(before)
    assert actual.dtype == torch.float32
    assert_close("output", actual, expected)
    for key, grad in found.items():
        assert_close(key, grad, grads[key])


@every_operator
def test_second_derivatives_are_right_or_refused(name: str) -> None:
    tensors = make(FIRST[name], torch.float32, LAST)
    present = [t for t in tensors.values() if t is not None]
    grads = torch.autograd.grad(call(name, tensors, FIRST[name]).square().sum(), present, create_graph=True)
    penalty = sum(grad.square().sum() for grad in grads)
    assert isinstance(penalty, Tensor)
    if name == "shift2d":  # y = S x and the gradient 2 S'S x: of its square 8 (S'S)² x, where S'S is 0 or 1
        assert_close("gradient", torch.autograd.grad(penalty, present)[0], 4 * grads[0].detach())
    else:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            penalty.backward()


@pytest.mark.parametrize("name", ["depthwise_conv2d", "shift2d", "shift_conv2d", "pointwise_conv2d", "star_mlp"])
def test_function_transforms(name: str) -> None:
    case = FIRST[name]
    tensors = {key: None if t is None else t.detach() for key, t in make(case, torch.float32).items()}
    x = next(iter(tensors))
    image = tensors[x]
    assert image is not None

    def f(image: Tensor) -> Tensor:
        return call(name, {**tensors, x: image}, case)

    each = torch.vmap(lambda one: f(one[None])[0])(image)
    assert_close("vmap", each, f(image))
    slope = torch.func.grad(lambda image: f(image).square().sum())(image)
    image.requires_grad_()
    (expected,) = torch.autograd.grad(f(image).square().sum(), image)
    assert_close("grad", slope, expected)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(image.detach(), torch.ones_like(image)))).tangent
    assert tangent is not None
    assert_close("jvp", (tangent * 2 * f(image)).sum()[None], expected.sum()[None])


def test_a_bias_of_another_length_is_refused() -> None:
    x, w, wide, bad = torch.ones(1, 8, 5, 5), torch.ones(8, 1, 3, 3), torch.ones(6, 8, 1, 1), torch.ones(4)
    narrow = torch.ones(8, 6, 1, 1)
    for attempt in (
        lambda: depthwise_conv2d(x, w, bad),
        lambda: pointwise_conv2d(x, wide, bad),
        lambda: pointwise_mlp(x, wide, None, narrow, bad),
        lambda: shift_conv2d(x, wide, bad, ((8, 0, 1),)),
        lambda: star_mlp(x, wide, None, wide, bad, narrow, None),
    ):
        with pytest.raises(StarshiftError, match="a bias must be"):
            attempt()


def test_a_negative_number_of_channels_is_refused() -> None:
    """Also where the sum is that of the input: a kernel would write past its output."""
    x, runs = torch.ones(1, 4, 3, 3), ((5, 0, 0), (-1, 0, 0))
    weight, ones = torch.ones(4, 4, 1, 1), torch.ones(4)
    for run in (
        lambda: shift2d(x, runs),
        lambda: shift_conv2d(x, weight, None, runs),
        lambda: csc(x, weight, ones, ones, weight, runs),
    ):
        with pytest.raises(StarshiftError, match="none can be negative"):
            run()
