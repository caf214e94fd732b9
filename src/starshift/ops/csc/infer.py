# SPDX-License-Identifier: Apache-2.0
"""A conv-shift-conv module in inference, its norms folded away and its weights laid out once for many calls."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from starshift.ops import _native
from starshift.ops.conv import infer as conv
from starshift.ops.shift.offsets import Offsets, flatten


@cache
def _functions() -> tuple[Any, Any, Any]:
    return (
        _native.function("starshift_csc_packed_floats", "iii", counts=True),
        _native.function("starshift_csc_pack_for", "iiippp"),
        _native.function("starshift_csc_folded", "iiiiiiiii" + "pppp" + "aiip"),
    )


class Prepared:
    """``relu(w2 shift(relu(w1 x + b1)) + b2) + shortcut(x)`` for fixed weights; without gradients.

    Args:
        first: w1 (E, C, 1, 1) and b1. second: w2 (K, E, 1, 1) and b2. They are copied into the kernels' layout.
        offsets: of the shift, see :func:`starshift.ops.shift2d`.
        stride: of the second convolution and of the shortcut.
        shortcut: weight (K, C, 1, 1) and bias; None: x itself.
        after_sum: the second ReLU stands after the sum.
    """

    def __init__(
        self,
        first: tuple[Tensor, Tensor | None],
        second: tuple[Tensor, Tensor | None],
        offsets: Offsets,
        stride: int,
        shortcut: tuple[Tensor, Tensor | None] | None,
        after_sum: bool,
    ) -> None:
        self.middle, self.channels = first[0].shape[:2]
        self.out_channels, self.stride = second[0].shape[0], stride
        self.offsets, self.runs, self.after_sum = _native.array(flatten(offsets)), len(offsets), int(after_sum)
        self.packed = _native.packings(lambda dtype: self._pack(dtype, first, second, shortcut))

    def _pack(
        self,
        dtype: torch.dtype,
        first: tuple[Tensor, Tensor | None],
        second: tuple[Tensor, Tensor | None],
        shortcut: tuple[Tensor, Tensor | None] | None,
    ) -> tuple[Tensor | None, ...]:
        count, pack, _ = _functions()
        sizes = _native.DTYPES[dtype], self.middle, self.out_channels
        packed = _native.empty(count(*sizes))
        pack(*sizes, *_native.float32(*second), packed)
        return conv.pack(dtype, *first), packed, None if shortcut is None else conv.pack(dtype, *shortcut)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W), float32 or bfloat16.

        Raises:
            StarshiftError: other channels than the weights'.
        """
        x = _native.block_input(x, self.channels, "module")
        n, _, h, w = x.shape
        size = (n, self.out_channels, -(-h // self.stride), -(-w // self.stride))
        out = _native.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        _functions()[2](
            *(_native.DTYPES[x.dtype], _native.threads(), *x.shape, self.middle, self.out_channels, self.stride, x),
            *(*self.packed[x.dtype], self.offsets, self.runs, self.after_sum, out),
        )
        return out
