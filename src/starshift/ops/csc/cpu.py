# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels of the conv-shift-conv operator: channels last, float32 and bfloat16, statistics float32."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from starshift.ops import _native
from starshift.ops._native import DTYPES, conv_layout, float32
from starshift.ops.csc import _csc, _csc_backward

LAST = torch.channels_last


@cache
def _functions() -> Any:
    return (
        _native.function("starshift_csc_forward", "iiiiiiiipppppaifpppppi"),
        _native.function("starshift_csc_backward", "iiiiiiiipppppaifpppppppppi"),
    )


def _supports(x: Tensor, w1: Tensor, *_: Any) -> bool:
    return x.dtype in DTYPES and x.numel() > 0 and w1.numel() > 0


def _run(
    x: Tensor, w1: Tensor, weight: Tensor, bias: Tensor, w2: Tensor, offsets: list[int], stride: int, eps: float
) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    z = _native.empty((n, w2.shape[0], -(-h // stride), -(-w // stride)), dtype=x.dtype, memory_format=LAST)
    mean, var, x_mean, covariance = (_native.empty(size) for size in (w1.shape[0], w1.shape[0], c, (c, c)))
    _functions()[0](
        *(*_sizes(x, w1, w2, stride), x.contiguous(memory_format=LAST), *float32(w1, weight, bias, w2)),
        *(offsets, len(offsets) // 3, eps, z, mean, var, x_mean, covariance, _native.threads()),
    )
    return z.contiguous(memory_format=conv_layout(x, w1, w2)), mean, var, x_mean, covariance


def _backward_supports(grad: Tensor, x: Tensor, w1: Tensor, *_: Any) -> bool:
    return grad.dtype == x.dtype and _supports(x, w1)


def _run_backward(
    grad: Tensor,
    x: Tensor,
    w1: Tensor,
    weight: Tensor,
    bias: Tensor,
    w2: Tensor,
    mean: Tensor,
    var: Tensor,
    x_mean: Tensor,
    covariance: Tensor,
    offsets: list[int],
    stride: int,
    eps: float,
) -> tuple[Tensor, ...]:
    first = conv_layout(x, w1)
    second = conv_layout(x, w1, w2)
    grad, x = (t.contiguous(memory_format=LAST) for t in (grad, x))
    gx = _native.empty(x.shape, dtype=x.dtype, memory_format=LAST)
    gw1, gw2 = _native.empty(w1.shape, memory_format=first), _native.empty(w2.shape, memory_format=second)
    gweight, gbias = _native.empty(weight.shape), _native.empty(bias.shape)
    _functions()[1](
        *(*_sizes(x, w1, w2, stride), x, *float32(w1, weight, bias, w2), offsets, len(offsets) // 3, eps),
        *(grad, var, x_mean, covariance, gx, gw1, gweight, gbias, gw2, _native.threads()),
    )
    return (
        gx.contiguous(memory_format=first),
        *(g.to(t.dtype) for g, t in ((gw1, w1), (gweight, weight), (gbias, bias), (gw2, w2))),
    )


def _sizes(x: Tensor, w1: Tensor, w2: Tensor, stride: int) -> tuple[int, ...]:
    return DTYPES[x.dtype], *x.shape, w1.shape[0], w2.shape[0], stride


if _native.available():
    _csc.add_kernel("native", "cpu", _run, _supports)
    _csc_backward.add_kernel("native", "cpu", _run_backward, _backward_supports)
