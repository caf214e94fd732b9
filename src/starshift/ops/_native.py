# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled kernels that fit this machine, and remembers why it could not.

The libraries have a C interface: pointers, sizes and strides. ``function("name", ...)`` gives a callable that takes
tensors (as pointers; None as a null pointer), integers and floats.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from starshift.errors import StarshiftError
from starshift.machine import is_amd

FOLDER = Path(__file__).parent.parent
CHOICES = ("avx512_bf16", "avx512", "avx2", "generic")
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Storage types that the kernels read and write, by the code that they know them by. Sums are float32."""


def _choices() -> tuple[str, ...]:
    """Best first, by what torch found this machine to have (it looks at the processor and at ATEN_CPU_CAPABILITY).

    Products of bfloat16 pairs are added up at twice the rate of float32 on AMD's processors, on Intel's at the same.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512":
        return CHOICES[0 if torch.cpu._is_avx512_bf16_supported() and is_amd() else 1 :]
    return CHOICES[2:] if capability == "AVX2" else CHOICES[3:]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library and its instruction set; or None and the reason."""
    reason = "they were not built: install again where a C++ compiler (g++ or clang++) is found"
    for name in _choices():
        path = FOLDER / f"_kernels_{name}.so"
        if not path.is_file():
            continue
        try:
            return ctypes.CDLL(str(path)), name
        except OSError as error:
            reason = f"{path.name} cannot be loaded: {error}"
    return None, reason


def available() -> bool:
    """Whether compiled kernels are loaded."""
    return _load()[0] is not None


def instruction_set() -> str | None:
    """``avx512_bf16`` (with sums of products of bfloat16 pairs), ``avx512``, ``avx2`` or ``generic`` (NEON on 64-bit
    Arm, SSE2 on x86); None without kernels."""
    return _load()[1] if available() else None


def multiplies_pairs() -> bool:
    """Whether products of tensors in bfloat16 take pairs of it (``ops/native/units.h``)."""
    return instruction_set() == CHOICES[0]


def packings(pack: Callable[[torch.dtype], Any]) -> dict[torch.dtype, Any]:
    """What ``pack`` makes of weights for each dtype of tensors; one and the same where all products are of floats."""
    floats = pack(torch.float32)
    return {dtype: pack(dtype) if dtype == torch.bfloat16 and multiplies_pairs() else floats for dtype in DTYPES}


def why_not() -> str | None:
    """Why no compiled kernel runs, in a sentence; None when they do."""
    return None if available() else _load()[1]


def function(name: str, arguments: str, counts: bool = False) -> Callable[..., Any]:
    """The C function of this name; ``arguments`` has one letter each: ``p`` tensor or None, ``i`` int64, ``f`` float,
    ``a`` sequence of int64. It returns nothing, or with ``counts`` a number.

    Raises:
        StarshiftError: the library was built from older sources, which had no such function.
    """
    library = _load()[0]
    assert library is not None
    native = getattr(library, name, None)
    if native is None:
        raise StarshiftError(
            f"the compiled kernels are older than the code ({name} is missing): build them again with "
            "'make kernels', or install again"
        )
    kinds = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float, "a": ctypes.c_void_p}
    native.argtypes = [kinds[letter] for letter in arguments]
    native.restype = ctypes.c_int64 if counts else None

    def call(*values: Any) -> Any:
        return native(*[value if type(value) is int else _convert(value) for value in values])

    return call


def _convert(value: Tensor | Sequence[int] | int | float | None) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return array(value) if isinstance(value, list | tuple) else value


def array(values: Sequence[int]) -> Any:
    """What becomes of a sequence, made once for many calls."""
    return (ctypes.c_int64 * len(values))(*values)


def threads() -> int:
    """How many threads a kernel may use: what ``torch.set_num_threads`` says."""
    return torch.get_num_threads()


def empty(*size: Any, **options: Any) -> Tensor:
    """Memory that a kernel fills: float32 unless ``dtype`` says otherwise, and never what PyTorch's defaults say."""
    return torch.empty(*size, **{"dtype": torch.float32, "device": "cpu", **options})


def float32(*weights: Tensor | None) -> list[Tensor | None]:
    """Weights as kernels read them: float32, contiguous; None stays None."""
    return [w if w is None else w.detach().float().contiguous() for w in weights]


def block_input(x: Tensor, channels: int, block: str) -> Tensor:
    """What a block in inference reads: x with its channels last in memory.

    Raises:
        StarshiftError: x has other channels.
    """
    if x.shape[1] != channels:
        raise StarshiftError(f"a {block} of {channels} channels cannot take an input of {tuple(x.shape)}")
    return x.contiguous(memory_format=torch.channels_last)


def conv_layout(*tensors: Tensor) -> torch.memory_format:
    """Of a convolution's results: channels last where an operand is."""
    last = torch.channels_last
    return last if last in map(suggest_memory_format, tensors) else torch.contiguous_format


@dataclass(frozen=True)
class Source:
    """A tensor as a kernel reads it: ``sample_scale[n] * (scale[c] * tensor + other_scale[c] * other + shift[c])``.

    Batch norm (scale and shift) and its gradient (with the other tensor) need no pass of their own this way. Outside
    the image it is zero. ``tensor`` and ``other`` are of one dtype, channels last; the rest is float32; None leaves
    out.
    """

    tensor: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    other: Tensor | None = None
    other_scale: Tensor | None = None
    sample_scale: Tensor | None = None

    def arguments(self) -> tuple[Tensor | None, ...]:
        """In the order in which every C function takes them: six pointers."""
        return self.tensor, self.other, self.scale, self.other_scale, self.shift, self.sample_scale
