# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""What Triton kernels share: a matrix product, and the ordered sum of partial results. Imports Triton."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from starshift.ops._triton import MOST_PIXELS, cdiv, config, launch


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a @ b``; a and b of one dtype, acc float32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def normalised(value, affine, c, C: tl.constexpr):
    """A batch norm of channels c by its three numbers: ``(value - mean) scale + bias``."""
    mean = tl.load(affine + c, mask=c < C, other=0)[None, :]
    scale = tl.load(affine + C + c, mask=c < C, other=0)[None, :]
    bias = tl.load(affine + 2 * C + c, mask=c < C, other=0)[None, :]
    return (value - mean) * scale + bias


@triton.jit
def complete(g, value, completion, c, C: tl.constexpr):
    """The gradient at a norm's input, from the one at its output and the input; rows beyond the last are not zero."""
    a = tl.load(completion + c, mask=c < C, other=0)[None, :]
    b = tl.load(completion + C + c, mask=c < C, other=0)[None, :]
    shift = tl.load(completion + 2 * C + c, mask=c < C, other=0)[None, :]
    return a * g + b * value + shift


@triton.jit
def ordered_sum(parts, index, size, count, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """The sum of parts[0, index], parts[1, index], ..., of (count, size): ROWS interleaved sums, then their sum."""
    row = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    at = parts + row[:, None].to(tl.int64) * size + index[None, :]
    for first in range(0, count, ROWS):
        total += tl.load(at, mask=(row < count - first)[:, None] & (index < size)[None, :], other=0)
        at += ROWS * size
    return tl.sum(total, 0)


@triton.jit
def _sum_parts(parts, out, size, count, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = ordered_sum(parts, index, size, count, BLOCK, ROWS)
    tl.store(out + index, total.to(out.dtype.element_ty), mask=index < size)


INTERPRETED = tl.constexpr(not isinstance(_sum_parts, triton.runtime.JITFunction))
"""Whether Triton's interpreter runs the kernels, on the CPU. Its matrix product is wrong for bfloat16."""


def sum_parts(parts: Tensor, *shapes: tuple[int, ...]) -> list[Tensor]:
    """The sums over the first dimension of contiguous float32 ``parts``, (P, S), as float32 tensors of these shapes,
    one behind the other in S. Each has its own memory, aligned."""
    size = parts.shape[1]
    out = torch.empty(size, dtype=torch.float32, device=parts.device)
    if size:
        launch(
            _sum_parts,
            [config(4, 1, BLOCK=32, ROWS=64)],
            lambda b: (cdiv(size, b["BLOCK"]),),
            (),
            parts.device,
            parts=parts,
            out=out,
            size=size,
            count=parts.shape[0],
        )
    sizes = [prod(shape) for shape in shapes]
    first, *others = out.split(sizes)
    found = [first, *(part.clone() for part in others)]
    return [part.view(shape) for part, shape in zip(found, shapes, strict=True)]


def index_type(*sizes: Tensor | int) -> Any:
    """The integer type that can address tensors, or numbers of elements, of these sizes."""
    elements = max(size.numel() if isinstance(size, Tensor) else size for size in sizes)
    return tl.int32 if elements < MOST_PIXELS else tl.int64
