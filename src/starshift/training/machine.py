# SPDX-License-Identifier: Apache-2.0
"""The machine a run is on: its device, its data workers and its memory allocator."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from starshift.errors import StarshiftError
from starshift.machine import cores
from starshift.ops import OPERATORS, _native
from starshift.training.config import TrainConfig

_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "_alloc_failed")  # in PyTorch's words
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next allocation instead of giving its pages back; True if it agreed.

    Eager PyTorch on a CPU frees and allocates the same tens of megabytes at every step. With glibc's defaults each
    allocation then faults its pages in anew, which costs about a tenth of a training step. Linux with glibc only.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    largest = 2**31 - 1
    return bool(mallopt(_MMAP_THRESHOLD, largest)) and bool(mallopt(_TRIM_THRESHOLD, largest))


@contextmanager
def memory_errors(config: TrainConfig, checkpoint: Path, loaders: Sequence[DataLoader]) -> Iterator[None]:
    """Turn the end of the memory, and of a data worker (which mostly is the same), into a StarshiftError that says what
    to do and which checkpoint is kept."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError, EOFError) as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        batch = f"a smaller --batch-size (now {config.batch_size})"
        if reason.startswith("DataLoader worker") or any(_lost_worker(loader) for loader in loaders):
            what = "a process that reads images was killed, as happens where the memory is used up"
            advice = f"take fewer --workers (0: none), or {batch}"
        elif isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
            what = "out of memory"
            advice = f"take {batch}, with --set grad_accum_steps=N for as many images an update, or fewer --workers"
        else:
            raise
        message = f"{what}: {advice}."
        if checkpoint.is_file():
            message += (
                f" {checkpoint} is kept: --resume goes on there with the same batch, --checkpoint starts anew from it."
            )
        raise StarshiftError(f"{message} ({reason})") from error


def _lost_worker(loader: DataLoader) -> bool:
    """Whether a worker is no more; the connection to it breaks a moment before."""
    workers = getattr(loader._iterator, "_workers", ())
    for worker in workers:
        worker.join(0.1)
    return any(worker.exitcode for worker in workers)


def process_rank() -> int:
    """Which of the processes of a distributed run on this machine this is; 0 where there is one."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def choose_devices(devices: str) -> tuple[str, int]:
    """The setting ``devices`` as Lightning's accelerator and number of devices.

    Raises:
        StarshiftError: a device that is not there, or a setting that means none.
    """
    if devices == "auto":
        devices = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name, _, number = devices.partition(":")
    if name.isdigit():
        name, number = "cuda", name
    number = number or "1"
    if name not in ("cpu", "cuda", "mps") or not number.isdigit() or int(number) < 1:
        raise StarshiftError(f"devices is auto, cpu, cuda, mps or a number of GPUs, not {devices!r}")
    count = int(number)
    if name == "cuda" and devices.startswith("cuda:"):
        raise StarshiftError(
            f"devices: {devices} may mean a card or a number of them; give the number alone (--devices {count}), "
            f"or choose a card with CUDA_VISIBLE_DEVICES={count} and --devices cuda"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise StarshiftError("devices: mps was asked for, but PyTorch finds no Apple GPU here; use --devices cpu")
    if name == "cuda" and torch.cuda.device_count() < count:
        there = torch.cuda.device_count()
        raise StarshiftError(
            f"devices: {count} GPU(s) asked for, PyTorch finds {there} here; use --devices cpu or auto"
        )
    return name, count


def device_name(accelerator: str, count: int) -> str:
    """As shown to people: ``cpu (2 threads)``, ``NVIDIA H200``, ``4 x NVIDIA H200``."""
    if accelerator == "cuda":
        name = torch.cuda.get_device_name(0)
    else:
        threads = torch.get_num_threads()
        name = f"cpu ({threads} thread{'s' if threads > 1 else ''})" if accelerator == "cpu" else accelerator
    return name if count == 1 else f"{count} x {name}"


def kernels_name(accelerator: str, wanted: bool) -> str:
    """Which kernels run on this device, as shown to people: ``avx2, 2 threads``, ``triton``; or why none do."""
    if not wanted:
        return "none, as asked: plain PyTorch"
    if accelerator == "cpu":
        if not _native.available():
            return f"none, plain PyTorch: {_native.why_not()}"
        threads = _native.threads()
        return f"{_native.instruction_set()}, {threads} thread{'s' if threads > 1 else ''}"
    names = sorted({k.name for operator in OPERATORS.values() for k in operator.kernels if k.device == accelerator})
    if not names:
        return f"none for {accelerator}: plain PyTorch"
    return f"{', '.join(names)} (a network's first step compiles them: a minute or more, later runs find them)"


def choose_workers(workers: int | None, accelerator: str, count: int, in_memory: bool) -> int:
    """Data workers for each process, where the setting leaves the choice.

    A GPU is fed by up to 8. On a CPU they take cores from the network: none for images already in memory, and for files
    one where there are two cores, at most a quarter of many.
    """
    if workers is not None:
        return workers
    if in_memory:
        return 0
    if accelerator != "cpu":
        return max(1, min(8, cores() // count))
    return 0 if cores() == 1 else max(1, min(4, cores() // 4))
