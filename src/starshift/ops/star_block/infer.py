# SPDX-License-Identifier: Apache-2.0
"""StarNet's block in inference, its norms folded away and its weights laid out once for many calls."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from starshift.ops._native import Source
from starshift.ops.depthwise import cpu as depthwise
from starshift.ops.depthwise.cpu import Geometry
from starshift.ops.star import cpu as star


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

    def state(self) -> tuple[tuple[int, int], ...]:
        """Equal to an earlier one as long as the weights are. What is written through ``.data`` is not seen."""
        return tuple((w.data_ptr(), w._version) for w in self if w is not None)


class Prepared:
    """``x + dw2(g(star(f1(u), f2(u))))`` with ``u = dw1(x)``, for fixed weights; without gradients.

    Args:
        weights: the convolutions; they are copied into the kernels' layout.
        act, placement: as in :func:`starshift.ops.star`.
    """

    def __init__(self, weights: Folded, act: str, placement: str) -> None:
        half = weights.wd.shape[-1] // 2
        self.weights, self.state = weights, weights.state()
        self.act, self.placement = act, placement
        self.geometry = Geometry((1, 1), (half, half), (1, 1))
        self.branches = (weights.w1, weights.b1, weights.w2, weights.b2)
        self.before = depthwise.pack(weights.wd, weights.bd, self.geometry)
        self.star = star.pack(self.branches, (weights.wg, weights.bg))
        self.after = depthwise.pack(weights.we, weights.be, self.geometry)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W), float32 or bfloat16."""
        w = self.weights
        x = x.contiguous(memory_format=torch.channels_last)
        y, _ = depthwise.forward(Source(x), w.wd, w.bd, self.geometry, packed=self.before)
        z, _ = star.forward(Source(y), self.branches, (w.wg, w.bg), self.act, self.placement, packed=self.star)
        return depthwise.forward(Source(z), w.we, w.be, self.geometry, residual=x, packed=self.after)[0]
