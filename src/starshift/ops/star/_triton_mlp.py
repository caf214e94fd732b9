# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""``star_mlp`` forward in Triton: one kernel, in which the two wide branches exist for one tile at a time.

Shapes: x_RC, w1_KC, w2_KC, wg_DK, out_RD (R rows or pixels, C channels in, K hidden units, D channels out).
A program holds BLOCK_R rows of x and of the sums for the outputs, and walks over the hidden units.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from starshift.ops._triton import (
    Config,
    cdiv,
    config,
    image_layout,
    launch,
    pixel_rows,
    power_of_two,
    precision,
    rows_as_image,
)
from starshift.ops._triton_parts import dot, normalised
from starshift.ops.star._triton_activation import star

FORWARD = [(64, 32, 4, 1), (128, 32, 8, 2), (64, 64, 4, 2)]
"""BLOCK_R, BLOCK_K, warps, stages, where tensor cores multiply."""
SMALLEST = config(4, 1, BLOCK_R=32, BLOCK_K=16)
"""What fits every device."""
EXACT = [(32, 16, 4, 1), (32, 32, 8, 1), (64, 16, 8, 1)]
"""The same for exact float32 products, whose operands stand in registers."""


@triton.jit
def load_block(pointer, row, column, rows, columns: tl.constexpr):
    """Tile [row, column] of a row-major matrix, zero outside."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(pointer + row[:, None] * columns + column[None, :], mask=inside, other=0)


@triton.jit
def load_normed(pointer, affine, row, column, rows, columns: tl.constexpr, NORMED: tl.constexpr):
    """As ``load_block``, seen through a batch norm; rows outside are then not zero."""
    value = load_block(pointer, row, column, rows, columns)
    if NORMED:
        value = normalised(value.to(tl.float32), affine, column, columns).to(value.dtype)
    return value


@triton.jit
def load_bias(pointer, index, size: tl.constexpr, PRESENT: tl.constexpr):
    """Float32 vector; zeros where there is no bias."""
    if PRESENT:
        value = tl.load(pointer + index, mask=index < size, other=0).to(tl.float32)
    else:
        value = tl.zeros_like(index).to(tl.float32)
    return value


@triton.jit
def _forward(
    x,
    affine,
    w1,
    b1,
    w2,
    b2,
    wg,
    bg,
    out,
    rows,
    C: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    HAS_B1: tl.constexpr,
    HAS_B2: tl.constexpr,
    HAS_BG: tl.constexpr,
    NORMED: tl.constexpr,
    ACT: tl.constexpr,
    PLACEMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE_PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wide: tl.constexpr = tl.bfloat16 if x.dtype.element_ty == tl.bfloat16 else tl.float32
    start = tl.program_id(0).to(tl.int64) * BLOCK_R
    here = tl.minimum(rows - start, BLOCK_R)
    r = tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    x_RC = load_normed(x + start * C, affine, r, c, here, C, NORMED)
    total = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        w1_KC = load_block(w1, k, c, K, C)
        w2_KC = load_block(w2, k, c, K, C)
        wg_DK = load_block(wg, d, k, D, K)
        x1 = dot(x_RC, tl.trans(w1_KC), tl.zeros([BLOCK_R, BLOCK_K], tl.float32), PRECISION)
        x2 = dot(x_RC, tl.trans(w2_KC), tl.zeros([BLOCK_R, BLOCK_K], tl.float32), PRECISION)
        x1 += load_bias(b1, k, K, HAS_B1)[None, :]
        x2 += load_bias(b2, k, K, HAS_B2)[None, :]
        product = star(x1, x2, ACT, PLACEMENT)
        total = dot(product.to(wide), tl.trans(wg_DK.to(wide)), total, WIDE_PRECISION)
    total += load_bias(bg, d, D, HAS_BG)[None, :]
    inside = (r < here)[:, None] & (d < D)[None, :]
    tl.store(out + start * D + r[:, None] * D + d[None, :], total.to(out.dtype.element_ty), mask=inside)


def star_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    wg: Tensor,
    bg: Tensor | None,
    act: str,
    placement: str,
) -> Tensor:
    sizes = Sizes(x, w1, wg)
    arguments = sizes.arguments(w1, b1, w2, b2, wg, act, placement)
    out = torch.empty((sizes.rows, sizes.outputs), dtype=wg.dtype, device=x.device)
    return as_given(forward_rows(sizes, as_rows(x, w1), bg, out, arguments), x, w1, wg)


def forward_rows(
    sizes: Sizes, x: Tensor, bg: Tensor | None, out: Tensor, arguments: dict[str, Any], affine: Tensor | None = None
) -> Tensor:
    """Into ``out`` (R, D), from rows x (R, C), seen through the norm ``affine`` (3 C) if given."""
    if out.numel():
        launch(
            _forward,
            sizes.configs(FORWARD),
            lambda b: (cdiv(sizes.rows, b["BLOCK_R"]),),
            sizes.key(),
            x.device,
            SMALLEST,
            x=x,
            affine=affine,
            bg=None if bg is None else bg.contiguous(),
            out=out,
            HAS_BG=bg is not None,
            NORMED=affine is not None,
            **arguments,
        )
    return out


class Sizes:
    """R, C, K, D of a call, and what both passes hand to their kernels."""

    def __init__(self, x: Tensor, w1: Tensor, wg: Tensor) -> None:
        self.hidden, self.channels = w1.shape[:2]
        self.outputs = wg.shape[0]
        self.rows = x.numel() // self.channels
        self.dtypes = (x.dtype, wg.dtype)

    def key(self) -> tuple[Any, ...]:
        """What the best configuration depends on."""
        return self.rows.bit_length(), self.channels, self.hidden, self.outputs, *self.dtypes, precision()

    def configs(self, choices: list[tuple[int, int, int, int]]) -> list[Config]:
        """Of (BLOCK_R, BLOCK_K, warps, stages)."""
        if self._wide_precision() == "ieee":
            choices = EXACT
        return [config(warps, stages, BLOCK_R=r, BLOCK_K=k) for r, k, warps, stages in choices]

    def arguments(
        self, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, wg: Tensor, act: str, placement: str
    ) -> dict[str, Any]:
        return {
            "w1": w1.reshape(self.hidden, self.channels).contiguous(),
            "b1": None if b1 is None else b1.contiguous(),
            "b2": None if b2 is None else b2.contiguous(),
            "w2": w2.reshape(self.hidden, self.channels).contiguous(),
            "wg": wg.reshape(self.outputs, self.hidden).contiguous(),
            "rows": self.rows,
            "C": self.channels,
            "K": self.hidden,
            "D": self.outputs,
            "HAS_B1": b1 is not None,
            "HAS_B2": b2 is not None,
            "ACT": act,
            "PLACEMENT": placement,
            "PRECISION": precision(),
            "WIDE_PRECISION": self._wide_precision(),
            "BLOCK_C": power_of_two(self.channels),
            "BLOCK_D": power_of_two(self.outputs),
        }

    def _wide_precision(self) -> str:
        """TF32 holds float16 weights exactly and the product as float16 would, without its limit. Where branches are
        float16 and the projection is float32, three TF32 products make one of float32's precision.
        """
        if self.dtypes == (torch.float16, torch.float16):
            return "tf32"
        if self.dtypes[0] == torch.float16 and precision() == "ieee":
            return "tf32x3"
        return "tf32" if self.dtypes[1] == torch.bfloat16 else precision()  # nothing to bfloat16


def as_rows(x: Tensor, w1: Tensor) -> Tensor:
    """(R, C) in memory order: pixels of an image in channels last, or rows of the last dimension."""
    return pixel_rows(x) if w1.dim() == 4 else x.reshape(-1, w1.shape[1]).contiguous()


def as_given(rows: Tensor, x: Tensor, w1: Tensor, wg: Tensor) -> Tensor:
    """(R, D) rows in the shape and layout that the reference returns for ``x``."""
    if w1.dim() == 2:
        return rows.view(*x.shape[:-1], rows.shape[1])
    return rows_as_image(rows, x, image_layout(x, w1))
