# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels of the batch norm with activation: channels last, float32 and bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

from starshift.ops import _native, norm
from starshift.ops.star.reference import ACTIVATION_CODES


def _supports(x: Tensor) -> bool:
    return x.dtype in _native.DTYPES and x.dim() == 4 and x.numel() > 0


def _small(*tensors: Tensor | None) -> list[Tensor | None]:
    """What belongs to channels, as the kernel reads it."""
    return [t if t is None else t.detach().to(torch.float32).contiguous() for t in tensors]


def _pixels(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _as(result: Tensor, x: Tensor) -> Tensor:
    """``result`` in the layout of ``x``, which an element-wise operation would give it."""
    like = torch.empty_like(x)
    return result if result.stride() == like.stride() else like.copy_(result)


if _native.available():
    _forward = _native.function("starshift_batch_norm_act_forward", "ppppppppiiifiii")
    _backward = _native.function("starshift_batch_norm_act_backward", "pppppppppppiiifiii")

    def run(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        shortcut: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        eps: float,
        act: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        training = mean is None or var is None
        batch_mean, batch_var = (x.new_empty(channels if training else 0, dtype=torch.float32) for _ in range(2))
        used = [batch_mean, batch_var] if training else _small(mean, var)
        pixels = _pixels(x)
        out = torch.empty_like(pixels)
        _forward(
            pixels,
            None if residual is None else _pixels(residual),
            None if shortcut is None else _pixels(shortcut),
            *_small(weight, bias),
            *used,
            out,
            _native.DTYPES[x.dtype],
            x.numel() // channels,
            channels,
            eps,
            ACTIVATION_CODES[act],
            training,
            _native.threads(),
        )
        return _as(out, x), batch_mean, batch_var

    def run_backward(
        grad: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        act: str,
        training: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        pixels = _pixels(x)
        x_grad = torch.empty_like(pixels)
        residual_grad = torch.empty_like(pixels) if residual is not None else x.new_empty(0)
        weight_grad, bias_grad = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
        _backward(
            _pixels(grad.to(x.dtype)),
            pixels,
            None if residual is None else _pixels(residual),
            *_small(weight, bias, mean, var),
            x_grad,
            residual_grad,
            weight_grad,
            bias_grad,
            _native.DTYPES[x.dtype],
            x.numel() // channels,
            channels,
            eps,
            ACTIVATION_CODES[act],
            training,
            _native.threads(),
        )
        return _as(x_grad, x), _as(residual_grad, x) if residual is not None else residual_grad, weight_grad, bias_grad

    norm._batch_norm_act.add_kernel("native", "cpu", run, lambda x, *rest: _supports(x))
    norm._batch_norm_act_backward.add_kernel("native", "cpu", run_backward, lambda grad, x, *rest: _supports(x))
