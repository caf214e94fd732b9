# SPDX-License-Identifier: Apache-2.0
"""Launches Triton kernels: on the tensors' device and current stream, in the fastest of a few configurations.

Which configuration is fastest is measured at the first call for a shape, and remembered in this process and in a file
(``starshift/triton.json`` in the user's cache folder). While a CUDA graph is recorded nothing may be measured: a shape
that has not run before then gets the first configuration.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels read and write. Sums are float32."""
CAPABILITY = (8, 0)
"""The oldest NVIDIA architecture that Triton supports: Ampere."""
MOST_PIXELS = 2**31 - 2**16
"""Kernels count pixels in int32, and a little beyond the last; elements in int64 where they are more."""
REPEATS = 5
HEAD_START = 5_000_000
"""Cycles of the device, about 3 ms."""


@dataclass(frozen=True)
class Config:
    """Block sizes by the kernel's names for them, warps a program, how many loads a loop keeps in flight, and how many
    registers a thread may use, None for as many as there are."""

    warps: int
    stages: int
    blocks: Mapping[str, int] = field(default_factory=dict)
    registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """As Triton's launcher takes them."""
        made = {"num_warps": self.warps, "num_stages": self.stages, **self.blocks}
        return made if self.registers is None else {**made, "maxnreg": self.registers}


def config(warps: int, stages: int, registers: int | None = None, **blocks: int) -> Config:
    """``config(4, 2, BLOCK_C=64)``."""
    return Config(warps, stages, blocks, registers)


@cache
def _load() -> str | None:
    """Why Triton cannot be used; None when it can."""
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA's devices"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    return None


def available() -> bool:
    """Whether there is a CUDA device and Triton imports. Does not initialise the device."""
    return _load() is None


def why_not() -> str | None:
    """Why no Triton kernel runs, in a sentence; None when they do."""
    return _load()


def usable(*tensors: Tensor | None) -> bool:
    """Whether all tensors have a dtype that the kernels know and some elements, on one device that Triton compiles for.

    CPU tensors are: only Triton's interpreter is ever handed them.
    """
    present = [t for t in tensors if t is not None]
    device = present[0].device
    return all(t.dtype in DTYPES and t.device == device and t.numel() > 0 for t in present) and (
        device.type == "cpu" or _capability(device) >= CAPABILITY
    )


@lru_cache(maxsize=64)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@lru_cache(maxsize=64)
def processors(device: torch.device) -> int:
    """How many multiprocessors the device has: what work that can be split at will is split by."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def power_of_two(value: int, least: int = 16) -> int:
    """The smallest power of two that is at least ``value`` and ``least``: block sizes must be powers of two."""
    return max(least, 1 << max(value - 1, 0).bit_length())


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def splits(tasks: int, rows: int, device: torch.device, granule: int, programs: int = 4) -> tuple[int, int]:
    """How a sum over ``rows`` is shared out when ``tasks`` programs share each part: (parts, rows of a part).

    About so many ``programs`` a multiprocessor; a part is a multiple of ``granule`` rows. Depends on shapes and device
    alone, so that sums have one order.
    """
    wanted = max(1, cdiv(programs * processors(device), tasks))
    each = cdiv(cdiv(rows, wanted), granule) * granule
    return max(1, cdiv(rows, each)) if each else 1, max(each, granule)


def precision() -> str:
    """How float32 matrices are multiplied: exactly, unless PyTorch has been allowed TF32."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def channels_last(x: Tensor) -> Tensor:
    """x_NCHW in the kernels' layout: a copy unless it has it already."""
    return x.contiguous(memory_format=torch.channels_last)


def pixel_rows(x: Tensor) -> Tensor:
    """(R, C) of (N, C, H, W), a row a pixel: a view where x is channels last."""
    return channels_last(x).permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()


def rows_as_image(rows: Tensor, x: Tensor, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """(N, C, H, W) of (R, C), with the images and pixels of x."""
    n, _, height, width = x.shape
    return rows.view(n, height, width, rows.shape[1]).permute(0, 3, 1, 2).contiguous(memory_format=layout)


def image_layout(*tensors: Tensor) -> torch.memory_format:
    """The layout in which PyTorch's convolution returns: channels last if any of the tensors is."""
    last = any(is_channels_last(t) for t in tensors)
    return torch.channels_last if last else torch.contiguous_format


def is_channels_last(x: Tensor) -> bool:
    """Whether PyTorch takes the tensor for channels last: by its strides, and where they leave it open, it does not."""
    return torch._prims_common.suggest_memory_format(x) == torch.channels_last


def launch(
    kernel: Any,
    configs: Sequence[Config],
    grid: Callable[[Mapping[str, int]], tuple[int, ...]],
    key: Sequence[Any],
    device: torch.device,
    fallback: Config | None = None,
    **arguments: Any,
) -> None:
    """Run ``kernel`` on ``grid(blocks)`` programs in the configuration that suits ``key`` best.

    Args:
        kernel: a ``triton.jit`` function. It only writes its outputs, so that it may run several times.
        configs: to choose from.
        grid: numbers of programs, from the configuration's blocks.
        key: what the best configuration depends on: shapes, dtypes.
        device: of the tensors.
        fallback: what fits every device, where ``configs`` may not.
        arguments: the kernel's arguments by name.
    """

    if device.type != "cuda":
        choice = fallback or configs[0]
        kernel[grid(choice.blocks)](**arguments, **choice.options)
    elif device.index == torch.cuda.current_device():
        _launch(kernel, configs, fallback or configs[0], grid, key, device, arguments)
    else:
        with torch.cuda.device(device):
            _launch(kernel, configs, fallback or configs[0], grid, key, device, arguments)


def _launch(
    kernel: Any,
    configs: Sequence[Config],
    fallback: Config,
    grid: Callable[[Mapping[str, int]], tuple[int, ...]],
    key: Sequence[Any],
    device: torch.device,
    arguments: dict[str, Any],
) -> None:
    def run(choice: Config) -> None:
        _run(kernel, choice, grid(choice.blocks), device, arguments)

    if len(configs) == 1:
        run(configs[0])
        return
    quick = (id(kernel), device.index, *key)
    choice = _quick.get(quick)
    if choice is None:
        choice = _choose(kernel, configs, fallback, key, device, run)
        if not torch.cuda.is_current_stream_capturing():
            _quick[quick] = choice
    run(choice)


def _run(
    kernel: Any, choice: Config, grid: tuple[int, ...], device: torch.device, arguments: Mapping[str, Any]
) -> None:
    """What ``kernel[grid](...)`` does, without its bookkeeping, which takes longer than a small kernel: a kernel
    compiled once is found by its arguments' types and alignment and by the numbers among them."""
    values = [arguments[n] if n in arguments else choice.blocks[n] for n in kernel.arg_names]
    kinds = [(v.dtype, v.data_ptr() % 16) if isinstance(v, Tensor) else v for v in values]
    known = (id(kernel), device.index, choice.warps, choice.stages, choice.registers, *kinds)
    compiled = _compiled.get(known)
    if compiled is None:
        _compiled[known] = kernel[grid](**arguments, **choice.options)
    else:
        compiled[(*grid, 1, 1)[:3]](*values)


_chosen: dict[str, Config] = {}
_quick: dict[tuple[Any, ...], Config] = {}
_compiled: dict[tuple[Any, ...], Any] = {}


def _choose(
    kernel: Any,
    configs: Sequence[Config],
    fallback: Config,
    key: Sequence[Any],
    device: torch.device,
    run: Callable[[Config], None],
) -> Config:
    import triton

    name = "|".join([torch.cuda.get_device_name(device), triton.__version__, kernel.fn.__qualname__, *map(str, key)])
    if name in _chosen:
        return _chosen[name]
    if torch.cuda.is_current_stream_capturing():
        return fallback
    stored = read_cache(cache_file()).get(name)
    known = [c for c in (*configs, fallback) if _as_json(c) == stored]
    if known:
        _chosen[name] = known[0]
    else:
        too_big = triton.runtime.errors.OutOfResources
        _chosen[name] = fastest(configs, run, _milliseconds, too_big) or fallback
        write_cache(cache_file(), name, _as_json(_chosen[name]))
    return _chosen[name]


def fastest(
    configs: Sequence[Config],
    run: Callable[[Config], None],
    milliseconds: Callable[[Callable[[], None]], float],
    too_big: type[Exception],
) -> Config | None:
    """The configuration that takes the least time; those that need more memory than a multiprocessor has are left out.
    None if all do."""
    times: dict[int, float] = {}
    for index, choice in enumerate(configs):
        try:
            times[index] = milliseconds(lambda choice=choice: run(choice))  # type: ignore[misc]
        except too_big:
            continue
    return configs[min(times, key=lambda index: times[index])] if times else None


def _milliseconds(run: Callable[[], None]) -> float:
    run()  # compiles
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPEATS)]
    torch.cuda._sleep(HEAD_START)  # so that all is queued before the first begins, and launching is not what is timed
    for start, end in events:
        start.record()
        run()
        end.record()
    events[-1][1].synchronize()
    return min(start.elapsed_time(end) for start, end in events)


def _as_json(choice: Config) -> dict[str, Any]:
    made: dict[str, Any] = {"warps": choice.warps, "stages": choice.stages, "blocks": dict(choice.blocks)}
    return made if choice.registers is None else {**made, "registers": choice.registers}


def cache_file() -> Path:
    """Where choices are remembered: in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "starshift" / "triton.json"


def read_cache(path: Path) -> dict[str, Any]:
    """The choices in the file; none, with a warning, if it cannot be read."""
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} cannot be read ({error}): kernels are tuned again", stacklevel=2)
        return {}
    if not isinstance(stored, dict):
        warnings.warn(f"{path} is not a table of choices: kernels are tuned again", stacklevel=2)
        return {}
    return stored


def write_cache(path: Path, name: str, choice: dict[str, Any]) -> None:
    """Add one choice. The file is replaced as a whole, so that no reader sees half of it; a warning if it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**read_cache(path), name: choice}, indent=1, sort_keys=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error}): kernels are tuned again next time", stacklevel=2)
