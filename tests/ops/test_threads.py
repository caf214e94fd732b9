# SPDX-License-Identifier: Apache-2.0
"""Kernels use the threads that torch says, and for one number of threads they give the same bits every time."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import starshift.ops
from starshift.layers import StarBlock
from starshift.ops import OPERATORS, _native, use_kernel
from starshift.ops._operator import NATIVE

pytestmark = pytest.mark.skipif(not _native.available(), reason="no compiled kernels here")
CASES = {
    name: next(case for case in cases if case.name != "empty")
    for folder in (m.name for m in pkgutil.iter_modules(starshift.ops.__path__) if m.ispkg)
    for name, cases in import_module(f"starshift.ops.{folder}.cases").CASES.items()
    if cases and any(kernel.name == NATIVE for kernel in OPERATORS[name].kernels)
}
SIZE = 64  # pixels: enough work that two threads would share it


def results(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Output and gradients of the operator's first case, with images made larger."""
    case, generator = CASES[name], torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor | None] = {}
    for key, shape in case.tensors.items():
        if shape is not None and len(shape) == 4 and key.startswith("x"):
            shape = (*shape[:2], SIZE, SIZE)
        tensor = None if shape is None else torch.randn(shape, generator=generator).to(dtype)
        if tensor is not None and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        tensors[key] = None if tensor is None else tensor.requires_grad_()
    present = [t for t in tensors.values() if t is not None]
    with use_kernel(NATIVE):
        output = getattr(starshift.ops, name)(**tensors, **case.options)
        output = output[0] if isinstance(output, tuple) else output
        return [output.detach(), *torch.autograd.grad(output.square().sum(), present)]


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_equal_bits_every_time(name: str, count: int, dtype: torch.dtype, threads: Any) -> None:
    threads(count)
    first = results(name, dtype)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, results(name, dtype), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_equal_bits_of_a_star_block(count: int, dtype: torch.dtype, threads: Any) -> None:
    threads(count)
    block = StarBlock(24)

    def step() -> list[Tensor]:
        x = torch.randn(2, 24, 56, 56, generator=torch.Generator().manual_seed(0)).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        with use_kernel(NATIVE), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = block(x)
        return [output, *torch.autograd.grad(output.float().square().sum(), [x, *block.parameters()])]

    first = step()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, step(), strict=True))


def test_a_kernel_uses_as_many_threads_as_torch(threads: Any) -> None:
    peak = _native.function("starshift_peak_operations", "ipii")
    for count in (1, 2, 3):
        threads(count)
        used = torch.full((4,), -1.0)
        peak(0, used, 1000, _native.threads())
        assert (used != -1).sum() == count


class Threads(Dataset):
    """What a data worker sees: threads that a kernel may use, and those of its process after one has run."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        tasks = Path("/proc/self/task")
        count = len(list(tasks.iterdir())) if tasks.exists() else 0
        for name in CASES:
            results(name)
        more = len(list(tasks.iterdir())) if tasks.exists() else 0
        return _native.threads(), count, more


def test_one_thread_inside_a_data_worker(threads: Any) -> None:
    threads(2)
    for name in CASES:
        results(name)  # the parent's threads have started when the worker is forked
    for allowed, before, after in DataLoader(Threads(), batch_size=None, num_workers=1):
        assert allowed == 1 and after - before <= 1, "autograd may start one of its own"
