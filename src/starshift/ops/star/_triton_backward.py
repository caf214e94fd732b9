# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""``star_mlp`` backward in Triton: two kernels, each of which computes the branches again for one tile at a time.

``_inputs`` holds a tile of rows and walks over the hidden units: the gradient of x. ``_weights`` holds a block of
hidden units and walks over a part of the rows: the gradients of weights and biases, as one partial result a part; the
parts are then added in order. Shapes as in ``_triton_mlp``; grad_RD is the gradient of the output.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from starshift.ops._triton import cdiv, launch, splits
from starshift.ops._triton_parts import dot, sum_parts
from starshift.ops.star._triton_activation import star, star_backward
from starshift.ops.star._triton_mlp import Sizes, as_given, as_rows, load_bias, load_block

INPUTS = [(32, 16, 4, 1), (64, 32, 4, 2), (128, 32, 8, 2)]
WEIGHTS = [(32, 16, 4, 1), (64, 32, 8, 2), (32, 64, 4, 2), (64, 64, 8, 2)]
"""BLOCK_R, BLOCK_K, warps, stages, where tensor cores multiply."""
MOST_SUMS = 128
"""Channels for which one program can hold the sums for three weights; for more, two launches share them."""
GRANULE = 64
"""A part has a multiple of so many rows: of every BLOCK_R of WEIGHTS."""


@triton.jit
def _inputs(
    grad,
    x,
    w1,
    b1,
    w2,
    b2,
    wg,
    x_grad,
    rows,
    C: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    HAS_B1: tl.constexpr,
    HAS_B2: tl.constexpr,
    ACT: tl.constexpr,
    PLACEMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE_PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wide: tl.constexpr = tl.bfloat16 if wg.dtype.element_ty == tl.bfloat16 else tl.float32
    narrow: tl.constexpr = x.dtype.element_ty
    start = tl.program_id(0).to(tl.int64) * BLOCK_R
    here = tl.minimum(rows - start, BLOCK_R)
    r = tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    x_RC = load_block(x + start * C, r, c, here, C)
    grad_RD = load_block(grad + start * D, r, d, here, D).to(wide)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        w1_KC = load_block(w1, k, c, K, C)
        w2_KC = load_block(w2, k, c, K, C)
        wg_DK = load_block(wg, d, k, D, K).to(wide)
        x1 = dot(x_RC, tl.trans(w1_KC), tl.zeros([BLOCK_R, BLOCK_K], tl.float32), PRECISION)
        x2 = dot(x_RC, tl.trans(w2_KC), tl.zeros([BLOCK_R, BLOCK_K], tl.float32), PRECISION)
        x1 += load_bias(b1, k, K, HAS_B1)[None, :]
        x2 += load_bias(b2, k, K, HAS_B2)[None, :]
        product_grad = dot(grad_RD, wg_DK, tl.zeros([BLOCK_R, BLOCK_K], tl.float32), WIDE_PRECISION)
        g1, g2 = star_backward(product_grad, x1, x2, ACT, PLACEMENT)
        total = dot(g1.to(narrow), w1_KC, total, PRECISION)
        total = dot(g2.to(narrow), w2_KC, total, PRECISION)
    inside = (r < here)[:, None] & (c < C)[None, :]
    tl.store(x_grad + start * C + r[:, None] * C + c[None, :], total.to(narrow), mask=inside)


@triton.jit
def _weights(
    grad,
    x,
    w1,
    b1,
    w2,
    b2,
    wg,
    w1_parts,
    w2_parts,
    wg_parts,
    b1_parts,
    b2_parts,
    bg_parts,
    rows,
    part_rows,
    C: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    HAS_B1: tl.constexpr,
    HAS_B2: tl.constexpr,
    ACT: tl.constexpr,
    PLACEMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE_PRECISION: tl.constexpr,
    BRANCHES: tl.constexpr,
    PROJECTION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Everything transposed: hidden units are the rows of the tiles, so that the tiles of gradients, once computed, are
    already the left operands of the products that sum over the rows of x. BRANCHES: gradients of w1, b1, w2, b2;
    PROJECTION: of wg, bg.
    """
    wide: tl.constexpr = tl.bfloat16 if wg.dtype.element_ty == tl.bfloat16 else tl.float32
    narrow: tl.constexpr = x.dtype.element_ty
    part = tl.program_id(1).to(tl.int64)
    start = part * part_rows
    here = tl.minimum(rows - start, part_rows).to(tl.int32)
    r = tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    w1_KC = load_block(w1, k, c, K, C)
    w2_KC = load_block(w2, k, c, K, C)
    wg_KD = tl.trans(load_block(wg, d, k, D, K).to(wide))
    bias1 = load_bias(b1, k, K, HAS_B1)[:, None]
    bias2 = load_bias(b2, k, K, HAS_B2)[:, None]
    w1_sum = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    w2_sum = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    wg_sum = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    b1_sum = tl.zeros([BLOCK_K], tl.float32)
    b2_sum = tl.zeros([BLOCK_K], tl.float32)
    bg_sum = tl.zeros([BLOCK_D], tl.float32)
    x += start * C
    grad += start * D
    for first in range(0, here, BLOCK_R):
        x_RC = load_block(x, r, c, here - first, C)
        grad_RD = load_block(grad, r, d, here - first, D)
        x1 = dot(w1_KC, tl.trans(x_RC), tl.zeros([BLOCK_K, BLOCK_R], tl.float32), PRECISION) + bias1
        x2 = dot(w2_KC, tl.trans(x_RC), tl.zeros([BLOCK_K, BLOCK_R], tl.float32), PRECISION) + bias2
        wide_grad = grad_RD.to(wide)
        if PROJECTION:
            wg_sum = dot(star(x1, x2, ACT, PLACEMENT).to(wide), wide_grad, wg_sum, WIDE_PRECISION)
            bg_sum += tl.sum(grad_RD.to(tl.float32), 0)
        if BRANCHES:
            product_grad = dot(wg_KD, tl.trans(wide_grad), tl.zeros([BLOCK_K, BLOCK_R], tl.float32), WIDE_PRECISION)
            g1, g2 = star_backward(product_grad, x1, x2, ACT, PLACEMENT)
            w1_sum = dot(g1.to(narrow), x_RC, w1_sum, PRECISION)
            w2_sum = dot(g2.to(narrow), x_RC, w2_sum, PRECISION)
            b1_sum += tl.sum(g1, 1)
            b2_sum += tl.sum(g2, 1)
        x += BLOCK_R * C
        grad += BLOCK_R * D
    if BRANCHES:
        inside = (k < K)[:, None] & (c < C)[None, :]
        at = part * K * C + k[:, None] * C + c[None, :]
        tl.store(w1_parts + at, w1_sum, mask=inside)
        tl.store(w2_parts + at, w2_sum, mask=inside)
        tl.store(b1_parts + part * K + k, b1_sum, mask=k < K)
        tl.store(b2_parts + part * K + k, b2_sum, mask=k < K)
    if PROJECTION:
        at = part * D * K + d[None, :] * K + k[:, None]
        tl.store(wg_parts + at, wg_sum, mask=(k < K)[:, None] & (d < D)[None, :])
        if tl.program_id(0) == 0:
            tl.store(bg_parts + part * D + d, bg_sum, mask=d < D)


def star_mlp_backward(
    grad: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    wg: Tensor,
    act: str,
    placement: str,
) -> tuple[Tensor, ...]:
    sizes = Sizes(x, w1, wg)
    shared = {
        "grad": as_rows(grad, wg.transpose(0, 1)),
        "x": as_rows(x, w1),
        "b1": b1,
        "b2": b2,
        **sizes.arguments(w1, b1, w2, b2, wg, act, placement),
    }
    return as_given(_input_grad(sizes, shared), x, w1, wg), *_weight_grads(sizes, shared, w1, w2, wg)


def _input_grad(sizes: Sizes, shared: dict[str, Any]) -> Tensor:
    x_grad = torch.empty_like(shared["x"])
    if x_grad.numel():
        launch(
            _inputs,
            sizes.configs(INPUTS),
            lambda b: (cdiv(sizes.rows, b["BLOCK_R"]),),
            sizes.key(),
            x_grad.device,
            x_grad=x_grad,
            **shared,
        )
    return x_grad


def _weight_grads(sizes: Sizes, shared: dict[str, Any], w1: Tensor, w2: Tensor, wg: Tensor) -> list[Tensor]:
    """Of (w1, b1, w2, b2, wg, bg)."""
    device, hidden, outputs = w1.device, (sizes.hidden,), (sizes.outputs,)
    parts, part_rows = splits(cdiv(sizes.hidden, 64), sizes.rows, device, GRANULE)
    shapes: dict[str, tuple[int, ...]] = {}
    shapes.update(w1=w1.shape, b1=hidden, w2=w2.shape, b2=hidden, wg=wg.shape, bg=outputs)
    sums = {name: torch.empty((parts, *shape), device=device) for name, shape in shapes.items()}
    together = max(sizes.channels, sizes.outputs) <= MOST_SUMS
    for branches, projection in [(True, True)] if together else [(True, False), (False, True)]:
        launch(
            _weights,
            sizes.configs(WEIGHTS),
            lambda b: (cdiv(sizes.hidden, b["BLOCK_K"]), parts),
            (*sizes.key(), branches, projection),
            device,
            part_rows=part_rows,
            BRANCHES=branches,
            PROJECTION=projection,
            **{f"{name}_parts": value for name, value in sums.items()},
            **shared,
        )
    dtypes = {"wg": wg.dtype, "bg": wg.dtype}
    return [sum_parts(value, dtypes.get(name, w1.dtype)) for name, value in sums.items()]
