# SPDX-License-Identifier: Apache-2.0
"""A dense convolution, bias and activation in inference, the weights laid out once for many calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from starshift.errors import StarshiftError
from starshift.ops import _native
from starshift.ops.depthwise.cpu import Geometry
from starshift.ops.star.reference import ACTIVATION_CODES


@cache
def _functions() -> tuple[Any, Any, Any]:
    return (
        _native.function("starshift_conv_packed_floats", "ia", counts=True),
        _native.function("starshift_conv_pack_for", "iappp"),
        _native.function("starshift_conv_forward", "iiappip"),
    )


def pack(dtype: torch.dtype, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weight (Cout, C, kh, kw) and bias as the kernel reads them for tensors of ``dtype``, whatever stride and padding
    are."""
    out_channels, channels, *kernel = weight.shape
    sizes = _native.DTYPES[dtype], (1, channels, 1, 1, out_channels, 1, 1, *kernel, 1, 1, 0, 0)
    count, run, _ = _functions()
    packed = _native.empty(count(*sizes))
    run(*sizes, *_native.float32(weight, bias), packed)
    return packed


class Prepared:
    """``act(conv(x) + bias)`` for fixed weights; without gradients.

    Args:
        weight: (Cout, C, kh, kw); copied into the kernel's layout. bias: (Cout,) or None.
        stride, padding: (vertical, horizontal).
        act: one of :data:`starshift.ops.ACTIVATIONS`.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], act: str
    ) -> None:
        self.geometry = Geometry(stride, padding, (1, 1))
        self.shape, self.act = tuple(weight.shape), ACTIVATION_CODES[act]
        self.packed = _native.packings(lambda dtype: pack(dtype, weight, bias))

    def __call__(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W), float32 or bfloat16.

        Raises:
            StarshiftError: other channels than the weight's, or an image smaller than the kernel.
        """
        size = self.geometry.output_size(x.shape[2:], self.shape[2:])
        if x.shape[1] != self.shape[1] or min(size) < 1:
            raise StarshiftError(f"a convolution with weights {self.shape} cannot take an input of {tuple(x.shape)}")
        x = x.contiguous(memory_format=torch.channels_last)
        out = _native.empty((x.shape[0], self.shape[0], *size), dtype=x.dtype, memory_format=torch.channels_last)
        packed, sizes = self.packed[x.dtype], self._sizes(x.shape, size)
        _functions()[2](_native.DTYPES[x.dtype], _native.threads(), sizes, x, packed, self.act, out)
        return out

    def _sizes(self, x: Sequence[int], out: Sequence[int]) -> tuple[int, ...]:
        return (*x, self.shape[0], *out, *self.shape[2:], *self.geometry.stride, *self.geometry.padding)
