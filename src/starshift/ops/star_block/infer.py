# SPDX-License-Identifier: Apache-2.0
"""A star block in inference, its norms folded away and its weights laid out once for many calls."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from starshift.ops import _native
from starshift.ops.depthwise import cpu as depthwise
from starshift.ops.depthwise.cpu import Geometry
from starshift.ops.shift.offsets import Offsets, flatten
from starshift.ops.star import cpu as star
from starshift.ops.star.reference import ACTIVATION_CODES, PLACEMENTS


@cache
def _folded() -> Any:
    return _native.function("starshift_star_block_folded", "iiiiiiip" + "ipai" + "pii" + "ipai" + "p")


class Depthwise(NamedTuple):
    """A depthwise convolution of odd kernel, stride 1, whose output is as large as its input: weight (C, 1, k, k)."""

    weight: Tensor
    bias: Tensor | None


Space = Depthwise | Offsets
"""What mixes pixels: a depthwise convolution, or the runs of a shift (none of them: nothing does)."""


class Folded(NamedTuple):
    """The block's parts with the norms merged into them: space, three 1x1 convolutions, space. w1, w2 (K, C, 1, 1)."""

    before: Space
    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    wg: Tensor
    bg: Tensor | None
    after: Space


class Prepared:
    """``x + after(g(star(f1(u), f2(u))))`` with ``u = before(x)``, for fixed weights; without gradients.

    Args:
        parts: of the block; weights are copied into the kernels' layout.
        act, placement: as in :func:`starshift.ops.star`.
    """

    def __init__(self, parts: Folded, act: str, placement: str) -> None:
        self.hidden, self.channels = parts.w1.shape[:2]
        self.before, self.after = _packings(parts.before), _packings(parts.after)
        branches, projection = (parts.w1, parts.b1, parts.w2, parts.b2), (parts.wg, parts.bg)
        self.stars = _native.packings(lambda dtype: star.pack(dtype, branches, projection))
        self.codes = ACTIVATION_CODES[act], PLACEMENTS.index(placement)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W), float32 or bfloat16.

        Raises:
            StarshiftError: other channels than the weights'.
        """
        x = _native.block_input(x, self.channels, "star block")
        out = torch.empty_like(x)
        _folded()(
            *(_native.DTYPES[x.dtype], _native.threads(), *x.shape, self.hidden, x),
            *(*self.before[x.dtype], self.stars[x.dtype], *self.codes, *self.after[x.dtype], out),
        )
        return out


def _packings(space: Space) -> dict[torch.dtype, tuple[int, Tensor | None, Any, int]]:
    """As the kernel takes it, by dtype: kernel size and weights, or a shift's offsets and the number of its runs."""
    if not isinstance(space, Depthwise):
        return dict.fromkeys(_native.DTYPES, (0, None, _native.array(flatten(space)), len(space)))
    k = space.weight.shape[-1]
    geometry = Geometry((1, 1), (k // 2, k // 2), (1, 1))
    return _native.packings(lambda dtype: (k, depthwise.pack(dtype, space.weight, space.bias, geometry), None, 0))
