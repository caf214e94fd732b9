# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""Depthwise convolution in Triton, and the gradient of its input for stride 1, which is one. x_NHWC; w_IJC: I x J taps.

Without stride and dilation ``_triton_strips`` does it. Otherwise a program computes four rows of BLOCK_X outputs for
BLOCK_C channels. It walks over the rows of the input; each tile, once loaded, is multiplied by the taps with which it
enters each of the four rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from starshift.ops._triton import Config, cdiv, channels_last, config, image_layout, launch, power_of_two
from starshift.ops._triton_parts import index_type
from starshift.ops.depthwise import _triton_strips as strips

ROWS = tl.constexpr(4)


@triton.jit
def locate(width, height, C: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_C: tl.constexpr):
    """(image, first row, first column, first channel) of a program; channels go fastest, so that neighbours share
    cache lines.
    """
    program = tl.program_id(0)
    channels = tl.cdiv(C, BLOCK_C)
    columns = tl.cdiv(width, BLOCK_X)
    rows = tl.cdiv(height, BLOCK_Y)
    channel = program % channels * BLOCK_C
    column = program // channels % columns * BLOCK_X
    row = program // channels // columns % rows * BLOCK_Y
    return program // channels // columns // rows, row, column, channel


@triton.jit
def _forward(
    x,
    weight,
    bias,
    sample_scale,
    residual,
    out,
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
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, first_y, first_u, first_c = locate(out_width, out_height, C, BLOCK_X, ROWS, BLOCK_C)
    u = first_u + tl.arange(0, BLOCK_X)
    c = first_c + tl.arange(0, BLOCK_C)
    y = first_y + tl.zeros([1, 1], tl.int32)
    present = c < C
    x += image.to(tl.int64) * height * width * C
    out += image.to(tl.int64) * out_height * out_width * C
    if HAS_RESIDUAL:
        residual += image.to(tl.int64) * out_height * out_width * C
    weight += c
    sum0 = tl.zeros([BLOCK_X, BLOCK_C], tl.float32)
    if HAS_BIAS:
        sum0 += tl.load(bias + c, mask=present, other=0).to(tl.float32)[None, :]
    sum1 = sum0
    sum2 = sum0
    sum3 = sum0
    for j in range(KW):  # not unrolled: taps of other columns would only fill registers
        column = u * STRIDE_X - pad_x + j * DILATION_X
        in_row = ((column >= 0) & (column < width))[:, None] & present[None, :]
        at = (column * C)[:, None] + c[None, :]
        for s in tl.static_range(3 * STRIDE_Y + (KH - 1) * DILATION_Y + 1):
            row = y * STRIDE_Y - pad_y + s
            inside = (row >= 0) & (row < height) & in_row
            value = tl.load(x + row.to(INDEX) * (width * C) + at, mask=inside, other=0).to(tl.float32)
            for t in tl.static_range(4):  # the row of outputs that meets this one with tap row i
                i = (s - t * STRIDE_Y) // DILATION_Y
                if i >= 0 and i < KH and i * DILATION_Y == s - t * STRIDE_Y:
                    tap = tl.load(weight + (i * KW + j) * C, mask=present, other=0)[None, :]
                    if t == 0:
                        sum0 += value * tap
                    elif t == 1:
                        sum1 += value * tap
                    elif t == 2:
                        sum2 += value * tap
                    else:
                        sum3 += value * tap
    in_row = (u < out_width)[:, None] & present[None, :]
    at = (u * C)[:, None] + c[None, :]
    for t in tl.static_range(4):
        if t == 0:
            total = sum0
        elif t == 1:
            total = sum1
        elif t == 2:
            total = sum2
        else:
            total = sum3
        row = y + t
        inside = in_row & (row < out_height)
        where = row.to(INDEX) * (out_width * C) + at
        if HAS_SCALE:
            total *= tl.load(sample_scale + image)
        if HAS_RESIDUAL:
            total += tl.load(residual + where, mask=inside, other=0).to(tl.float32)
        tl.store(out + where, total.to(out.dtype.element_ty), mask=inside)


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    lengths = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    size = [(length + 2 * p - d * (k - 1) - 1) // s + 1 for length, k, s, p, d in lengths]
    out = convolve(channels_last(x), weight, bias, size, stride, padding, dilation, turned=False)
    return out.contiguous(memory_format=image_layout(x, weight))


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    turned: bool,
    sample_scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``sample_scale * convolution + residual`` of channels-last x, (N, C, *size), with the filters or the ``turned``
    filters; sample_scale: (N,) in float32; residual: as the result, channels last."""
    if strips.serves(weight, stride, padding, dilation):
        return strips.convolve(x, taps_first(weight), bias, size, padding, turned, sample_scale, residual)[0]
    n, channels, height, width = x.shape
    out = torch.empty((n, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel():
        launch(
            _forward,
            tiles(channels, size[1]),
            lambda b: (n * cdiv(size[0], ROWS.value) * cdiv(size[1], b["BLOCK_X"]) * cdiv(channels, b["BLOCK_C"]),),
            (n.bit_length(), *x.shape[1:], *weight.shape[2:], *stride, *padding, *dilation, x.dtype),
            x.device,
            x=x,
            weight=taps_first(weight.flip(2, 3) if turned else weight),
            bias=None if bias is None else bias.contiguous(),
            sample_scale=None if sample_scale is None else sample_scale.contiguous(),
            residual=residual,
            out=out,
            height=height,
            width=width,
            out_height=size[0],
            out_width=size[1],
            pad_y=padding[0],
            pad_x=padding[1],
            HAS_BIAS=bias is not None,
            HAS_SCALE=sample_scale is not None,
            HAS_RESIDUAL=residual is not None,
            INDEX=index_type(height * width * channels, size[0] * size[1] * channels),
            **constants(weight, stride, dilation),
        )
    return out


def taps_first(weight: Tensor) -> Tensor:
    """w_IJC of w_C1IJ, float32: neighbouring channels of a tap are read together, and ready to be multiplied."""
    return weight.squeeze(1).permute(1, 2, 0).float().contiguous()


def tiles(channels: int, width: int) -> list[Config]:
    """Small tiles: a tap that a thread loads serves several pixels, and four rows of many would not fit its
    registers."""
    found: list[Config] = []
    for columns, wide, warps in ((8, 16, 1), (16, 32, 2)):
        columns, wide = min(columns, power_of_two(width, 4)), min(wide, power_of_two(channels))
        choice = config(warps, 1, BLOCK_X=columns, BLOCK_C=wide)
        if choice not in found:
            found.append(choice)
    return found


def constants(weight: Tensor, stride: list[int], dilation: list[int]) -> dict[str, Any]:
    """What the kernels are compiled for."""
    return {
        "C": weight.shape[0],
        "KH": weight.shape[2],
        "KW": weight.shape[3],
        "STRIDE_Y": stride[0],
        "STRIDE_X": stride[1],
        "DILATION_Y": dilation[0],
        "DILATION_X": dilation[1],
    }
