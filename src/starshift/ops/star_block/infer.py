# SPDX-License-Identifier: Apache-2.0
"""StarNet's block in inference, its norms folded away and its weights laid out once for many calls."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from starshift.errors import StarshiftError
from starshift.ops import _native
from starshift.ops.depthwise import cpu as depthwise
from starshift.ops.depthwise.cpu import Geometry
from starshift.ops.star import cpu as star
from starshift.ops.star.reference import ACTIVATION_CODES, PLACEMENTS


@cache
def _folded() -> Any:
    return _native.function("starshift_star_block_folded", "iiiiiiiii" + "pppp" + "iip")


class Folded(NamedTuple):
    """The block's convolutions with the norms merged into them; shapes as in :class:`Weights` beside it."""

    wd: Tensor
    bd: Tensor | None
    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    wg: Tensor
    bg: Tensor | None
    we: Tensor
    be: Tensor | None


class Prepared:
    """``x + dw2(g(star(f1(u), f2(u))))`` with ``u = dw1(x)``, for fixed weights; without gradients.

    Args:
        weights: the convolutions; they are copied into the kernels' layout.
        act, placement: as in :func:`starshift.ops.star`.
    """

    def __init__(self, weights: Folded, act: str, placement: str) -> None:
        kernels = weights.wd.shape[-1], weights.we.shape[-1]
        first, last = (Geometry((1, 1), (k // 2, k // 2), (1, 1)) for k in kernels)
        self.channels = weights.wd.shape[0]
        self.sizes = weights.w1.shape[0], *kernels
        self.weights = (
            depthwise.pack(weights.wd, weights.bd, first),
            star.pack((weights.w1, weights.b1, weights.w2, weights.b2), (weights.wg, weights.bg)),
            depthwise.pack(weights.we, weights.be, last),
        )
        self.codes = ACTIVATION_CODES[act], PLACEMENTS.index(placement)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W), float32 or bfloat16.

        Raises:
            StarshiftError: other channels than the weights'.
        """
        if x.shape[1] != self.channels:
            raise StarshiftError(f"a star block of {self.channels} channels cannot take an input of {tuple(x.shape)}")
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        _folded()(
            *(_native.DTYPES[x.dtype], _native.threads(), *x.shape, *self.sizes, x, *self.weights, *self.codes, out),
        )
        return out
