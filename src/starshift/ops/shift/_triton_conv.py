# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""``shift_conv2d`` in Triton: matrix products that read, or write, one operand at displaced addresses. x_NHWC, w_KC.

The shift moves no byte of its own: forward and the gradient of the weight read x displaced, the gradient of x is
written displaced. There, a value that would leave the image is zero and goes to the other side, which nothing else
reaches: so every element is written once, and nothing has to be cleared before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from starshift.ops._triton import (
    Config,
    cdiv,
    channels_last,
    config,
    image_layout,
    launch,
    precision,
    splits,
)
from starshift.ops._triton_parts import dot, index_type, sum_parts
from starshift.ops.shift._triton_shift import displacement, runs


def _configs(*sizes: tuple[int, int, int, int, int]) -> list[Config]:
    return [config(warps, stages, BLOCK_P=p, BLOCK_K=k, BLOCK_C=c) for p, k, c, warps, stages in sizes]


# Pixels, outputs, inputs of a tile; warps, stages.
FORWARD = _configs(
    (64, 32, 32, 4, 2), (128, 16, 32, 4, 3), (128, 32, 32, 4, 3), (128, 64, 32, 4, 3), (128, 64, 64, 8, 3)
)
INPUTS = _configs((64, 32, 32, 4, 2), (64, 32, 64, 4, 2), (128, 32, 64, 8, 2), (128, 64, 64, 8, 2), (64, 16, 128, 8, 2))
WEIGHTS = _configs((64, 32, 32, 4, 2), (64, 16, 64, 4, 3), (64, 32, 64, 4, 3), (128, 64, 64, 8, 2))
GRANULE = 128


@triton.jit
def _load_displaced(x, row, column, image, c, here, table, height, width, C, RUNS, COUNT, TOGETHER, INDEX):
    """x at [(image, row, column), c], each channel displaced; zero outside the image and where not ``here``."""
    dy, dx = displacement(c, table, C, RUNS, COUNT, TOGETHER)
    y = row[:, None] + dy[None, :]
    u = column[:, None] + dx[None, :]
    inside = here[:, None] & (c < C)[None, :] & (y >= 0) & (y < height) & (u >= 0) & (u < width)
    at = ((image * height + row) * width + column).to(INDEX) * C
    moved = (dy * width + dx).to(INDEX) * C
    return tl.load(x + at[:, None] + moved[None, :] + c[None, :], mask=inside, other=0)


@triton.jit
def _forward(
    x,
    weight,
    bias,
    out,
    table,
    pixels,
    height,
    width,
    out_height,
    out_width,
    stride,
    C: tl.constexpr,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RUNS: tl.constexpr,
    COUNT: tl.constexpr,
    TOGETHER: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    row, column = p // out_width % out_height * stride, p % out_width * stride
    image = p // out_width // out_height
    total = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        x_PC = _load_displaced(
            x, row, column, image, c, p < pixels, table, height, width, C, RUNS, COUNT, TOGETHER, INDEX
        )
        w_KC = tl.load(weight + k[:, None] * C + c[None, :], mask=(k < K)[:, None] & (c < C)[None, :], other=0)
        total = dot(x_PC, tl.trans(w_KC), total, PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + k, mask=k < K, other=0).to(tl.float32)[None, :]
    at = (p.to(INDEX) * K)[:, None] + k[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(p < pixels)[:, None] & (k < K)[None, :])


@triton.jit
def _inputs(
    grad,
    weight,
    x_grad,
    table,
    pixels,
    height,
    width,
    out_height,
    out_width,
    stride,
    C: tl.constexpr,
    K: tl.constexpr,
    RUNS: tl.constexpr,
    COUNT: tl.constexpr,
    TOGETHER: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row, column = p // width % height, p % width
    image = p // width // height
    kept = (p < pixels) & (row % stride == 0) & (column % stride == 0)
    q = ((image * out_height + row // stride) * out_width + column // stride).to(INDEX)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        grad_PK = tl.load(grad + (q * K)[:, None] + k[None, :], mask=kept[:, None] & (k < K)[None, :], other=0)
        w_KC = tl.load(weight + k[:, None] * C + c[None, :], mask=(k < K)[:, None] & (c < C)[None, :], other=0)
        total = dot(grad_PK, w_KC, total, PRECISION)
    dy, dx = displacement(c, table, C, RUNS, COUNT, TOGETHER)
    y = row[:, None] + dy[None, :]
    u = column[:, None] + dx[None, :]
    inside = (y >= 0) & (y < height) & (u >= 0) & (u < width)
    y = tl.where(y < 0, y + height, tl.where(y >= height, y - height, y))
    u = tl.where(u < 0, u + width, tl.where(u >= width, u - width, u))
    at = ((image * height)[:, None] + y).to(INDEX) * width + u
    value = tl.where(inside, total, 0.0).to(x_grad.dtype.element_ty)
    tl.store(x_grad + at * C + c[None, :], value, mask=(p < pixels)[:, None] & (c < C)[None, :])


@triton.jit
def _weights(
    grad,
    x,
    parts,
    table,
    pixels,
    part_pixels,
    height,
    width,
    out_height,
    out_width,
    stride,
    C: tl.constexpr,
    K: tl.constexpr,
    RUNS: tl.constexpr,
    COUNT: tl.constexpr,
    TOGETHER: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    part = tl.program_id(2)
    start = part * part_pixels
    end = tl.minimum(start + part_pixels, pixels)
    weight_sum = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    bias_sum = tl.zeros([BLOCK_K], tl.float32)
    for first in range(start, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        row, column = p // out_width % out_height * stride, p % out_width * stride
        image = p // out_width // out_height
        x_PC = _load_displaced(x, row, column, image, c, p < end, table, height, width, C, RUNS, COUNT, TOGETHER, INDEX)
        at = (p.to(INDEX) * K)[:, None] + k[None, :]
        grad_PK = tl.load(grad + at, mask=(p < end)[:, None] & (k < K)[None, :], other=0)
        weight_sum = dot(tl.trans(grad_PK), x_PC, weight_sum, PRECISION)
        bias_sum += tl.sum(grad_PK.to(tl.float32), 0)
    parts += part.to(tl.int64) * (K * C + K)
    tl.store(parts + k[:, None] * C + c[None, :], weight_sum, mask=(k < K)[:, None] & (c < C)[None, :])
    if tl.program_id(0) == 0:
        tl.store(parts + K * C + k, bias_sum, mask=k < K)


def shift_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, offsets: list[int], stride: int) -> Tensor:
    geometry = Geometry(x, weight, offsets, stride)
    out = geometry.empty(x, weight.shape[0], geometry.out_height, geometry.out_width)
    pixels = geometry.images * geometry.out_height * geometry.out_width
    if out.numel():
        launch(
            _forward,
            FORWARD,
            lambda b: (cdiv(pixels, b["BLOCK_P"]), cdiv(weight.shape[0], b["BLOCK_K"])),
            geometry.key,
            x.device,
            x=channels_last(x),
            weight=weight.contiguous(),
            bias=None if bias is None else bias.contiguous(),
            out=out,
            pixels=pixels,
            HAS_BIAS=bias is not None,
            **geometry.arguments,
        )
    return out.contiguous(memory_format=image_layout(x, weight))


def shift_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, offsets: list[int], stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = Geometry(x, weight, offsets, stride)
    grad = channels_last(grad)
    x_grad = geometry.empty(x, *x.shape[1:])
    pixels = geometry.images * geometry.height * geometry.width
    if x_grad.numel():
        launch(
            _inputs,
            INPUTS,
            lambda b: (cdiv(pixels, b["BLOCK_P"]), cdiv(x.shape[1], b["BLOCK_C"])),
            geometry.key,
            x.device,
            grad=grad,
            weight=weight.contiguous(),
            x_grad=x_grad,
            pixels=pixels,
            **geometry.arguments,
        )
    x_grad = x_grad.contiguous(memory_format=image_layout(x, weight))
    return x_grad, *_weight_grads(geometry, grad, channels_last(x), weight)


def _weight_grads(geometry: Geometry, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    pixels = geometry.images * geometry.out_height * geometry.out_width
    outputs, channels = weight.shape[:2]
    parts, part_pixels = splits(cdiv(outputs, 32) * cdiv(channels, 64), pixels, x.device, GRANULE)
    sums = torch.empty((parts, weight.numel() + outputs), dtype=torch.float32, device=x.device)
    launch(
        _weights,
        WEIGHTS,
        lambda b: (cdiv(channels, b["BLOCK_C"]), cdiv(outputs, b["BLOCK_K"]), parts),
        geometry.key,
        x.device,
        grad=grad,
        x=x,
        parts=sums,
        pixels=pixels,
        part_pixels=part_pixels,
        **geometry.arguments,
    )
    weight_grad, bias_grad = sum_parts(sums, tuple(weight.shape), (outputs,))
    return weight_grad.to(weight.dtype), bias_grad.to(weight.dtype)


class Geometry:
    """Sizes of a call, and what every kernel is handed."""

    def __init__(self, x: Tensor, weight: Tensor, offsets: list[int], stride: int) -> None:
        self.images, channels, self.height, self.width = x.shape
        self.out_height, self.out_width = cdiv(self.height, stride), cdiv(self.width, stride)
        outputs = weight.shape[0]
        self.key = (*x.shape, outputs, stride, x.dtype, precision(), tuple(offsets))
        self.arguments = {
            "height": self.height,
            "width": self.width,
            "out_height": self.out_height,
            "out_width": self.out_width,
            "stride": stride,
            "C": channels,
            "K": outputs,
            "PRECISION": precision(),
            "INDEX": index_type(x, self.images * self.out_height * self.out_width * outputs),
            **runs(offsets, self.height, self.width, x.device),
        }

    def empty(self, x: Tensor, channels: int, height: int, width: int) -> Tensor:
        """(N, channels, height, width), channels last."""
        shape = (self.images, channels, height, width)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
