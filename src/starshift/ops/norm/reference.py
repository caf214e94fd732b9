# SPDX-License-Identifier: Apache-2.0
"""Batch norm and the activation after it in plain torch. x_NC..., all else (C,); statistics in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

from starshift.ops.star.reference import ACTIVATIONS


def batch_norm_act(
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
    """(out, batch mean, biased batch variance); with ``mean`` and ``var`` given, those are used and two empty tensors
    returned."""
    wide = x.to(_wide(x))
    if mean is None or var is None:
        used_var, used_mean = batch_var, batch_mean = torch.var_mean(wide, _pixels(x), correction=0)
    else:
        used_var, used_mean = var.to(wide.dtype), mean.to(wide.dtype)
        batch_var, batch_mean = wide.new_empty(0), wide.new_empty(0)
    z = _normalised(wide, used_mean, used_var, eps)
    out = ACTIVATIONS[act][0](_affine(z, weight, bias, residual))
    out = (out if shortcut is None else out + shortcut).to(x.dtype)
    return out, batch_mean, batch_var


def batch_norm_act_backward(
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
    """Gradients of (x, residual, weight, bias); an empty tensor for no residual."""
    wide = _wide(x)
    normalised = _normalised(x.to(wide), mean.to(wide), var.to(wide), eps)
    grad = ACTIVATIONS[act][1](grad.to(wide), _affine(normalised, weight, bias, residual))
    bias_grad, weight_grad = grad.sum(_pixels(x)), (grad * normalised).sum(_pixels(x))
    x_grad = grad
    if training:
        count = x.numel() // max(x.shape[1], 1)
        x_grad = grad - _each_pixel(bias_grad / count, x) - normalised * _each_pixel(weight_grad / count, x)
    scale = torch.rsqrt(var.to(wide) + eps) * (1 if weight is None else weight.to(wide))
    residual_grad = x.new_empty(0) if residual is None else torch.empty_like(x).copy_(grad)
    return torch.empty_like(x).copy_(x_grad * _each_pixel(scale, x)), residual_grad, weight_grad, bias_grad


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _pixels(x: Tensor) -> list[int]:
    """Every dimension but the channels'."""
    return [0, *range(2, x.dim())]


def _each_pixel(channel: Tensor, x: Tensor) -> Tensor:
    return channel.view(-1, *[1] * (x.dim() - 2))


def _normalised(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return (x - _each_pixel(mean, x)) * _each_pixel(torch.rsqrt(var + eps), x)


def _affine(z: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    if weight is not None:
        z = z * _each_pixel(weight.to(z.dtype), z)
    if bias is not None:
        z = z + _each_pixel(bias.to(z.dtype), z)
    return z if residual is None else z + residual.to(z.dtype)
