# SPDX-License-Identifier: Apache-2.0
"""StarNet's block in plain torch, with an explicit backward. x_NCHW; y and z stand before the two batch norms."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from starshift.ops.star import reference as star

aten = torch.ops.aten


def star_block(
    x: Tensor,
    wd: Tensor,
    bd: Tensor | None,
    gamma1: Tensor,
    beta1: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    wg: Tensor,
    bg: Tensor | None,
    gamma2: Tensor,
    beta2: Tensor,
    we: Tensor,
    be: Tensor | None,
    mean1: Tensor,
    var1: Tensor,
    mean2: Tensor,
    var2: Tensor,
    sample_scale: Tensor | None,
    training: bool,
    eps1: float,
    eps2: float,
    act: str,
    placement: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, y, z, statistics)."""
    y = _depthwise(x, wd, bd)
    u, *used1 = _norm(y, gamma1, beta1, mean1, var1, training, eps1)
    w1, b1, w2, b2, wg, bg = _like(x, w1, b1, w2, b2, wg, bg)
    z = star.star_mlp(u, w1, b1, w2, b2, wg, bg, act, placement)
    v, *used2 = _norm(z, gamma2, beta2, mean2, var2, training, eps2)
    out = _depthwise(v, we, be)
    if sample_scale is not None:
        out = out * sample_scale.to(out.dtype).view(-1, 1, 1, 1)
    return x + out, y, z, torch.stack([s.to(gamma1.dtype) for s in (*used1, *used2)])


def star_block_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    statistics: Tensor,
    wd: Tensor,
    bd: Tensor | None,
    gamma1: Tensor,
    beta1: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    wg: Tensor,
    bg: Tensor | None,
    gamma2: Tensor,
    beta2: Tensor,
    we: Tensor,
    be: Tensor | None,
    sample_scale: Tensor | None,
    training: bool,
    eps1: float,
    eps2: float,
    act: str,
    placement: str,
) -> tuple[Tensor, ...]:
    """Gradients of x and of the fourteen weights, in their order."""
    mean1, var1, mean2, var2 = statistics
    u = _norm(y, gamma1, beta1, mean1, var1, False, eps1)[0]
    v = _norm(z, gamma2, beta2, mean2, var2, False, eps2)[0]
    scaled = grad if sample_scale is None else grad * sample_scale.to(grad.dtype).view(-1, 1, 1, 1)
    gv, gwe, gbe = _depthwise_backward(scaled, v, we)
    gz, ggamma2, gbeta2 = _norm_backward(gv, z, gamma2, mean2, var2, training, eps2)
    dtype = w1.dtype
    w1, b1, w2, b2, wg = _like(x, w1, b1, w2, b2, wg)
    gu, *gw = star.star_mlp_backward(gz, u, w1, b1, w2, b2, wg, act, placement)
    gy, ggamma1, gbeta1 = _norm_backward(gu, y, gamma1, mean1, var1, training, eps1)
    gx, gwd, gbd = _depthwise_backward(gy, x, wd)
    gw1, gb1, gw2, gb2, gwg, gbg = (g.to(dtype) for g in gw)
    return (gx + grad, gwd, gbd, ggamma1, gbeta1, gw1, gb1, gw2, gb2, gwg, gbg, ggamma2, gbeta2, gwe, gbe)


def _like(x: Tensor, *weights: Tensor | None) -> Any:
    return tuple(None if w is None else w.to(x.dtype) for w in weights)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight, bias = _like(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def _depthwise_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    channels, padding = weight.shape[0], [weight.shape[-1] // 2] * 2
    gx, gw, gb = aten.convolution_backward(
        *(grad, x, *_like(x, weight), [channels], [1, 1], padding, [1, 1], False, [0, 0], channels, [True] * 3)
    )
    return gx, gw.to(weight.dtype), gb.to(weight.dtype)


def _norm(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, training: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised tensor, and the mean and biased variance that normalised it."""
    if not training:
        return aten.native_batch_norm(x, gamma, beta, mean, var, False, 0.0, eps)[0], mean.clone(), var.clone()
    out, used, inverse = aten.native_batch_norm(x, gamma, beta, None, None, True, 0.0, eps)
    return out, used, inverse.pow(-2) - eps


def _norm_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, var: Tensor, training: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    inverse = torch.rsqrt(var + eps)
    return aten.native_batch_norm_backward(grad, x, gamma, mean, var, mean, inverse, training, eps, [True, True, True])
