# SPDX-License-Identifier: Apache-2.0
"""The compiled depthwise convolution: the two operators, and the functions that fused layers build on. x_NCHW.

Tensors are channels last and all of one dtype, float32 or bfloat16. A :class:`Source` lets what stands before the
convolution be computed as it reads; ``residual``, ``sample_scale`` and the sums do the same for what stands after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from starshift.ops import _native
from starshift.ops._native import Source
from starshift.ops.depthwise import _depthwise_conv2d, _depthwise_conv2d_backward

LAST = torch.channels_last


class Geometry(NamedTuple):
    """Stride, padding and dilation, each (vertical, horizontal)."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """(Hout, Wout) for an input of (H, W)."""
        height, width = (
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        return height, width


def pack(dtype: torch.dtype, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The weights as :func:`forward` reads them for tensors of ``dtype``: for many calls with the same."""
    sizes = _native.DTYPES[dtype], _sizes((1, weight.shape[0], 1, 1), (0, 0, 0, 0), weight, geometry)
    count, run = _packing
    packed = _native.empty(count(*sizes))
    run(*sizes, *_native.float32(weight, bias), packed)
    return packed


def forward(
    x: Source,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    *,
    residual: Tensor | None = None,
    sample_scale: Tensor | None = None,
    center: Tensor | None = None,
    statistics: bool = False,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``residual + sample_scale[n] * v`` with ``v = conv(x) + bias``; with ``statistics`` also sums of v over n, h, w.

    Args:
        x: (N, C, H, W). weight: (C, 1, kh, kw). bias: (C,) or None. residual: like the output, or None.
        sample_scale: (N,) float32, or None for ones. center: (C,) float32, or None for zeros.
        packed: what :func:`pack` made of weight and bias; None: it is called.

    Returns:
        The output, and (2, C) float64: the sums of ``v - center`` and of its square.
    """
    n, c, h, w = x.tensor.shape
    out_h, out_w = geometry.output_size((h, w), weight.shape[2:])
    out = _native.empty((n, c, out_h, out_w), dtype=x.tensor.dtype, memory_format=LAST)
    sums = _native.empty((2, c), dtype=torch.float64) if statistics else None
    _forward(
        _native.DTYPES[out.dtype],
        _native.threads(),
        _sizes(x.tensor.shape, out.shape, weight, geometry),
        *x.arguments(),
        pack(out.dtype, weight, bias, geometry) if packed is None else packed,
        out,
        residual,
        sample_scale,
        center,
        sums,
    )
    return out, sums


def backward(
    grad: Source,
    x: Source,
    weight: Tensor,
    geometry: Geometry,
    *,
    residual: Tensor | None = None,
    partner: Tensor | None = None,
    center: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias in one pass over ``grad``; with ``partner`` also sums of the first.

    Args:
        grad: (N, C, Hout, Wout). x: (N, C, H, W). residual: like x, added to its gradient. partner: like x, what batch
            norm read to give x. center: (C,) float32, or None for zeros.

    Returns:
        ``gx``; the weight's and the bias's gradients in float32; and (2, C) float64: the sums of ``gx`` and
        ``gx * (partner - center)``.
    """
    gx = torch.empty_like(x.tensor)
    gw, gb = _native.empty(weight.shape), _native.empty(weight.shape[0])
    sums = None if partner is None else _native.empty((2, weight.shape[0]), dtype=torch.float64)
    _backward(
        _native.DTYPES[gx.dtype],
        _native.threads(),
        _sizes(gx.shape, grad.tensor.shape, weight, geometry),
        *grad.arguments(),
        *x.arguments(),
        *_native.float32(weight),
        gx,
        residual,
        None,
        partner,
        center,
        sums,
        gw,
        gb,
    )
    return gx, gw, gb, sums


def _sizes(x: Sequence[int], out: Sequence[int], weight: Tensor, geometry: Geometry) -> tuple[int, ...]:
    stride, padding, dilation = geometry
    return (*x, out[2], out[3], *weight.shape[2:], *stride, *padding, *dilation)


def _is_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=LAST)


def _supports(x: Tensor, *others: Tensor | None) -> bool:
    return (
        x.dtype in _native.DTYPES
        and x.is_contiguous() | x.is_contiguous(memory_format=LAST)
        and all(o is None or o.dtype == x.dtype for o in others)
    )


def _supports_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    geometry = Geometry(stride, padding, dilation)
    return (
        _supports(x, weight, bias)
        and min(x.shape[1:]) > 0
        and min(*stride, *dilation, *weight.shape) > 0
        and min(padding) >= 0
        and min(geometry.output_size(x.shape[2:], weight.shape[2:])) > 0
    )


def _run_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    geometry = Geometry(stride, padding, dilation)
    out, _ = forward(Source(x.contiguous(memory_format=LAST)), weight, bias, geometry)
    return out if _is_last(x) else out.contiguous()


def _supports_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    return grad.dtype == x.dtype and _supports_forward(x, weight, None, stride, padding, dilation)


def _run_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = Geometry(stride, padding, dilation)
    layout = LAST if _is_last(x) else torch.contiguous_format
    at_out, at_x = Source(grad.contiguous(memory_format=LAST)), Source(x.contiguous(memory_format=LAST))
    gx, gw, gb, _ = backward(at_out, at_x, weight, geometry)
    dtype = weight.dtype
    return gx.contiguous(memory_format=layout), gw.to(dtype).contiguous(memory_format=layout), gb.to(dtype)


if _native.available():
    _SOURCE = "pppppp"
    _packing = (
        _native.function("starshift_depthwise_packed_floats", "ia", counts=True),
        _native.function("starshift_depthwise_pack_for", "iappp"),
    )
    _forward = _native.function("starshift_depthwise_forward", "iia" + _SOURCE + "pppppp")
    _backward = _native.function("starshift_depthwise_backward", "iia" + 2 * _SOURCE + "ppppppppp")
    _depthwise_conv2d.add_kernel("native", "cpu", _run_forward, _supports_forward)
    _depthwise_conv2d_backward.add_kernel("native", "cpu", _run_backward, _supports_backward)
