# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels of the 1x1 convolution with norm and activation: statistics float32."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from starshift.ops import _native
from starshift.ops._native import DTYPES, conv_layout, float32
from starshift.ops.pointwise_norm import _pointwise_norm_act, _pointwise_norm_act_backward
from starshift.ops.star.reference import ACTIVATION_CODES

LAST = torch.channels_last


@cache
def _functions() -> Any:
    return (
        _native.function("starshift_pointwise_norm_forward", "iiii" + "pppp" + "fi" + "pppppi"),
        _native.function("starshift_pointwise_norm_backward", "iiii" + "ppppp" + "fi" + "ppppppp" + "i"),
    )


def _supports(x: Tensor, w: Tensor, *_: Any) -> bool:
    return x.dtype in DTYPES and x.numel() > 0 and w.numel() > 0


def _run(x: Tensor, w: Tensor, weight: Tensor, bias: Tensor, eps: float, act: str) -> tuple[Tensor, ...]:
    n, c, height, width = x.shape
    y = _native.empty((n, w.shape[0], height, width), dtype=x.dtype, memory_format=LAST)
    mean, var, x_mean, covariance = (_native.empty(size) for size in (w.shape[0], w.shape[0], c, (c, c)))
    _functions()[0](
        *(*_sizes(x, w), x.contiguous(memory_format=LAST), *float32(w, weight, bias), eps, ACTIVATION_CODES[act]),
        *(y, mean, var, x_mean, covariance, _native.threads()),
    )
    return y.contiguous(memory_format=conv_layout(x, w)), mean, var, x_mean, covariance


def _backward_supports(grad: Tensor, x: Tensor, w: Tensor, *_: Any) -> bool:
    return grad.dtype == x.dtype and _supports(x, w)


def _run_backward(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    x_mean: Tensor,
    covariance: Tensor,
    eps: float,
    act: str,
) -> tuple[Tensor, ...]:
    layout = conv_layout(x, w)
    grad, x = (t.contiguous(memory_format=LAST) for t in (grad, x))
    gx = _native.empty(x.shape, dtype=x.dtype, memory_format=LAST)
    gw = _native.empty(w.shape)
    gweight, gbias = _native.empty(weight.shape), _native.empty(bias.shape)
    _functions()[1](
        *(*_sizes(x, w), grad, x, *float32(w, weight, bias), eps, ACTIVATION_CODES[act]),
        *(var, x_mean, covariance, gx, gw, gweight, gbias, _native.threads()),
    )
    gw = gw.contiguous(memory_format=layout)
    return gx.contiguous(memory_format=layout), *(g.to(t.dtype) for g, t in ((gw, w), (gweight, weight), (gbias, bias)))


def _sizes(x: Tensor, w: Tensor) -> tuple[int, ...]:
    return DTYPES[x.dtype], x.numel() // x.shape[1], x.shape[1], w.shape[0]


if _native.available():
    _pointwise_norm_act.add_kernel("native", "cpu", _run, _supports)
    _pointwise_norm_act_backward.add_kernel("native", "cpu", _run_backward, _backward_supports)
