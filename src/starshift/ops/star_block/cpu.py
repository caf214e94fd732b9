# SPDX-License-Identifier: Apache-2.0
"""StarNet's block of the compiled kernels: each reads its input through the batch norm before it.

Forward writes y = dw1(x), z = g(star(bn1(y))) and the result, with the statistics gathered while y and z are written.
Backward writes the gradients at z (before its norm's gradient is completed), y and x; a norm's gradient, which needs
sums over the whole tensor, is completed as the next kernel reads it. The formulas are in README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from starshift.ops import _native
from starshift.ops._native import DTYPES, Source
from starshift.ops.depthwise import cpu as depthwise
from starshift.ops.depthwise.cpu import Geometry
from starshift.ops.star import cpu as star
from starshift.ops.star_block import Weights, _star_block, _star_block_backward

LAST = torch.channels_last


class _Norm:
    """One batch norm as coefficients (C,) in float32 of the kernels that read through it."""

    def __init__(self, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float) -> None:
        self.mean = mean
        self.inverse = torch.rsqrt(var + eps)
        self.scale = gamma * self.inverse
        self.shift = torch.addcmul(beta, mean, self.scale, value=-1)

    def of(self, x: Tensor) -> Source:
        """``x``, normalised."""
        return Source(x, scale=self.scale, shift=self.shift)

    def gradient(self, grad: Tensor, x: Tensor, sums: Tensor, training: bool) -> tuple[Source, Tensor, Tensor]:
        """The gradient at x, and those of gamma and beta; ``sums`` are those of grad and of grad * (x - mean)."""
        g_beta, g_scaled = sums.float()
        g_gamma = g_scaled * self.inverse
        if not training:
            return Source(grad, scale=self.scale), g_gamma, g_beta
        count = x.numel() // x.shape[1]
        other_scale = self.scale * self.inverse * g_gamma / -count
        shift = -self.scale * g_beta / count - other_scale * self.mean
        return Source(grad, scale=self.scale, shift=shift, other=x, other_scale=other_scale), g_gamma, g_beta


def _statistics(x: Tensor, sums: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance from the sums of (x - center) and its square."""
    away, square = sums / (x.numel() // x.shape[1])
    return (center + away).float(), (square - away * away).clamp_(min=0).float()


def _run(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w, (mean1, var1, mean2, var2) = Weights(*rest[:14]), rest[14:18]
    sample_scale, training, eps1, eps2, act, placement = rest[18:]
    y, sums = depthwise.forward(Source(x), w.wd, w.bd, _geometry(w.wd), center=mean1, statistics=training)
    if sums is not None:
        mean1, var1 = _statistics(y, sums, mean1)
    norm = _Norm(w.gamma1, w.beta1, mean1, var1, eps1)
    branches = (w.w1, w.b1, w.w2, w.b2)
    z, sums = star.forward(norm.of(y), branches, (w.wg, w.bg), act, placement, mean2, training)
    if sums is not None:
        mean2, var2 = _statistics(z, sums, mean2)
    norm = _Norm(w.gamma2, w.beta2, mean2, var2, eps2)
    out, _ = depthwise.forward(norm.of(z), w.we, w.be, _geometry(w.we), residual=x, sample_scale=sample_scale)
    return out, y, z, torch.stack((mean1, var1, mean2, var2))


def _run_backward(grad: Tensor, x: Tensor, y: Tensor, z: Tensor, statistics: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    w = Weights(*rest[:14])
    sample_scale, training, eps1, eps2, act, placement = rest[14:]
    mean1, var1, mean2, var2 = statistics.unbind()
    norm1, norm2 = _Norm(w.gamma1, w.beta1, mean1, var1, eps1), _Norm(w.gamma2, w.beta2, mean2, var2, eps2)
    grad = grad.contiguous(memory_format=LAST)
    at_out = Source(grad, sample_scale=sample_scale)
    gv, gwe, gbe, sums = depthwise.backward(at_out, norm2.of(z), w.we, _geometry(w.we), partner=z, center=mean2)
    assert sums is not None
    at_z, g_gamma2, g_beta2 = norm2.gradient(gv, z, sums, training)
    branches = (w.w1, w.b1, w.w2, w.b2)
    (gu, *gw), sums = star.backward(at_z, norm1.of(y), branches, w.wg, act, placement, partner=y, center=mean1)
    assert sums is not None
    at_y, g_gamma1, g_beta1 = norm1.gradient(gu, y, sums, training)
    gx, gwd, gbd, _ = depthwise.backward(at_y, Source(x), w.wd, _geometry(w.wd), residual=grad)
    return (gx, gwd, gbd, g_gamma1, g_beta1, *gw, g_gamma2, g_beta2, gwe, gbe)


def _geometry(weight: Tensor) -> Geometry:
    half = weight.shape[-1] // 2
    return Geometry((1, 1), (half, half), (1, 1))


def supported(x: Tensor, weights: Sequence[Tensor | None]) -> bool:
    """Whether the kernels can: channels last, float32 or bfloat16, weights in float32."""
    return (
        x.dtype in DTYPES
        and x.numel() > 0
        and x.is_contiguous(memory_format=LAST)
        and all(w is None or w.dtype == torch.float32 for w in weights)
    )


if _native.available():
    _star_block.add_kernel("native", "cpu", _run, lambda x, *rest: supported(x, rest[:14]))
    _star_block_backward.add_kernel(
        "native", "cpu", _run_backward, lambda grad, x, y, z, s, *rest: supported(x, rest[:14]) and y.dtype == x.dtype
    )
