# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""A network's first convolution in Triton: matrix products in which one side, the patches, is read from the images.

Shapes: patches_RT (R output pixels, T = kh kw C input values that each meets), w_OT, out_RO, grad_RO (O of K channels).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from starshift.ops._triton import cdiv, config, image_layout, launch, pixel_rows, power_of_two, precision, splits
from starshift.ops._triton_parts import dot, index_type, sum_parts

FORWARD = (config(4, 1, BLOCK_R=128), config(4, 1, BLOCK_R=64))
WEIGHTS = (config(4, 1, BLOCK_R=128), config(4, 1, BLOCK_R=64))
GRANULE = 128
"""A part has a multiple of so many rows: of every BLOCK_R of WEIGHTS."""
PROGRAMS = 8
"""That share the sums, a multiprocessor: they wait for memory."""


@triton.jit
def _patches(
    x,
    row,
    rows,
    size,
    strides,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Tile [output pixel, tap]; zero beside the image."""
    height, width, out_height, out_width, pad_y, pad_x = size
    image_stride, channel_stride, row_stride, column_stride = strides
    t = tl.arange(0, BLOCK_T)
    c, j, i = t % C, t // C % KW, t // (C * KW)
    u, y, image = row % out_width, row // out_width % out_height, row // out_width // out_height
    line = (y * STRIDE_Y - pad_y)[:, None] + i[None, :]
    column = (u * STRIDE_X - pad_x)[:, None] + j[None, :]
    inside = (line >= 0) & (line < height) & (column >= 0) & (column < width)
    inside = inside & (row < rows)[:, None] & (t < C * KH * KW)[None, :]
    at = (image.to(INDEX) * image_stride)[:, None] + (c.to(INDEX) * channel_stride)[None, :]
    at += line.to(INDEX) * row_stride + column.to(INDEX) * column_stride
    return tl.load(x + at, mask=inside, other=0)


@triton.jit
def _forward(
    x,
    weight,
    bias,
    out,
    rows,
    height,
    width,
    out_height,
    out_width,
    pad_y,
    pad_x,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    TAPS: tl.constexpr = C * KH * KW
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o = tl.arange(0, BLOCK_O)
    t = tl.arange(0, BLOCK_T)
    size = (height, width, out_height, out_width, pad_y, pad_x)
    strides = (image_stride, channel_stride, row_stride, column_stride)
    patches = _patches(x, row, rows, size, strides, C, KH, KW, STRIDE_Y, STRIDE_X, INDEX, BLOCK_T)
    w_OT = tl.load(weight + o[:, None] * TAPS + t[None, :], mask=(o < K)[:, None] & (t < TAPS)[None, :], other=0)
    total = tl.zeros([BLOCK_R, BLOCK_O], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + o, mask=o < K, other=0).to(tl.float32)[None, :]
    total = dot(patches.to(w_OT.dtype), tl.trans(w_OT), total, PRECISION)
    at = row.to(INDEX)[:, None] * K + o[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (o < K)[None, :])


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
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    TAPS: tl.constexpr = C * KH * KW
    part = tl.program_id(0)
    end = tl.minimum((part + 1) * part_rows, rows)
    o = tl.arange(0, BLOCK_O)
    t = tl.arange(0, BLOCK_T)
    total = tl.zeros([BLOCK_O, BLOCK_T], tl.float32)
    bias_sum = tl.zeros([BLOCK_R, BLOCK_O], tl.float32)
    size = (height, width, out_height, out_width, pad_y, pad_x)
    strides = (image_stride, channel_stride, row_stride, column_stride)
    for first in range(part * part_rows, end, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        inside = (row < end)[:, None] & (o < K)[None, :]
        grad_RO = tl.load(grad + row.to(INDEX)[:, None] * K + o[None, :], mask=inside, other=0)
        patches = _patches(x, row, end, size, strides, C, KH, KW, STRIDE_Y, STRIDE_X, INDEX, BLOCK_T)
        total = dot(tl.trans(grad_RO), patches.to(grad_RO.dtype), total, PRECISION)
        bias_sum += grad_RO.to(tl.float32)
    parts += part.to(tl.int64) * (K * TAPS + K)
    at = parts + o[:, None] * TAPS + t[None, :]
    tl.store(at, total, mask=(o < K)[:, None] & (t < TAPS)[None, :])
    tl.store(parts + K * TAPS + o, tl.sum(bias_sum, 0), mask=o < K)


def stem_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    lengths = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    size = [(length + 2 * p - k) // s + 1 for length, k, s, p in lengths]
    shape = (x.shape[0], weight.shape[0], *size)
    out = torch.empty(shape, dtype=weight.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel():
        arguments = _arguments(x, weight, stride, padding, size)
        launch(
            _forward,
            FORWARD,
            lambda b: (cdiv(arguments["rows"], b["BLOCK_R"]),),
            (*_key(x, weight, stride), bias is not None),
            x.device,
            weight=weight.permute(0, 2, 3, 1).contiguous(),
            bias=None if bias is None else bias.contiguous(),
            out=out,
            HAS_BIAS=bias is not None,
            INDEX=index_type(_extent(x), out),
            **arguments,
        )
    return out.contiguous(memory_format=image_layout(x, weight))


def stem_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]
) -> tuple[Tensor, Tensor]:
    out_channels, channels, kh, kw = weight.shape
    arguments = _arguments(x, weight, stride, padding, list(grad.shape[2:]))
    parts, part_rows = splits(1, arguments["rows"], x.device, GRANULE, PROGRAMS)
    sums = torch.empty((parts, weight.numel() + out_channels), dtype=torch.float32, device=x.device)
    launch(
        _weights,
        WEIGHTS,
        lambda b: (parts,),
        _key(x, weight, stride),
        x.device,
        grad=pixel_rows(grad),
        parts=sums,
        part_rows=part_rows,
        INDEX=index_type(_extent(x), grad),
        **arguments,
    )
    weight_grad, bias_grad = sum_parts(sums, (out_channels, kh, kw, channels), (out_channels,))
    return weight_grad.permute(0, 3, 1, 2).to(weight.dtype).contiguous(), bias_grad.to(weight.dtype)


def _extent(x: Tensor) -> int:
    """Elements from the first to the last, which a view does not have all."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def _key(x: Tensor, weight: Tensor, stride: list[int]) -> tuple[Any, ...]:
    return x.shape[0].bit_length(), *x.shape[1:], *weight.shape, *stride, *x.stride(), x.dtype, weight.dtype


def _arguments(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], size: list[int]) -> dict[str, Any]:
    """What both kernels are handed."""
    image, channel, row, column = x.stride()
    return {
        "x": x,
        "rows": x.shape[0] * size[0] * size[1],
        "height": x.shape[2],
        "width": x.shape[3],
        "out_height": size[0],
        "out_width": size[1],
        "pad_y": padding[0],
        "pad_x": padding[1],
        "image_stride": image,
        "channel_stride": channel,
        "row_stride": row,
        "column_stride": column,
        "C": weight.shape[1],
        "KH": weight.shape[2],
        "KW": weight.shape[3],
        "STRIDE_Y": stride[0],
        "STRIDE_X": stride[1],
        "K": weight.shape[0],
        "PRECISION": precision() if weight.dtype == torch.float32 else "tf32",
        "BLOCK_T": power_of_two(weight.shape[1:].numel()),
        "BLOCK_O": power_of_two(weight.shape[0]),
    }
