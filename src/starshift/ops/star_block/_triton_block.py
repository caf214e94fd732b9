# SPDX-License-Identifier: Apache-2.0
"""StarNet's block of the Triton kernels of its parts.

The star reads its input, and the gradient at its output, through the batch norms beside it as it loads them, and the
second convolution its input. The convolutions gather, as they write, what a norm needs: the first norm's moments
forward, the sums for the second norm's gradient backward. Passes of their own are the second norm's moments, the sums
for the first norm's gradient, and that gradient, since two kernels read it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from starshift.ops._triton import channels_last, pixel_rows, rows_as_image
from starshift.ops.depthwise import _triton_strips as strips
from starshift.ops.norm._triton_norm import Norm
from starshift.ops.star._triton_backward import backward_rows
from starshift.ops.star._triton_mlp import Sizes, forward_rows
from starshift.ops.star_block import Weights
from starshift.ops.star_block._triton_prepare import Prepared


def star_block(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w, running = Weights(*rest[:14]), rest[14:18]
    sample_scale, training, eps1, eps2, act, placement = rest[18:]
    x, read = channels_last(x), Prepared(x, w)
    sizes = Sizes(x, read.w1, read.wg)
    statistics = (
        torch.empty((4, x.shape[1]), dtype=torch.float32, device=x.device) if training else torch.stack(running).float()
    )
    y, parts = _convolve(x, read.wd, read.zeros if w.bd is None else w.bd, center=read.center if training else None)
    norm1 = Norm(pixel_rows(y), w.gamma1, w.beta1, statistics[0], statistics[1], eps1)
    norm1.gather(training, parts, read.center)
    z = torch.empty_like(norm1.x)
    forward_rows(sizes, norm1.x, w.bg, z, _arguments(sizes, read, act, placement), norm1.affine)
    norm2 = Norm(z, w.gamma2, w.beta2, statistics[2], statistics[3], eps2)
    norm2.gather(training)
    out, _ = _convolve(
        rows_as_image(z, x),
        read.we,
        read.zeros if w.be is None else w.be,
        sample_scale=sample_scale,
        residual=x,
        affine=norm2.affine,
    )
    return out, y, rows_as_image(z, x), statistics


def star_block_backward(
    grad: Tensor, x: Tensor, y: Tensor, z: Tensor, statistics: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    w = Weights(*rest[:14])
    sample_scale, training, eps1, eps2, act, placement = rest[14:]
    grad, x, read = channels_last(grad), channels_last(x), Prepared(x, w, statistics, (eps1, eps2))
    sizes = Sizes(x, read.w1, read.wg)
    assert read.affines is not None
    norm1 = Norm(pixel_rows(y), w.gamma1, w.beta1, statistics[0], statistics[1], eps1, read.affines[0])
    norm2 = Norm(pixel_rows(z), w.gamma2, w.beta2, statistics[2], statistics[3], eps2, read.affines[1])
    z = rows_as_image(norm2.x, x)
    scaled = grad if sample_scale is None else grad * sample_scale.to(grad.dtype).view(-1, 1, 1, 1)
    gwe, gbe = strips.weight_grads(scaled, z, w.we, _padding(read.we), norm2.affine)
    at_v, parts = _convolve(
        grad, read.we, read.zeros, turned=True, sample_scale=sample_scale, center=statistics[2], partner=z
    )
    gv = pixel_rows(at_v)
    g_gamma2, g_beta2, completion = norm2.gather_backward(gv, training, parts=parts)
    arguments = _arguments(sizes, read, act, placement)
    gu, gw = backward_rows(sizes, gv, norm1.x, arguments, norm1.affine, norm2.x, completion)
    g_gamma1, g_beta1, completion = norm1.gather_backward(gu, training)
    gy = rows_as_image(norm1.apply_backward(gu, completion, gv), x)  # what gv held has been read
    gwd, gbd = strips.weight_grads(gy, x, w.wd, _padding(read.wd))
    gx, _ = _convolve(gy, read.wd, read.zeros, turned=True, residual=grad)
    shaped = (g if g.dim() == 1 else g.view(*g.shape, 1, 1) for g in gw)
    return (gx, gwd, gbd, g_gamma1, g_beta1, *shaped, g_gamma2, g_beta2, gwe, gbe)


def _arguments(sizes: Sizes, read: Prepared, act: str, placement: str) -> dict[str, Any]:
    return sizes.arguments(read.w1, read.b1, read.w2, read.b2, read.wg, act, placement)


def _convolve(
    x: Tensor, taps: Tensor, bias: Tensor, turned: bool = False, **added: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    return strips.convolve(x, taps, bias, list(x.shape[2:]), _padding(taps), turned, **added)


def _padding(taps: Tensor) -> list[int]:
    return [taps.shape[0] // 2] * 2
