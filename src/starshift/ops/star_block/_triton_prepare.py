# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-untyped-defs=False
"""A block's weights as its Triton kernels read them, and its norms as three numbers a channel: one launch for all."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from starshift.ops._triton import cdiv, config, launch
from starshift.ops.norm._triton_kernels import store_affine
from starshift.ops.star_block import Weights

ALIGNED = 8
"""Elements to whose multiples each tensor in a shared memory is laid."""


@triton.jit
def _copy(source, target, index, size: tl.constexpr):
    inside = index < size
    value = tl.load(source + index, mask=inside, other=0)
    tl.store(target + index, value.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _taps_first(weight, taps, index, C: tl.constexpr, TAPS: tl.constexpr):
    inside = index < C * TAPS
    tl.store(taps + index, tl.load(weight + index % C * TAPS + index // C, mask=inside, other=0), mask=inside)


@triton.jit
def _coefficients(mean, var, gamma, beta, eps, affine, c, C: tl.constexpr):
    used_mean, used_var = tl.load(mean + c, mask=c < C, other=0), tl.load(var + c, mask=c < C, other=1)
    weight, bias = tl.load(gamma + c, mask=c < C, other=0), tl.load(beta + c, mask=c < C, other=0)
    store_affine(affine, c, used_mean, used_var, weight, bias, eps, C)


@triton.jit
def _one_output(x, weight, bias, out, c, height, width, C: tl.constexpr, KD: tl.constexpr, HAS_BIAS: tl.constexpr):
    """The convolution's output in the middle of the first image."""
    total = tl.zeros_like(c).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + c, mask=c < C, other=0)
    for t in range(KD * KD):
        row, column = height // 2 - KD // 2 + t // KD, width // 2 - KD // 2 + t % KD
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (c < C)
        value = tl.load(x + (row * width + column) * C + c, mask=inside, other=0).to(tl.float32)
        total += value * tl.load(weight + c * (KD * KD) + t, mask=c < C, other=0)
    tl.store(out + c, total, mask=c < C)


@triton.jit
def _prepare(
    x,
    wd,
    bd,
    we,
    w1,
    b1,
    w2,
    b2,
    wg,
    gamma1,
    beta1,
    gamma2,
    beta2,
    statistics,
    narrow,
    taps,
    affine,
    eps1,
    eps2,
    second,
    third,
    fourth,
    fifth,
    height,
    width,
    C: tl.constexpr,
    K: tl.constexpr,
    KD: tl.constexpr,
    KE: tl.constexpr,
    HAS_BD: tl.constexpr,
    HAS_B1: tl.constexpr,
    HAS_B2: tl.constexpr,
    NORMED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The second dimension of the grid is the tensor: w1, w2, wg, b1, b2, wd, we, the two norms, or, without norms, the
    centre of the sums."""
    TAPS_D: tl.constexpr = KD * KD
    TAPS_E: tl.constexpr = KE * KE
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.program_id(1)
    if part == 0:
        _copy(w1, narrow, index, K * C)
    elif part == 1:
        _copy(w2, narrow + second, index, K * C)
    elif part == 2:
        _copy(wg, narrow + third, index, C * K)
    elif part == 3:
        tl.store(taps + C * (TAPS_D + TAPS_E) + index, tl.zeros([BLOCK], tl.float32), mask=index < C)
        if HAS_B1:
            _copy(b1, narrow + fourth, index, K)
    elif part == 4:
        if HAS_B2:
            _copy(b2, narrow + fifth, index, K)
    elif part == 5:
        _taps_first(wd, taps, index, C, TAPS_D)
    elif part == 6:
        _taps_first(we, taps + C * TAPS_D, index, C, TAPS_E)
    elif part == 7:
        if not NORMED:
            center = taps + C * (TAPS_D + TAPS_E + 1)
            _one_output(x, wd, bd, center, index, height, width, C, KD, HAS_BD)
        else:
            _coefficients(statistics, statistics + C, gamma1, beta1, eps1, affine, index, C)
    else:
        if NORMED:
            _coefficients(statistics + 2 * C, statistics + 3 * C, gamma2, beta2, eps2, affine + 3 * C, index, C)


class Prepared:
    """What the kernels of one block read.

    Attributes:
        w1, w2: (K, C). b1, b2: (K,) or None. wg: (C, K). All of x's dtype.
        wd, we: taps first, (k, k, C), float32. zeros: a bias, (C,), where there is none: one kernel less to compile.
        center: without ``statistics``, an output of the first convolution for each channel, (C,): sums of outputs less
            this lose no digits to a large mean.
        affines: mean, scale and bias of each norm, (2, 3 C), by ``statistics``; None without.
    """

    def __init__(
        self, x: Tensor, w: Weights, statistics: Tensor | None = None, eps: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        hidden, channels = w.w1.shape[:2]
        sizes = [hidden * channels] * 3 + [hidden] * 2
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + cdiv(size, ALIGNED) * ALIGNED)
        given = {name: None if t is None else t.contiguous() for name, t in w._asdict().items()}
        narrow = torch.empty(starts[-1], dtype=x.dtype, device=x.device)
        squares = [weight.shape[2] * weight.shape[3] for weight in (w.wd, w.we)]
        taps = torch.empty((sum(squares) + 2) * channels, dtype=torch.float32, device=x.device)
        self.affines = None if statistics is None else torch.empty((2, 3 * channels), device=x.device)
        launch(
            _prepare,
            [config(4, 1, BLOCK=1024)],
            lambda b: (cdiv(max(*sizes, *(s * channels for s in squares)), b["BLOCK"]), 9),
            (),
            x.device,
            x=x,
            **{name: t for name, t in given.items() if name not in ("bg", "be")},
            statistics=statistics,
            narrow=narrow,
            taps=taps,
            affine=self.affines,
            eps1=eps[0],
            eps2=eps[1],
            second=starts[1],
            third=starts[2],
            fourth=starts[3],
            fifth=starts[4],
            C=channels,
            K=hidden,
            height=x.shape[2],
            width=x.shape[3],
            KD=w.wd.shape[2],
            KE=w.we.shape[2],
            HAS_BD=w.bd is not None,
            HAS_B1=w.b1 is not None,
            HAS_B2=w.b2 is not None,
            NORMED=statistics is not None,
        )
        w1, w2, wg, b1, b2 = (narrow[start : start + size] for start, size in zip(starts, sizes, strict=False))
        self.w1, self.w2, self.wg = w1.view(hidden, channels), w2.view(hidden, channels), wg.view(channels, hidden)
        self.b1, self.b2 = b1 if w.b1 is not None else None, b2 if w.b2 is not None else None
        wd, we, self.zeros, self.center = taps.split([square * channels for square in (*squares, 1, 1)])
        self.wd, self.we = wd.view(*w.wd.shape[2:], channels), we.view(*w.we.shape[2:], channels)
