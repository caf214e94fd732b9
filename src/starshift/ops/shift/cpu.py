# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels of the shift: alone, and with the 1x1 convolution after it.

A result has the layout that the reference gives it, which follows its inputs' layouts.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from starshift.ops import _native
from starshift.ops._native import DTYPES, conv_layout, float32
from starshift.ops.shift import _shift2d, _shift_conv2d, _shift_conv2d_backward

LAST = torch.channels_last


@cache
def _functions() -> Any:
    return (
        _native.function("starshift_shift2d", "iiiiiipaipi"),
        _native.function("starshift_shift_conv2d_forward", "iiiiiiipppaipi"),
        _native.function("starshift_shift_conv2d_backward", "iiiiiiipppaipppi"),
    )


def _shift_supported(x: Tensor, offsets: list[int]) -> bool:
    return x.numel() > 0 and x.element_size() in (2, 4) and not x.is_complex()


def _run_shift(x: Tensor, offsets: list[int]) -> Tensor:
    layout = suggest_memory_format(x)
    x = x.contiguous(memory_format=layout)
    out = torch.empty_like(x)
    _functions()[0](
        *(x.element_size(), layout == LAST, *x.shape, x, offsets, len(offsets) // 3, out, _native.threads())
    )
    return out


def _conv_supported(x: Tensor, weight: Tensor, bias: Tensor | None, offsets: list[int], stride: int) -> bool:
    same = all(t is None or t.dtype == x.dtype for t in (weight, bias))
    return same and x.dtype in DTYPES and x.numel() > 0 and weight.numel() > 0


def _run_conv(x: Tensor, weight: Tensor, bias: Tensor | None, offsets: list[int], stride: int) -> Tensor:
    layout = conv_layout(x, weight)
    n, c, h, w = x.shape
    size = (n, weight.shape[0], -(-h // stride), -(-w // stride))
    out = _native.empty(size, dtype=x.dtype, memory_format=LAST)
    _functions()[1](
        *(DTYPES[x.dtype], n, c, h, w, weight.shape[0], stride, x.contiguous(memory_format=LAST)),
        *(*float32(weight, bias), offsets, len(offsets) // 3, out, _native.threads()),
    )
    return out.contiguous(memory_format=layout)


def _backward_supported(grad: Tensor, x: Tensor, weight: Tensor, offsets: list[int], stride: int) -> bool:
    return grad.dtype == x.dtype and _conv_supported(x, weight, None, offsets, stride)


def _run_backward(
    grad: Tensor, x: Tensor, weight: Tensor, offsets: list[int], stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    layout = conv_layout(x, weight)
    x = x.contiguous(memory_format=LAST)
    gx = _native.empty(x.shape, dtype=x.dtype, memory_format=LAST)
    gw = _native.empty(weight.shape, memory_format=layout)
    gb = _native.empty(weight.shape[0])
    _functions()[2](
        *(DTYPES[x.dtype], *x.shape, weight.shape[0], stride, grad.contiguous(memory_format=LAST), x),
        *(*float32(weight), offsets, len(offsets) // 3, gx, gw, gb, _native.threads()),
    )
    return gx.contiguous(memory_format=layout), gw.to(weight.dtype), gb.to(weight.dtype)


if _native.available():
    _shift2d.add_kernel("native", "cpu", _run_shift, _shift_supported)
    _shift_conv2d.add_kernel("native", "cpu", _run_conv, _conv_supported)
    _shift_conv2d_backward.add_kernel("native", "cpu", _run_backward, _backward_supported)
