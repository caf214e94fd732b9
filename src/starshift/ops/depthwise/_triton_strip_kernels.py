# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
# ruff: noqa: RUF005  (Triton knows tuples to be added, not to be unpacked)
# mypy: disable-error-code="assignment"
"""Depthwise convolution of stride 1 in Triton, and the gradient of its filters. x_NHWC, grad_NHWC; w_IJC: I x J taps.

A lane owns one channel of a strip of SPAN columns of one image and walks down its rows. It reads each row of its strip
once (the last one twice, as its own successor), and holds in registers all taps of its channel and the I rows that a
row of the input meets: sums of outputs, or gradients. Rows leave this ring at one end and enter at the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from starshift.ops._triton_parts import ordered_sum

SIZES = ("height", "width", "out_height", "out_width", "pad_y", "pad_x", "lanes", "strips")
"""For whose values no kernel is compiled anew: it takes seconds."""


@triton.jit
def _repeat(value, COUNT: tl.constexpr):
    values = ()
    for _ in tl.static_range(COUNT):
        values = values + (value,)
    return values


@triton.jit
def _inside(first, width, COUNT: tl.constexpr):
    """Which of COUNT columns from ``first`` on are inside an image."""
    found = ()
    for k in tl.static_range(COUNT):
        found = found + ((first + k >= 0) & (first + k < width),)
    return found


@triton.jit
def _load_row(at, inside, C: tl.constexpr, COUNT: tl.constexpr):
    row = ()
    for k in tl.static_range(COUNT):
        row = row + (tl.load(at + k * C, mask=inside[k], other=0),)
    return row


@triton.jit
def _wide(row, COUNT: tl.constexpr):
    values = ()
    for k in tl.static_range(COUNT):
        values = values + (row[k].to(tl.float32),)
    return values


@triton.jit
def _normed(row, inside, scale, shift, NORMED: tl.constexpr, COUNT: tl.constexpr):
    """The row behind a batch norm; beside the image it stays zero."""
    values = _wide(row, COUNT)
    if NORMED:
        found = ()
        for k in tl.static_range(COUNT):
            found = found + (tl.where(inside[k], values[k] * scale + shift, 0.0),)
        values = found
    return values


@triton.jit
def _affine(affine, c, zero, C: tl.constexpr, NORMED: tl.constexpr):
    """Scale and shift of channel c, from mean, scale and bias."""
    scale, shift = zero, zero
    if NORMED:
        scale = tl.load(affine + C + c)
        shift = tl.load(affine + 2 * C + c) - tl.load(affine + c) * scale
    return scale, shift


@triton.jit
def _store_row(
    ring,
    out,
    added,
    beside,
    scale,
    center,
    inside,
    first_sum,
    second_sum,
    C: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SUMS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Finishes the ring's first row; returns the sums with what it adds."""
    for u in tl.static_range(SPAN):
        total = ring[u]
        if HAS_SCALE:
            total *= scale
        if HAS_RESIDUAL:
            total += added[u].to(tl.float32)
        tl.store(out + u * C, total.to(out.dtype.element_ty), mask=inside[u])
        if SUMS == "moments":
            away = tl.where(inside[u], total - center, 0.0)
            first_sum += away
            second_sum += away * away
        elif SUMS == "products":
            counted = tl.where(inside[u], total, 0.0)
            first_sum += counted
            second_sum += counted * (beside[u].to(tl.float32) - center)
    return first_sum, second_sum


@triton.jit
def _and_all(flags, flag, COUNT: tl.constexpr):
    found = ()
    for k in tl.static_range(COUNT):
        found = found + (flags[k] & flag,)
    return found


@triton.jit(do_not_specialize=(*SIZES, "first_tap", "next_tap"))
def convolve(
    x,
    weight,
    bias,
    sample_scale,
    residual,
    affine,
    partner,
    center,
    parts,
    out,
    lanes,
    strips,
    height,
    width,
    out_height,
    out_width,
    pad_y,
    pad_x,
    first_tap,
    next_tap,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NORMED: tl.constexpr,
    SUMS: tl.constexpr,
    INDEX: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The ring's first row is that of the output which the current row of the input meets with its last tap.

    SUMS, two numbers a lane: ``moments``, of the outputs less ``center`` and of their squares; ``products``, of the
    outputs and of their products with ``partner`` less ``center``; or ``none``.
    """
    lane = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    known = lane < lanes
    lane = tl.minimum(lane, lanes - 1)
    c = lane % C
    u = (lane // C % strips * SPAN).to(tl.int32)
    image = lane // C // strips
    taps = ()
    for t in tl.static_range(KH * KW):
        taps = taps + (tl.load(weight + (first_tap + t * next_tap) * C + c),)
    zero = tl.zeros([BLOCK], tl.float32)
    start = zero
    if HAS_BIAS:
        start += tl.load(bias + c).to(tl.float32)
    norm_scale, norm_shift = _affine(affine, c, zero, C, NORMED)
    middle = zero
    if SUMS != "none":
        middle = tl.load(center + c).to(tl.float32)
    first_sum, second_sum = zero, zero
    scale = start
    if HAS_SCALE:
        scale = tl.load(sample_scale + image)
    inside = _inside(u - pad_x, width, SPAN + KW - 1)
    stored = _and_all(_inside(u, out_width, SPAN), known, SPAN)
    x += image * height * width * C + (u - pad_x) * C + c
    first = pad_y - KH + 1
    at = (image * out_height + first) * out_width * C + u * C + c
    out += at
    if HAS_RESIDUAL:
        residual += at
    if SUMS == "products":
        partner += at
    ring = _repeat(start, KH * SPAN)
    coming = _load_row(x, inside, C, SPAN + KW - 1)
    for s in range(height):
        row = _normed(coming, inside, norm_scale, norm_shift, NORMED, SPAN + KW - 1)
        x += tl.where(s + 1 < height, width * C, 0)
        coming = _load_row(x, inside, C, SPAN + KW - 1)
        here = _and_all(stored, (first + s >= 0) & (first + s < out_height), SPAN)
        added, beside = here, here
        if HAS_RESIDUAL:
            added = _load_row(residual, here, C, SPAN)
            residual += out_width * C
        if SUMS == "products":
            beside = _load_row(partner, here, C, SPAN)
            partner += out_width * C
        sums = ()
        for q in tl.static_range(KH):
            for k in tl.static_range(SPAN):
                total = ring[q * SPAN + k]
                for j in tl.static_range(KW):
                    total += row[k + j] * taps[(KH - 1 - q) * KW + j]
                sums = sums + (total,)
        first_sum, second_sum = _store_row(
            sums, out, added, beside, scale, middle, here, first_sum, second_sum, C, HAS_SCALE, HAS_RESIDUAL, SUMS, SPAN
        )
        ring = sums[SPAN:] + _repeat(start, SPAN)
        out += out_width * C
    for q in range(KH - 1):  # the last rows, which meet no more of the input
        here = _and_all(stored, (first + height + q >= 0) & (first + height + q < out_height), SPAN)
        added, beside = here, here
        if HAS_RESIDUAL:
            added = _load_row(residual, here, C, SPAN)
            residual += out_width * C
        if SUMS == "products":
            beside = _load_row(partner, here, C, SPAN)
            partner += out_width * C
        first_sum, second_sum = _store_row(
            ring, out, added, beside, scale, middle, here, first_sum, second_sum, C, HAS_SCALE, HAS_RESIDUAL, SUMS, SPAN
        )
        ring = ring[SPAN:] + _repeat(start, SPAN)
        out += out_width * C
    if SUMS != "none":
        at = parts + (lane // C).to(tl.int64) * (2 * C) + c
        tl.store(at, first_sum, mask=known)
        tl.store(at + C, second_sum, mask=known)


@triton.jit(do_not_specialize=(*SIZES, "images", "each"))
def weights(
    grad,
    x,
    affine,
    parts,
    images,
    each,
    lanes,
    strips,
    height,
    width,
    out_height,
    out_width,
    pad_y,
    pad_x,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    NORMED: tl.constexpr,
    INDEX: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A lane takes its strip of ``each`` images. The ring holds gradients; its last row is the newest."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = lane < lanes
    lane = tl.minimum(lane, lanes - 1)
    c = lane % C
    u = lane // C % strips * SPAN
    group = lane // C // strips
    inside = _inside(u - pad_x, width, SPAN + KW - 1)
    met = _inside(u, out_width, SPAN)
    zero = tl.zeros([BLOCK], tl.float32)
    sums = _repeat(zero, KH * KW)
    bias_sum = zero
    norm_scale, norm_shift = _affine(affine, c, zero, C, NORMED)
    first = pad_y - KH + 1
    for step in range(each):
        image = group * each + step
        there = image < images
        image = tl.minimum(image, images - 1).to(INDEX)
        x_at = x + image * height * width * C + (u - pad_x) * C + c
        grad_at = grad + (image * out_height + first) * out_width * C + u * C + c
        ring = _repeat(zero, (KH - 1) * SPAN)
        if KH > 1:  # else the ring is empty, and a loop that fills it could not be compiled
            for q in range(KH - 1):
                here = there & (first + q >= 0) & (first + q < out_height)
                newest = _wide(_load_row(grad_at, _and_all(met, here, SPAN), C, SPAN), SPAN)
                for k in tl.static_range(SPAN):
                    bias_sum += newest[k]
                ring = ring[SPAN:] + newest
                grad_at += out_width * C
        entering = _load_row(grad_at, _and_all(met, there & (pad_y < out_height), SPAN), C, SPAN)
        coming = _load_row(x_at, inside, C, SPAN + KW - 1)
        for s in range(height):
            rows = ring + _wide(entering, SPAN)
            row = _normed(coming, inside, norm_scale, norm_shift, NORMED, SPAN + KW - 1)
            grad_at += out_width * C
            x_at += tl.where(s + 1 < height, width * C, 0)
            entering = _load_row(grad_at, _and_all(met, there & (pad_y + s + 1 < out_height), SPAN), C, SPAN)
            coming = _load_row(x_at, inside, C, SPAN + KW - 1)
            for k in tl.static_range((KH - 1) * SPAN, KH * SPAN):
                bias_sum += rows[k]
            added = ()
            for i in tl.static_range(KH):
                for j in tl.static_range(KW):
                    total = sums[i * KW + j]
                    for k in tl.static_range(SPAN):
                        total += rows[(KH - 1 - i) * SPAN + k] * row[k + j]
                    added = added + (total,)
            sums = added
            ring = rows[SPAN:]
    at = parts + (lane // C).to(tl.int64) * ((KH * KW + 1) * C) + c
    for t in tl.static_range(KH * KW):
        tl.store(at + t * C, sums[t], mask=known)
    tl.store(at + KH * KW * C, bias_sum, mask=known)


@triton.jit
def sum_weights(
    parts, weight_grad, bias_grad, count, C: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """The parts, in order, with channels first."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = ordered_sum(parts, index, (TAPS + 1) * C, count, BLOCK, ROWS)
    tap, c = index // C, index % C
    tl.store(weight_grad + c * TAPS + tap, value, mask=tap < TAPS)
    tl.store(bias_grad + c, value, mask=tap == TAPS)
