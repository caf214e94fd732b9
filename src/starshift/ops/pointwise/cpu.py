# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels of one pointwise convolution, and of two with an activation between."""

from __future__ import annotations

import torch
from torch import Tensor

from starshift.ops import _native, pointwise
from starshift.ops._native import conv_layout, float32
from starshift.ops.pointwise import reference
from starshift.ops.star.reference import ACTIVATION_CODES


def _supports(x: Tensor, *others: Tensor | None) -> bool:
    return (
        x.dtype in _native.DTYPES
        and x.numel() > 0
        and all(t is None or (t.dtype == x.dtype and t.numel() > 0) for t in others)
    )


def _rows(x: Tensor, weight: Tensor) -> Tensor:
    """x as a matrix, one row a pixel."""
    if weight.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return x.reshape(-1, x.shape[-1]).contiguous()


def _like(rows: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Rows of pixels in the form that a convolution of ``x`` has."""
    if weight.dim() != 4:
        return rows.view(*x.shape[:-1], -1)
    out = rows.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)
    return out.contiguous(memory_format=conv_layout(x, weight))


def _sizes(rows: Tensor, w1: Tensor, w2: Tensor) -> tuple[int, ...]:
    return _native.DTYPES[rows.dtype], rows.shape[0], rows.shape[1], w1.shape[0], w2.shape[0]


def _matrix(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], -1)


def _is_torchs(x: Tensor) -> bool:
    """Whether torch's own products are as fast: in float32, and in bfloat16 where oneDNN too multiplies pairs of it."""
    return x.dtype == torch.float32 or _native.multiplies_pairs()


if _native.available():
    _mlp_forward = _native.function("starshift_pointwise_mlp_forward", "iiiiippppp" + "ipi")
    _mlp_backward = _native.function("starshift_pointwise_mlp_backward", "iiiiippppp" + "ipppppi")
    _conv_forward = _native.function("starshift_pointwise_conv2d_forward", "iiiippppi")
    _conv_backward = _native.function("starshift_pointwise_conv2d_backward", "iiiippppppi")

    def run_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if _is_torchs(x):
            return reference.pointwise_conv2d(x, weight, bias)
        rows = _rows(x, weight)
        out = x.new_empty(rows.shape[0], weight.shape[0])
        sizes = (_native.DTYPES[x.dtype], *rows.shape, weight.shape[0])
        _conv_forward(*sizes, rows, *float32(weight, bias), out, _native.threads())
        return _like(out, x, weight)

    def run_conv_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if _is_torchs(x):
            return reference.pointwise_conv2d_backward(grad, x, weight)
        rows, grads = _rows(x, weight), _rows(grad, weight)
        out, weight_grad, bias_grad = (
            torch.empty_like(rows),
            _native.empty(_matrix(weight).shape),
            _native.empty(weight.shape[0]),
        )
        sizes = (_native.DTYPES[x.dtype], *rows.shape, weight.shape[0])
        _conv_backward(*sizes, grads, rows, *float32(weight), out, weight_grad, bias_grad, _native.threads())
        return _like(out, x, weight), weight_grad.view_as(weight).to(weight.dtype), bias_grad.to(weight.dtype)

    def run_mlp(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, act: str) -> Tensor:
        rows = _rows(x, w1)
        out = x.new_empty(rows.shape[0], w2.shape[0])
        _mlp_forward(
            *_sizes(rows, w1, w2), rows, *float32(w1, b1, w2, b2), ACTIVATION_CODES[act], out, _native.threads()
        )
        return _like(out, x, w2)

    def run_mlp_backward(
        grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, act: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        rows, grads = _rows(x, w1), _rows(grad, w2)
        out = torch.empty_like(rows)
        w1_grad, w2_grad = _native.empty(_matrix(w1).shape), _native.empty(_matrix(w2).shape)
        b1_grad, b2_grad = _native.empty(w1.shape[0]), _native.empty(w2.shape[0])
        _mlp_backward(
            *(*_sizes(rows, w1, w2), grads, rows, *float32(w1, b1, w2), ACTIVATION_CODES[act]),
            *(out, w1_grad, b1_grad, w2_grad, b2_grad, _native.threads()),
        )
        grads1 = w1_grad.view_as(w1).to(w1.dtype), b1_grad.to(w1.dtype)
        return _like(out, x, w1), *grads1, w2_grad.view_as(w2).to(w2.dtype), b2_grad.to(w2.dtype)

    pointwise._pointwise_conv2d.add_kernel("native", "cpu", run_conv, _supports)
    pointwise._pointwise_conv2d_backward.add_kernel("native", "cpu", run_conv_backward, _supports)
    pointwise._pointwise_mlp.add_kernel("native", "cpu", run_mlp, lambda *args: _supports(*args[:5]))
    pointwise._pointwise_mlp_backward.add_kernel("native", "cpu", run_mlp_backward, lambda *args: _supports(*args[:5]))
