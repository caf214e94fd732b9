# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""``shift2d`` in Triton: one read and one write of every element, at displaced addresses. x_NHWC, exact.

A kernel is compiled for the runs of channels it moves, so that no table of displacements need be on the device; more
than 64 runs (a run a channel, as in ``interleaved_offsets``) are read from a table, sent along with every call.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from starshift.ops._triton import cdiv, channels_last, config, image_layout, launch
from starshift.ops._triton_parts import index_type
from starshift.ops.shift.offsets import Offsets, merge_runs, per_channel, unflatten

MOST_RUNS = 64
CONFIGS = [
    config(4, 1, BLOCK_P=32, BLOCK_C=32),
    config(4, 1, BLOCK_P=32, BLOCK_C=64),
    config(4, 1, BLOCK_P=16, BLOCK_C=128),
    config(4, 1, BLOCK_P=64, BLOCK_C=64),
    config(8, 1, BLOCK_P=64, BLOCK_C=128),
]


@triton.jit
def displacement(c, table, C: tl.constexpr, RUNS: tl.constexpr, COUNT: tl.constexpr, TOGETHER: tl.constexpr):
    """(dy, dx) of channels c. The compiler sees that TOGETHER neighbours move alike, and reads them as one word."""
    first = c // TOGETHER * TOGETHER
    if COUNT == 0:
        packed = tl.load(table + first, mask=first < C, other=0)
    else:
        packed = tl.zeros_like(c) + RUNS[1]
        for i in tl.static_range(1, COUNT):
            packed = tl.where(first >= RUNS[2 * i], RUNS[2 * i + 1], packed)
    return packed >> 16, (packed << 16) >> 16


@triton.jit
def _shift2d(
    x,
    out,
    table,
    pixels,
    height,
    width,
    C: tl.constexpr,
    RUNS: tl.constexpr,
    COUNT: tl.constexpr,
    TOGETHER: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    dy, dx = displacement(c, table, C, RUNS, COUNT, TOGETHER)
    row = (p // width % height)[:, None] + dy[None, :]
    column = (p % width)[:, None] + dx[None, :]
    here = (p < pixels)[:, None] & (c < C)[None, :]
    inside = here & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    at = (p.to(INDEX) * C)[:, None] + c[None, :]
    moved = (dy * width + dx).to(INDEX) * C
    tl.store(out + at, tl.load(x + at + moved[None, :], mask=inside, other=0), mask=here)


def shift2d(x: Tensor, offsets: list[int]) -> Tensor:
    n, channels, height, width = x.shape
    moved = channels_last(x)
    out = torch.empty_like(moved)
    pixels = n * height * width
    if out.numel():
        launch(
            _shift2d,
            CONFIGS,
            lambda b: (cdiv(pixels, b["BLOCK_P"]), cdiv(channels, b["BLOCK_C"])),
            (pixels.bit_length(), height, width, channels, x.dtype, tuple(offsets)),
            x.device,
            x=moved,
            out=out,
            pixels=pixels,
            height=height,
            width=width,
            C=channels,
            INDEX=index_type(x),
            **runs(offsets, height, width, x.device),
        )
    return out.contiguous(memory_format=image_layout(x))


def runs(offsets: list[int], height: int, width: int, device: torch.device) -> dict[str, Any]:
    """What :func:`displacement` needs: runs as constants of the kernel, or many runs as a table on the device."""
    arguments, table = _runs(tuple(offsets), height, width, device.type)
    return {**arguments, "table": None if table is None else table.to(device, non_blocking=True)}


@lru_cache(maxsize=1024)
def _runs(offsets: tuple[int, ...], height: int, width: int, kind: str) -> tuple[dict[str, Any], Tensor | None]:
    """A table stays on the host, in pinned memory: a device tensor kept from call to call could lie in memory that
    belongs to a CUDA graph, and a copy from pinned memory needs no synchronisation and can be recorded.
    """
    merged = merge_runs(tuple((n, _clamp(dy, height), _clamp(dx, width)) for n, dy, dx in unflatten(list(offsets))))
    starts = [sum(n for n, _, _ in merged[:i]) for i in range(len(merged))]
    constants: dict[str, Any] = {"TOGETHER": gcd(16, *starts)}
    if len(merged) <= MOST_RUNS:
        packed = [value for start, (_, dy, dx) in zip(starts, merged, strict=True) for value in (start, _pack(dy, dx))]
        return {**constants, "RUNS": tuple(packed), "COUNT": len(merged)}, None
    table = _table(merged)
    return {**constants, "RUNS": (), "COUNT": 0}, table.pin_memory() if kind == "cuda" else table


def _table(offsets: Offsets) -> Tensor:
    return torch.tensor([_pack(dy, dx) for dy, dx in per_channel(offsets)], dtype=torch.int32)


def _clamp(value: int, size: int) -> int:
    """Beyond the image is beyond the image."""
    return max(-size, min(size, value))


def _pack(dy: int, dx: int) -> int:
    """Both displacements in an int32."""
    return dy * 65536 + (dx & 0xFFFF)
