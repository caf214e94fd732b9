# SPDX-License-Identifier: Apache-2.0
"""StarNet's block of the Triton kernels of its parts.

The star reads its input, and the gradient at its output, through the batch norms beside it as it loads them. A
depthwise convolution reads each value many times, so a norm before it is a pass of its own, whose result lives only
until the convolution has read it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from starshift.ops._operator import cast
from starshift.ops._triton import channels_last, pixel_rows, rows_as_image
from starshift.ops.depthwise._triton_backward import weight_grads
from starshift.ops.depthwise._triton_forward import convolve
from starshift.ops.norm._triton_norm import Norm
from starshift.ops.star._triton_backward import backward_rows
from starshift.ops.star._triton_mlp import Sizes, forward_rows
from starshift.ops.star_block import Weights

ONE = [1, 1]


def star_block(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w, running = Weights(*rest[:14]), rest[14:18]
    sample_scale, training, eps1, eps2, act, placement = rest[18:]
    x, parts = channels_last(x), _Parts(x, w, act, placement)
    statistics = (
        torch.empty((4, x.shape[1]), dtype=torch.float32, device=x.device) if training else torch.stack(running).float()
    )
    y = parts.convolve(x, w.wd, w.bd)
    norm1 = Norm(pixel_rows(y), w.gamma1, w.beta1, statistics[0], statistics[1], eps1)
    norm1.gather(training)
    z = torch.empty_like(norm1.x)
    forward_rows(parts.sizes, norm1.x, w.bg, z, parts.arguments, norm1.affine)
    norm2 = Norm(z, w.gamma2, w.beta2, statistics[2], statistics[3], eps2)
    norm2.gather(training)
    v = rows_as_image(norm2.apply(torch.empty_like(z)), x)
    out = parts.convolve(v, w.we, w.be, sample_scale=sample_scale, residual=x)
    return out, y, rows_as_image(z, x), statistics


def star_block_backward(
    grad: Tensor, x: Tensor, y: Tensor, z: Tensor, statistics: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    w = Weights(*rest[:14])
    sample_scale, training, eps1, eps2, act, placement = rest[14:]
    grad, x, parts = channels_last(grad), channels_last(x), _Parts(x, w, act, placement)
    norm1 = Norm(pixel_rows(y), w.gamma1, w.beta1, statistics[0], statistics[1], eps1)
    norm2 = Norm(pixel_rows(z), w.gamma2, w.beta2, statistics[2], statistics[3], eps2)
    norm1.gather(training=False)
    norm2.gather(training=False)
    v = rows_as_image(norm2.apply(torch.empty_like(norm2.x)), x)
    scaled = grad if sample_scale is None else grad * sample_scale.to(grad.dtype).view(-1, 1, 1, 1)
    gwe, gbe = parts.weight_grads(scaled, v, w.we)
    gv = pixel_rows(parts.convolve(grad, w.we, None, turned=True, sample_scale=sample_scale))
    g_gamma2, g_beta2, completion = norm2.gather_backward(gv, training)
    gu, gw = backward_rows(parts.sizes, gv, norm1.x, parts.arguments, norm1.affine, norm2.x, completion)
    g_gamma1, g_beta1, completion = norm1.gather_backward(gu, training)
    gy = rows_as_image(norm1.apply_backward(gu, completion, gv), x)  # what gv held has been read
    gwd, gbd = parts.weight_grads(gy, x, w.wd)
    gx = parts.convolve(gy, w.wd, None, turned=True, residual=grad)
    shaped = (g if g.dim() == 1 else g.view(*g.shape, 1, 1) for g in gw)
    return (gx, gwd, gbd, g_gamma1, g_beta1, *shaped, g_gamma2, g_beta2, gwe, gbe)


class _Parts:
    """What the block's forward and backward share."""

    def __init__(self, x: Tensor, w: Weights, act: str, placement: str) -> None:
        w1, b1, w2, b2, wg = cast(x.dtype, w.w1, w.b1, w.w2, w.b2, w.wg)
        self.sizes = Sizes(x, w1, wg)
        self.arguments = self.sizes.arguments(w1, b1, w2, b2, wg, act, placement)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool = False, **added: Any) -> Tensor:
        padding = [weight.shape[-1] // 2] * 2
        return convolve(x, weight, bias, list(x.shape[2:]), ONE, padding, ONE, turned, **added)

    def weight_grads(self, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight_grads(grad, x, weight, ONE, [weight.shape[-1] // 2] * 2, ONE)
