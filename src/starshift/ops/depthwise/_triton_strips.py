# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution of stride 1 in Triton and its gradients: launches of ``_triton_strip_kernels``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from starshift.ops._triton import Config, cdiv, config, launch, processors
from starshift.ops._triton_parts import index_type
from starshift.ops.depthwise import _triton_strip_kernels as kernels

SPANS = (7, 8, 4)
"""Columns of a strip; the first of those that leave the fewest lanes idle is taken."""
LANES = 384
"""That a multiprocessor holds at once, with the registers that each needs."""
BLOCK = 64
"""Lanes of a program: two warps."""
REGISTERS = 168
"""Of a lane: twelve warps find room in a multiprocessor, and as many are needed to fill an H100 with a batch of 256."""


def serves(weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> bool:
    """Stride 1, no dilation, and no output that lies wholly beside the image."""
    return stride == dilation == [1, 1] and all(p < k for p, k in zip(padding, weight.shape[2:], strict=True))


def convolve(
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    size: list[int],
    padding: list[int],
    turned: bool,
    sample_scale: Tensor | None = None,
    residual: Tensor | None = None,
    affine: Tensor | None = None,
    center: Tensor | None = None,
    partner: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``_triton_forward.convolve``, with taps w_IJC in float32.

    Args:
        affine: mean, scale and bias, (3 C,), of a batch norm behind which x is read.
        center: (C,) in float32. With it the second result is parts of sums, (P, 2, C): of the result less ``center``
            and of its square, or, with ``partner``, of the result and of its product with (partner - center).
        partner: as the result, channels last.
    """
    n, channels = x.shape[:2]
    out = torch.empty((n, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    choice, geometry = _geometry(x, size, padding)
    columns = n * geometry["strips"]
    if not out.numel():
        return out, None
    parts = None
    if center is not None:
        parts = torch.empty((columns, 2, channels), dtype=torch.float32, device=x.device)
    launch(
        kernels.convolve,
        [choice],
        lambda b: (cdiv(columns * channels, b["BLOCK"]),),
        (),
        x.device,
        x=x,
        weight=taps,
        bias=None if bias is None else bias.contiguous(),
        sample_scale=None if sample_scale is None else sample_scale.contiguous(),
        residual=residual,
        affine=affine,
        partner=partner,
        center=center,
        parts=parts,
        out=out,
        lanes=columns * channels,
        **geometry,
        KH=taps.shape[0],
        KW=taps.shape[1],
        first_tap=taps.shape[0] * taps.shape[1] - 1 if turned else 0,
        next_tap=-1 if turned else 1,
        HAS_BIAS=bias is not None,
        HAS_SCALE=sample_scale is not None,
        HAS_RESIDUAL=residual is not None,
        NORMED=affine is not None,
        SUMS="none" if center is None else "moments" if partner is None else "products",
        INDEX=index_type(x, out),
    )
    return out, parts


def weight_grads(
    grad: Tensor, x: Tensor, weight: Tensor, padding: list[int], affine: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias, in float32; images channels last, x behind the batch norm ``affine`` if given."""
    n, channels = x.shape[:2]
    kh, kw = weight.shape[2:]
    choice, geometry = _geometry(x, grad.shape[2:], padding)
    strips = geometry["strips"]
    each = max(1, n * strips * channels // (processors(x.device) * LANES))
    groups = cdiv(n, each) * strips
    parts, weight_grad, bias_grad = (
        torch.empty(size, dtype=torch.float32, device=x.device)
        for size in ((groups, kh * kw + 1, channels), tuple(weight.shape), (channels,))
    )
    launch(
        kernels.weights,
        [choice],
        lambda b: (cdiv(groups * channels, b["BLOCK"]),),
        (),
        x.device,
        grad=grad,
        x=x,
        affine=affine,
        parts=parts,
        images=n,
        each=each,
        lanes=groups * channels,
        **geometry,
        KH=kh,
        KW=kw,
        NORMED=affine is not None,
        INDEX=index_type(x, grad),
    )
    launch(
        kernels.sum_weights,
        [config(8, 1, BLOCK=16, ROWS=256)],
        lambda b: (cdiv((kh * kw + 1) * channels, b["BLOCK"]),),
        (),
        x.device,
        parts=parts,
        weight_grad=weight_grad,
        bias_grad=bias_grad,
        count=groups,
        C=channels,
        TAPS=kh * kw,
    )
    return weight_grad, bias_grad


def _geometry(x: Tensor, out: Sequence[int], padding: list[int]) -> tuple[Config, dict[str, Any]]:
    """How the strips of an output of this size are worked on, and the sizes that both kernels are handed."""
    _, channels, height, width = x.shape
    span = min(SPANS, key=lambda span: cdiv(out[1], span) * span)
    sizes = {"height": height, "width": width, "out_height": out[0], "out_width": out[1], "C": channels}
    sizes |= {"pad_y": padding[0], "pad_x": padding[1], "strips": cdiv(out[1], span)}
    return config(BLOCK // 32, 1, REGISTERS, SPAN=span, BLOCK=BLOCK), sizes
