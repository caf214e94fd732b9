# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""What Triton kernels share: a matrix product, and the ordered sum of partial results. Imports Triton."""

from __future__ import annotations

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
def _sum_parts(parts, out, size, count, BLOCK: tl.constexpr):
    """out[i] = parts[0, i] + parts[1, i] + ... in this order."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    index = tl.arange(0, BLOCK)
    inside = index < size - start
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(count):
        total += tl.load(parts + start + index, mask=inside, other=0)
        parts += size
    tl.store(out + start + index, total.to(out.dtype.element_ty), mask=inside)


INTERPRETED = tl.constexpr(not isinstance(_sum_parts, triton.runtime.JITFunction))
"""Whether Triton's interpreter runs the kernels, on the CPU. Its matrix product is wrong for bfloat16."""


def sum_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first dimension of contiguous float32 ``parts``, in order, as ``dtype``."""
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    size = out.numel()
    if size:
        launch(
            _sum_parts,
            [config(4, 2, BLOCK=512)],
            lambda b: (cdiv(size, b["BLOCK"]),),
            (),
            parts.device,
            parts=parts,
            out=out,
            size=size,
            count=parts.shape[0],
        )
    return out


def index_type(*sizes: Tensor | int) -> Any:
    """The integer type that can address tensors, or numbers of elements, of these sizes."""
    elements = max(size.numel() if isinstance(size, Tensor) else size for size in sizes)
    return tl.int32 if elements < MOST_PIXELS else tl.int64
