# SPDX-License-Identifier: Apache-2.0
"""What this machine can give at most, measured: multiply-adds on registers, and bytes copied."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from starshift.errors import StarshiftError
from starshift.ops import _native

DEVICES = ("cpu", "cuda")
ROUNDS = 20  # the best counts: a ceiling is what was reached once
OPERATIONS = 200_000_000  # of a round and thread
FLOATS = 1 << 25  # 128 MiB: past every cache
GPU_SIDE = 8192  # of the matrices
GPU_BYTES = 1 << 30
SGEMM = 1024  # side of the matrices, where there are no compiled kernels


@dataclass(frozen=True)
class Ceiling:
    """Operations (a multiply-add is two) and bytes (read and written) a second, in 1e9."""

    gflops: float
    gbs: float


def require_device(device: str) -> None:
    """Raise StarshiftError unless this is one of :data:`DEVICES`, and here."""
    if device not in DEVICES:
        raise StarshiftError(f"device is one of {', '.join(DEVICES)}, not '{device}'")
    if device == "cuda" and not torch.cuda.is_available():
        raise StarshiftError("PyTorch finds no CUDA device here: use --device cpu")


@cache
def ceiling(threads: int, dtype: torch.dtype = torch.float32) -> Ceiling:
    """Measure this machine on this many threads, once a process.

    Arithmetic is that of the instruction set the kernels run on, as it multiplies tensors of ``dtype``; without
    compiled kernels a matrix product in float32 stands in for it, which reaches less.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return Ceiling(_arithmetic(threads, dtype) / 1e9, _copying() / 1e9)
    finally:
        torch.set_num_threads(before)


@cache
def gpu_ceiling(dtype: torch.dtype) -> Ceiling:
    """Of the current CUDA device: a matrix product of ``dtype`` by the library, and a copy."""
    a, b = (torch.randn(GPU_SIDE, GPU_SIDE, device="cuda", dtype=dtype) for _ in range(2))
    x = torch.empty(GPU_BYTES, device="cuda", dtype=torch.uint8)
    y = torch.empty_like(x)

    def waited(work: Callable[[], object]) -> Callable[[], object]:
        def both() -> None:
            work()
            torch.cuda.synchronize()

        return both

    operations = 2 * GPU_SIDE**3 / _best(waited(lambda: a @ b))
    return Ceiling(operations / 1e9, 2 * GPU_BYTES / _best(waited(lambda: y.copy_(x))) / 1e9)


def _arithmetic(threads: int, dtype: torch.dtype) -> float:
    if _native.available():
        peak = _native.function("starshift_peak_operations", "ipii")
        out = torch.zeros(threads)
        return threads * OPERATIONS / _best(lambda: peak(_native.DTYPES[dtype], out, OPERATIONS, threads))
    a, b = torch.randn(SGEMM, SGEMM), torch.randn(SGEMM, SGEMM)
    return 2 * SGEMM**3 / _best(lambda: a @ b)


def _copying() -> float:
    x = torch.zeros(FLOATS)
    y = torch.zeros(FLOATS)
    return 2 * 4 * FLOATS / _best(lambda: y.copy_(x))


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of :data:`ROUNDS`."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
