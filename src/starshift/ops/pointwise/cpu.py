# SPDX-License-Identifier: Apache-2.0
"""Pointwise convolutions by torch's matrix products, and compiled kernels for what those leave slow.

The forward of one convolution is torch's. Two convolutions with an activation between run in chunks of rows, so that a
chunk's hidden units are still in cache when the activation and the second product read them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from starshift.ops import _native, pointwise
from starshift.ops.pointwise import reference
from starshift.ops.star.reference import ACTIVATIONS

CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
CHUNK = 2048  # rows


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
    return out.contiguous(memory_format=_layout(x, weight))


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (x, weight))
    return torch.channels_last if last else torch.contiguous_format


def _matrix(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], -1)


if _native.available():
    _hidden_forward = _native.function("starshift_hidden_forward", "ippiiipi")
    _hidden_backward = _native.function("starshift_hidden_backward", "ippiiippi")
    _weight_gradient = _native.function("starshift_weight_gradient", "ippiiippi")

    def _add_weight_gradient(grad: Tensor, x: Tensor, weight_grad: Tensor, bias_grad: Tensor) -> None:
        """To ``weight_grad`` (K, C) and ``bias_grad`` (K,), float32, from rows ``grad`` (M, K) and ``x`` (M, C)."""
        sizes = (grad.shape[0], grad.shape[1], x.shape[1])
        _weight_gradient(_native.DTYPES[x.dtype], grad, x, *sizes, weight_grad, bias_grad, _native.threads())

    def _zeros(weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(_matrix(weight).shape), torch.zeros(weight.shape[0])

    def run_conv_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight_grad, bias_grad = _zeros(weight)
        rows = _rows(grad, weight)
        _add_weight_gradient(rows, _rows(x, weight), weight_grad, bias_grad)
        if weight.dim() == 4:
            x_grad = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, False, False]
            )[0]
        else:
            x_grad = grad @ weight
        return x_grad, weight_grad.view_as(weight).to(weight.dtype), bias_grad.to(weight.dtype)

    def run_mlp(
        x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, act: str, keep: bool
    ) -> tuple[Tensor, Tensor]:
        rows, m1, m2 = _rows(x, w1), _matrix(w1), _matrix(w2)
        count, units = rows.shape[0], m1.shape[0]
        bias = None if b1 is None else b1.float().contiguous()
        hidden = x.new_empty(count if keep else min(count, CHUNK), units)
        active = x.new_empty(min(count, CHUNK), units)
        out = x.new_empty(count, m2.shape[0])
        for i in range(0, count, CHUNK):
            n = min(CHUNK, count - i)
            h, a = hidden[i : i + n] if keep else hidden[:n], active[:n]
            torch.mm(rows[i : i + n], m1.T, out=h)
            _hidden_forward(_native.DTYPES[x.dtype], h, bias, n, units, CODES[act], a, _native.threads())
            if b2 is None:
                torch.mm(a, m2.T, out=out[i : i + n])
            else:
                torch.addmm(b2, a, m2.T, out=out[i : i + n])
        return _like(out, x, w2), _like(hidden, x, w1) if keep else x.new_empty(0)

    def run_mlp_backward(
        grad: Tensor, x: Tensor, hidden: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, act: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        (w1_grad, b1_grad), (w2_grad, b2_grad) = _zeros(w1), _zeros(w2)
        m1, m2 = _matrix(w1), _matrix(w2)
        rows, grads, hiddens = _rows(x, w1), _rows(grad, w2), _rows(hidden, w1)
        count, units = hiddens.shape
        bias = None if b1 is None else b1.float().contiguous()
        out = torch.empty_like(rows)
        active, hidden_grad = (x.new_empty(min(count, CHUNK), units) for _ in range(2))
        for i in range(0, count, CHUNK):
            n = min(CHUNK, count - i)
            g, a, d = grads[i : i + n], active[:n], hidden_grad[:n]
            torch.mm(g, m2, out=d)
            _hidden_backward(
                *(_native.DTYPES[x.dtype], hiddens[i : i + n], bias, n, units, CODES[act], d, a, _native.threads())
            )
            _add_weight_gradient(g, a, w2_grad, b2_grad)
            _add_weight_gradient(d, rows[i : i + n], w1_grad, b1_grad)
            torch.mm(d, m1, out=out[i : i + n])
        grads1 = w1_grad.view_as(w1).to(w1.dtype), b1_grad.to(w1.dtype)
        return _like(out, x, w1), *grads1, w2_grad.view_as(w2).to(w2.dtype), b2_grad.to(w2.dtype)

    pointwise._pointwise_conv2d.add_kernel("native", "cpu", reference.pointwise_conv2d, _supports)
    pointwise._pointwise_conv2d_backward.add_kernel("native", "cpu", run_conv_backward, _supports)
    pointwise._pointwise_mlp.add_kernel("native", "cpu", run_mlp, lambda *args: _supports(*args[:5]))
    pointwise._pointwise_mlp_backward.add_kernel("native", "cpu", run_mlp_backward, lambda *args: _supports(*args[:6]))
