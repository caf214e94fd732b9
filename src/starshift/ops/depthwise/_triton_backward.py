# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""Gradients of the depthwise convolution in Triton. x_NHWC, grad_NHWC, w_IJC.

Input: for stride 1 the convolution with the turned filters; for others, each pixel gathers from the outputs it went
into. Weight: ``_triton_strips`` without stride and dilation; otherwise a program holds the sums for a row of taps and
walks over a part of the output's rows. The parts are then added in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from starshift.ops._triton import cdiv, channels_last, config, image_layout, launch, power_of_two, splits
from starshift.ops._triton_parts import index_type, sum_parts
from starshift.ops.depthwise import _triton_strips as strips
from starshift.ops.depthwise._triton_forward import constants, convolve, locate, taps_first, tiles

WEIGHTS = [(4, 1, 1), (8, 4, 1)]
"""BLOCK_X, warps, stages."""
PROGRAMS = 8
"""Programs of one or two warps that a multiprocessor needs to have its memory busy."""


@triton.jit
def _inputs(
    grad,
    weight,
    x_grad,
    height,
    width,
    out_height,
    out_width,
    pad_y,
    pad_x,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, first_y, first_u, first_c = locate(width, height, C, BLOCK_X, 1, BLOCK_C)
    u = first_u + tl.arange(0, BLOCK_X)
    c = first_c + tl.arange(0, BLOCK_C)
    y = first_y + tl.zeros([1, 1], tl.int32)
    present = c < C
    grad += image.to(tl.int64) * out_height * out_width * C
    x_grad += image.to(tl.int64) * height * width * C
    weight += c
    total = tl.zeros([BLOCK_X, BLOCK_C], tl.float32)
    for j in range(KW):
        shifted = u + pad_x - j * DILATION_X
        column = shifted // STRIDE_X
        met = (shifted >= 0) & (shifted % STRIDE_X == 0) & (column < out_width)
        in_row = met[:, None] & present[None, :]
        at = (column * C)[:, None] + c[None, :]
        for i in tl.static_range(KH):
            lifted = y + pad_y - i * DILATION_Y
            row = lifted // STRIDE_Y
            inside = (lifted >= 0) & (lifted % STRIDE_Y == 0) & (row < out_height) & in_row
            value = tl.load(grad + row.to(INDEX) * (out_width * C) + at, mask=inside, other=0).to(tl.float32)
            total += value * tl.load(weight + (i * KW + j) * C, mask=present, other=0)[None, :]
    at = y.to(INDEX) * (width * C) + (u * C)[:, None] + c[None, :]
    tl.store(x_grad + at, total.to(x_grad.dtype.element_ty), mask=(u < width)[:, None] & present[None, :])


@triton.jit
def _weights(
    grad,
    x,
    parts,
    rows,
    part_rows,
    height,
    width,
    out_height,
    out_width,
    pad_y,
    pad_x,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    i = tl.program_id(1)
    part = tl.program_id(2)
    lane = tl.arange(0, BLOCK_X)
    present = (c < C)[None, :]
    zero = tl.zeros([BLOCK_X, BLOCK_C], tl.float32)
    bias_sum = zero
    sum0, sum1, sum2, sum3, sum4, sum5, sum6 = zero, zero, zero, zero, zero, zero, zero
    start = part * part_rows
    for q in range(start, tl.minimum(start + part_rows, rows)):
        image, y = q // out_height, q % out_height
        row = y * STRIDE_Y - pad_y + i * DILATION_Y
        inside_rows = (row >= 0) & (row < height)
        x_row = x + (tl.zeros([1, 1], INDEX) + image * height + row) * (width * C)
        grad_row = grad + (tl.zeros([1, 1], INDEX) + image * out_height + y) * (out_width * C)
        for first in range(0, out_width, BLOCK_X):
            u = first + lane
            in_grad = (u < out_width)[:, None] & present
            at = (u * C)[:, None] + c[None, :]
            g = tl.load(grad_row + at, mask=in_grad, other=0).to(tl.float32)
            bias_sum += g
            if inside_rows:
                for j in tl.static_range(KW):
                    column = u * STRIDE_X - pad_x + j * DILATION_X
                    inside = ((column >= 0) & (column < width))[:, None] & present
                    value = tl.load(x_row + (column * C)[:, None] + c[None, :], mask=inside, other=0).to(tl.float32)
                    if j == 0:
                        sum0 += g * value
                    elif j == 1:
                        sum1 += g * value
                    elif j == 2:
                        sum2 += g * value
                    elif j == 3:
                        sum3 += g * value
                    elif j == 4:
                        sum4 += g * value
                    elif j == 5:
                        sum5 += g * value
                    else:
                        sum6 += g * value
    parts += part.to(tl.int64) * (C * KH * KW + C)
    at = parts + (c * KH + i) * KW
    for j in tl.static_range(KW):
        if j == 0:
            total = sum0
        elif j == 1:
            total = sum1
        elif j == 2:
            total = sum2
        elif j == 3:
            total = sum3
        elif j == 4:
            total = sum4
        elif j == 5:
            total = sum5
        else:
            total = sum6
        tl.store(at + j, tl.sum(total, 0), mask=c < C)
    if i == 0:
        tl.store(parts + C * KH * KW + c, tl.sum(bias_sum, 0), mask=c < C)


def depthwise_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    grad = channels_last(grad)
    if stride == [1, 1]:
        turned = [d * (k - 1) - p for k, p, d in zip(weight.shape[2:], padding, dilation, strict=True)]
        x_grad = convolve(grad, weight, None, list(x.shape[2:]), [1, 1], turned, dilation, turned=True)
    else:
        x_grad = _gather(grad, x, weight, stride, padding, dilation)
    weight_grad, bias_grad = weight_grads(grad, channels_last(x), weight, stride, padding, dilation)
    return x_grad.contiguous(memory_format=image_layout(x, weight)), weight_grad, bias_grad


def _gather(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    n, channels, height, width = x.shape
    x_grad = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if x_grad.numel():
        launch(
            _inputs,
            tiles(channels, width),
            lambda b: (n * height * cdiv(width, b["BLOCK_X"]) * cdiv(channels, b["BLOCK_C"]),),
            (n.bit_length(), *x.shape[1:], *weight.shape[2:], *stride, *padding, *dilation, x.dtype),
            x.device,
            grad=grad,
            weight=taps_first(weight),
            x_grad=x_grad,
            height=height,
            width=width,
            out_height=grad.shape[2],
            out_width=grad.shape[3],
            pad_y=padding[0],
            pad_x=padding[1],
            INDEX=index_type(x.shape[1:].numel(), grad.shape[1:].numel()),
            **constants(weight, stride, dilation),
        )
    return x_grad


def weight_grads(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor]:
    if strips.serves(weight, stride, padding, dilation):
        weight_grad, bias_grad = strips.weight_grads(grad, x, weight, padding)
        return weight_grad.to(weight.dtype), bias_grad.to(weight.dtype)
    n, channels, out_height, out_width = grad.shape
    rows, wide = n * out_height, min(64, power_of_two(channels))
    parts, part_rows = splits(cdiv(channels, wide) * weight.shape[2], rows, x.device, 1, PROGRAMS)
    sums = torch.empty((parts, weight.numel() + channels), dtype=torch.float32, device=x.device)
    launch(
        _weights,
        [config(warps, stages, BLOCK_X=columns, BLOCK_C=wide) for columns, warps, stages in WEIGHTS],
        lambda b: (cdiv(channels, b["BLOCK_C"]), weight.shape[2], parts),
        (n.bit_length(), *x.shape[1:], *weight.shape[2:], *stride, *padding, *dilation, x.dtype),
        x.device,
        grad=grad,
        x=x,
        parts=sums,
        rows=rows,
        part_rows=part_rows,
        height=x.shape[2],
        width=x.shape[3],
        out_height=out_height,
        out_width=out_width,
        pad_y=padding[0],
        pad_x=padding[1],
        INDEX=index_type(x, grad),
        **constants(weight, stride, dilation),
    )
    weight_grad, bias_grad = sum_parts(sums, tuple(weight.shape), (channels,))
    return weight_grad.to(weight.dtype), bias_grad.to(weight.dtype)
