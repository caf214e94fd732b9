# SPDX-License-Identifier: Apache-2.0
"""The compiled star kernels: called on rows of pixels, for the operators here and for the fused block."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from starshift.ops import _native
from starshift.ops._native import DTYPES, Source, float32
from starshift.ops.star import _star_mlp, _star_mlp_backward
from starshift.ops.star.reference import ACTIVATION_CODES, PLACEMENTS

_SOURCE = "pppppp"


@cache
def _forward() -> Any:
    return _native.function("starshift_star_mlp_forward", "iiiii" + _SOURCE + "pii" + "pppi")


@cache
def _packing() -> Any:
    count = _native.function("starshift_star_mlp_packed_floats", "iiii", counts=True)
    return count, _native.function("starshift_star_mlp_pack_for", "iiii" + "pppppp" + "pi")


@cache
def _backward() -> Any:
    return _native.function("starshift_star_mlp_backward", "iiiii" + 2 * _SOURCE + "ppppp" + "ii" + 10 * "p" + "i")


def pack(
    dtype: torch.dtype,
    branches: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    projection: tuple[Tensor, Tensor | None],
) -> Tensor:
    """The weights as :func:`forward` reads them for tensors of this dtype: for many calls with the same."""
    w1, wg = branches[0], projection[0]
    sizes = (DTYPES[dtype], w1.shape[1], w1.shape[0], wg.shape[0])
    count, run = _packing()
    packed = _native.empty(count(*sizes))
    run(*sizes, *float32(*branches, *projection), packed, _native.threads())
    return packed


def forward(
    x: Source,
    branches: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    projection: tuple[Tensor, Tensor | None],
    act: str,
    placement: str,
    center: Tensor | None = None,
    statistics: bool = False,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The projected star of rows of x, and its column sums.

    Args:
        x: its tensor is dense with channels last in memory: (N, C, H, W) channels last or (..., C) contiguous.
        branches: w1 (K, C, ...), b1, w2, b2. projection: wg (N, K, ...), bg.
        center: (N,) float32 near the columns' means; zeros if None.
        statistics: return the sums, float64 (2, N), of (out - center) and (out - center)**2.
        packed: what :func:`pack` made of the weights for x's dtype; None: it is called.
    """
    rows, channels, hidden, out_channels = _sizes(x.tensor, branches[0], projection[0])
    out = _like(x.tensor, projection[0])
    sums = _native.empty(2, out_channels, dtype=torch.float64) if statistics else None
    packed = pack(x.tensor.dtype, branches, projection) if packed is None else packed
    _forward()(
        *(DTYPES[x.tensor.dtype], rows, channels, hidden, out_channels, *x.arguments(), packed),
        *(ACTIVATION_CODES[act], PLACEMENTS.index(placement), out, center, sums, _native.threads()),
    )
    return out, sums


def backward(
    grad: Source,
    x: Source,
    branches: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    wg: Tensor,
    act: str,
    placement: str,
    partner: Tensor | None = None,
    center: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Gradients of (x, w1, b1, w2, b2, wg, bg), those of the weights in float32; and column sums.

    With a partner (a tensor like x) the sums, float64 (2, C), are those of gx and of gx * (partner - center).
    """
    rows, channels, hidden, out_channels = _sizes(x.tensor, branches[0], wg)
    gx = torch.empty_like(x.tensor)
    gw1, gw2 = (_native.empty(w.shape) for w in (branches[0], branches[2]))
    gwg = _native.empty(wg.shape)
    gb1, gb2, gbg = _native.empty(hidden), _native.empty(hidden), _native.empty(out_channels)
    sums = None if partner is None else _native.empty(2, channels, dtype=torch.float64)
    _backward()(
        *(DTYPES[x.tensor.dtype], rows, channels, hidden, out_channels, *grad.arguments(), *x.arguments()),
        *(*float32(*branches, wg), ACTIVATION_CODES[act], PLACEMENTS.index(placement)),
        *(gx, gw1, gb1, gw2, gb2, gwg, gbg, partner, center, sums, _native.threads()),
    )
    return (gx, gw1, gb1, gw2, gb2, gwg, gbg), sums


def _sizes(x: Tensor, w1: Tensor, wg: Tensor) -> tuple[int, int, int, int]:
    return x.numel() // w1.shape[1], w1.shape[1], w1.shape[0], wg.shape[0]


def _like(x: Tensor, wg: Tensor) -> Tensor:
    if wg.dim() != 4:
        return _native.empty((*x.shape[:-1], wg.shape[0]), dtype=x.dtype)
    n, _, h, w = x.shape
    return _native.empty((n, wg.shape[0], h, w), dtype=x.dtype, memory_format=torch.channels_last)


def _run(x: Tensor, w1: Tensor, *rest: Any) -> Tensor:
    *branches, wg, bg, act, placement = rest
    rows, out_format = _rows(x, w1)
    out, _ = forward(Source(rows), (w1, *branches), (wg, bg), act, placement)
    return out.contiguous(memory_format=out_format)


def _run_backward(grad: Tensor, x: Tensor, w1: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *branches, wg, act, placement = rest
    (rows, out_format), (grad_rows, _) = _rows(x, w1), _rows(grad, w1)
    (gx, *gw), _ = backward(Source(grad_rows), Source(rows), (w1, *branches), wg, act, placement)
    return gx.contiguous(memory_format=out_format), *(g.to(wg.dtype) for g in gw)


def _rows(x: Tensor, weight: Tensor) -> tuple[Tensor, torch.memory_format]:
    """x with its channels last in memory, and the memory format that plain torch would give the result."""
    if weight.dim() != 4:
        return x.contiguous(), torch.contiguous_format
    return x.contiguous(memory_format=torch.channels_last), suggest_memory_format(x)


def _supports(x: Tensor, *rest: Any) -> bool:
    tensors = [t for t in (x, *rest) if isinstance(t, Tensor)]
    return x.dtype in DTYPES and all(t.dtype == x.dtype and t.numel() > 0 for t in tensors)


if _native.available():
    _star_mlp.add_kernel("native", "cpu", _run, _supports)
    _star_mlp_backward.add_kernel("native", "cpu", _run_backward, _supports)
