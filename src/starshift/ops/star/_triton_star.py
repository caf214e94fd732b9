# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""The element-wise star in Triton: one pass over memory forward, one backward, in whatever order the elements lie."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from starshift.ops._triton import cdiv, config, launch
from starshift.ops.star import _triton_activation as activation

CONFIGS = [config(4, 1, BLOCK=1024), config(4, 1, BLOCK=2048), config(8, 1, BLOCK=4096)]


@triton.jit
def _star(a, b, out, size, ACT: tl.constexpr, PLACEMENT: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    index = tl.arange(0, BLOCK)
    inside = index < size - start
    x1 = tl.load(a + start + index, mask=inside, other=0).to(tl.float32)
    x2 = tl.load(b + start + index, mask=inside, other=0).to(tl.float32)
    value = activation.star(x1, x2, ACT, PLACEMENT)
    tl.store(out + start + index, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _star_backward(grad, a, b, a_grad, b_grad, size, ACT: tl.constexpr, PLACEMENT: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    index = tl.arange(0, BLOCK)
    inside = index < size - start
    g = tl.load(grad + start + index, mask=inside, other=0).to(tl.float32)
    x1 = tl.load(a + start + index, mask=inside, other=0).to(tl.float32)
    x2 = tl.load(b + start + index, mask=inside, other=0).to(tl.float32)
    g1, g2 = activation.star_backward(g, x1, x2, ACT, PLACEMENT)
    tl.store(a_grad + start + index, g1.to(a_grad.dtype.element_ty), mask=inside)
    tl.store(b_grad + start + index, g2.to(b_grad.dtype.element_ty), mask=inside)


def star(x1: Tensor, x2: Tensor, act: str, placement: str) -> Tensor:
    out = torch.empty_like(x1)
    _launch(_star, x1, act, placement, a=x1, b=x2, out=out)
    return out


def star_backward(grad: Tensor, x1: Tensor, x2: Tensor, act: str, placement: str) -> tuple[Tensor, Tensor]:
    grad = in_order_of(x1, grad)
    x1_grad, x2_grad = torch.empty_like(x1), torch.empty_like(x2)
    _launch(_star_backward, x1, act, placement, grad=grad, a=x1, b=x2, a_grad=x1_grad, b_grad=x2_grad)
    return x1_grad, x2_grad


def in_order_of(x: Tensor, other: Tensor) -> Tensor:
    """``other`` with x's strides: a copy unless it has them already."""
    return other if other.stride() == x.stride() else torch.empty_like(x, dtype=other.dtype).copy_(other)


def _launch(kernel: triton.JITFunction, x: Tensor, act: str, placement: str, **tensors: Any) -> None:
    size = x.numel()
    if size:
        launch(
            kernel,
            CONFIGS,
            lambda b: (cdiv(size, b["BLOCK"]),),
            (size.bit_length(), x.dtype, act, placement),
            x.device,
            size=size,
            ACT=act,
            PLACEMENT=placement,
            **tensors,
        )
