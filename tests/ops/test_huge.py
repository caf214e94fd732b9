# SPDX-License-Identifier: Apache-2.0
"""Tensors of more than 2**31 elements: the last image of a batch comes out as it does alone.

They take 9 GB of memory, gradients 18, and some seconds each: they run only when asked for, by ``pytest -m huge``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from starshift.ops import (
    _native,
    batch_norm_act,
    depthwise_conv2d,
    grouped_offsets,
    shift2d,
    shift_conv2d,
    star_mlp,
    use_kernel,
)
from starshift.ops._operator import NATIVE

pytestmark = [pytest.mark.huge, pytest.mark.skipif(not _native.available(), reason="no compiled kernels here")]
CHANNELS, SIDE = 64, 1024
COUNT = 2**31 // (CHANNELS * SIDE * SIDE) + 1


def weights(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).div(shape[1] ** 0.5).bfloat16()


OFFSETS = grouped_offsets(CHANNELS, 3)
UP, DOWN = weights(8, CHANNELS, 1, 1), weights(CHANNELS, 8, 1, 1)
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "shift2d": lambda x: shift2d(x, OFFSETS),
    "shift_conv2d": lambda x: shift_conv2d(x, UP, None, OFFSETS),
    "depthwise_conv2d": lambda x: depthwise_conv2d(x, weights(CHANNELS, 1, 3, 3), None, padding=1),
    "star_mlp": lambda x: star_mlp(x, UP, None, UP, None, DOWN, None),
    "batch_norm_act": lambda x: batch_norm_act(
        x, torch.ones(CHANNELS), torch.zeros(CHANNELS), torch.zeros(CHANNELS), torch.ones(CHANNELS), act="relu"
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_last_image_is_as_alone(name: str) -> None:
    last = torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).bfloat16()
    many = torch.zeros(COUNT, SIDE, SIDE, CHANNELS, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    assert many.numel() > 2**31
    many[-1:] = last
    with torch.no_grad(), use_kernel(NATIVE):
        alone = CALLS[name](last.contiguous(memory_format=torch.channels_last))
        assert torch.equal(CALLS[name](many)[-1:], alone)


@pytest.mark.parametrize("name", ["shift2d", "depthwise_conv2d"])
def test_its_gradient_too(name: str) -> None:
    grad = torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).bfloat16()

    def gradient(count: int) -> Tensor:
        x = torch.zeros(count, SIDE, SIDE, CHANNELS, dtype=torch.bfloat16).permute(0, 3, 1, 2).requires_grad_()
        output = CALLS[name](x)
        at_output = torch.zeros(count, SIDE, SIDE, CHANNELS, dtype=torch.bfloat16).permute(0, 3, 1, 2)
        at_output[-1:] = grad
        (result,) = torch.autograd.grad(output, x, at_output)
        return result[-1:]

    with use_kernel(NATIVE):
        assert torch.equal(gradient(COUNT), gradient(1))
