# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""Batch norm and activation in Triton, channels last: x_RC (R pixels, C channels). Each pass is bound by memory.

Forward reads x for its sums and again to normalise it; backward reads x and the gradient for their sums and again for
the gradient of x. Sums are taken over parts of the rows and the parts are added in order. ``finish`` and
``finish_backward`` turn them into three numbers a channel, through which other kernels can read as well.
"""

from __future__ import annotations

import triton
import triton.language as tl

from starshift.ops._triton_parts import complete, normalised
from starshift.ops.star._triton_activation import activate, activate_backward


@triton.jit
def moments(x, parts, rows, part_rows, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of a part of the rows: sums of x - c and of its square, c being the first row."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.program_id(1).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    start = part * part_rows
    here = tl.minimum(rows - start, part_rows).to(tl.int32)
    center = tl.load(x + c, mask=c < C, other=0).to(tl.float32)[None, :]
    sums = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    squares = sums
    x += start * C
    for first in range(0, here, BLOCK_R):
        inside = (r < here - first)[:, None] & (c < C)[None, :]
        value = tl.load(x + r[:, None] * C + c[None, :], mask=inside, other=0).to(tl.float32)
        value = tl.where(inside, value - center, 0.0)
        sums += value
        squares += value * value
        x += BLOCK_R * C
    at = parts + part * 2 * C + c
    tl.store(at, tl.sum(sums, 0), mask=c < C)
    tl.store(at + C, tl.sum(squares, 0), mask=c < C)


@triton.jit
def _sum_two(parts, count, c, C: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr):
    row = tl.arange(0, ROWS)
    first_sum = tl.zeros([ROWS, BLOCK_C], tl.float32)
    second_sum = first_sum
    at = parts + row[:, None] * (2 * C) + c[None, :]
    for first in range(0, count, ROWS):
        inside = (row < count - first)[:, None] & (c < C)[None, :]
        first_sum += tl.load(at, mask=inside, other=0)
        second_sum += tl.load(at + C, mask=inside, other=0)
        at += ROWS * 2 * C
    return tl.sum(first_sum, 0), tl.sum(second_sum, 0)


@triton.jit
def load_channels(pointer, c, C: tl.constexpr, DEFAULT: tl.constexpr, PRESENT: tl.constexpr):
    """Float32 numbers a channel; DEFAULT where there are none."""
    if PRESENT:
        value = tl.load(pointer + c, mask=c < C, other=0).to(tl.float32)
    else:
        value = tl.full(c.shape, DEFAULT, tl.float32)
    return value


@triton.jit
def store_affine(affine, c, mean, var, weight, bias, eps, C: tl.constexpr):
    """A norm as three numbers a channel: mean, scale and bias."""
    tl.store(affine + c, mean, mask=c < C)
    tl.store(affine + C + c, weight / tl.sqrt(var + eps), mask=c < C)
    tl.store(affine + 2 * C + c, bias, mask=c < C)


@triton.jit
def finish(
    parts,
    center,
    weight,
    bias,
    mean,
    var,
    affine,
    rows,
    count,
    eps,
    C: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TRAINING: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Mean and variance (in training) and ``affine``: mean, scale and bias of the norm. center: what was subtracted in
    the sums, one number a channel."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    if TRAINING:
        away, square = _sum_two(parts, count, c, C, BLOCK_C, ROWS)
        away = away / rows
        value = square / rows - away * away
        used_var = tl.where(value < 0, 0.0, value)  # NaN stays
        used_mean = tl.load(center + c, mask=c < C, other=0).to(tl.float32) + away
        tl.store(mean + c, used_mean, mask=c < C)
        tl.store(var + c, used_var, mask=c < C)
    else:
        used_mean = tl.load(mean + c, mask=c < C, other=0).to(tl.float32)
        used_var = tl.load(var + c, mask=c < C, other=1).to(tl.float32)
    used_weight = load_channels(weight, c, C, 1.0, HAS_WEIGHT)
    used_bias = load_channels(bias, c, C, 0.0, HAS_BIAS)
    store_affine(affine, c, used_mean, used_var, used_weight, used_bias, eps, C)


@triton.jit
def apply(
    x,
    affine,
    residual,
    shortcut,
    out,
    rows,
    C: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    start = tl.program_id(0).to(tl.int64) * BLOCK_R
    inside = (r < rows - start)[:, None] & (c < C)[None, :]
    at = r[:, None] * C + c[None, :]
    value = tl.load(x + start * C + at, mask=inside, other=0).to(tl.float32)
    value = normalised(value, affine, c, C)
    if HAS_RESIDUAL:
        value += tl.load(residual + start * C + at, mask=inside, other=0).to(tl.float32)
    value = activate(value, ACT)
    if HAS_SHORTCUT:
        value += tl.load(shortcut + start * C + at, mask=inside, other=0).to(tl.float32)
    tl.store(out + start * C + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _before_activation(
    g, value, affine, residual, at, c, inside, C: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACT: tl.constexpr
):
    """The gradient before the activation, from the one after it."""
    if ACT != "none":
        z = normalised(value, affine, c, C)
        if HAS_RESIDUAL:
            z += tl.load(residual + at, mask=inside, other=0).to(tl.float32)
        g = activate_backward(g, z, ACT)
    return g


@triton.jit
def reduce(
    grad,
    x,
    affine,
    residual,
    mean,
    parts,
    rows,
    part_rows,
    C: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Of a part of the rows: sums of the gradient before the activation, and of it times x - mean."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.program_id(1).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    start = part * part_rows
    here = tl.minimum(rows - start, part_rows).to(tl.int32)
    center = tl.load(mean + c, mask=c < C, other=0).to(tl.float32)[None, :]
    sums = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    products = sums
    at = start * C + r[:, None] * C + c[None, :]
    for first in range(0, here, BLOCK_R):
        inside = (r < here - first)[:, None] & (c < C)[None, :]
        value = tl.load(x + at, mask=inside, other=0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0).to(tl.float32)
        g = _before_activation(g, value, affine, residual, at, c, inside, C, HAS_RESIDUAL, ACT)
        sums += g
        products += tl.where(inside, g * (value - center), 0.0)
        at += BLOCK_R * C
    at_part = parts + part * 2 * C + c
    tl.store(at_part, tl.sum(sums, 0), mask=c < C)
    tl.store(at_part + C, tl.sum(products, 0), mask=c < C)


@triton.jit
def finish_backward(
    parts,
    weight,
    mean,
    var,
    weight_grad,
    bias_grad,
    completion,
    rows,
    count,
    eps,
    C: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    TRAINING: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Gradients of weight and bias, and ``completion``: a, b, c of the gradient of x, ``a grad + b x + c``."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    g_bias, product = _sum_two(parts, count, c, C, BLOCK_C, ROWS)
    center = tl.load(mean + c, mask=c < C, other=0).to(tl.float32)
    inverse = 1 / tl.sqrt(tl.load(var + c, mask=c < C, other=1).to(tl.float32) + eps)
    g_weight = product * inverse
    tl.store(weight_grad + c, g_weight, mask=c < C)
    tl.store(bias_grad + c, g_bias, mask=c < C)
    a = load_channels(weight, c, C, 1.0, HAS_WEIGHT) * inverse
    b = tl.zeros_like(a)
    shift = tl.zeros_like(a)
    if TRAINING:
        b = -a * inverse * g_weight / rows
        shift = -a * g_bias / rows - b * center
    tl.store(completion + c, a, mask=c < C)
    tl.store(completion + C + c, b, mask=c < C)
    tl.store(completion + 2 * C + c, shift, mask=c < C)


@triton.jit
def apply_backward(
    grad,
    x,
    affine,
    residual,
    completion,
    x_grad,
    residual_grad,
    rows,
    C: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    start = tl.program_id(0).to(tl.int64) * BLOCK_R
    inside = (r < rows - start)[:, None] & (c < C)[None, :]
    at = start * C + r[:, None] * C + c[None, :]
    value = tl.load(x + at, mask=inside, other=0).to(tl.float32)
    g = tl.load(grad + at, mask=inside, other=0).to(tl.float32)
    g = _before_activation(g, value, affine, residual, at, c, inside, C, HAS_RESIDUAL, ACT)
    if HAS_RESIDUAL:
        tl.store(residual_grad + at, g.to(residual_grad.dtype.element_ty), mask=inside)
    tl.store(x_grad + at, complete(g, value, completion, c, C).to(x_grad.dtype.element_ty), mask=inside)
