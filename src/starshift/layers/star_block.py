# SPDX-License-Identifier: Apache-2.0
"""StarNet's block, with the options that the paper's ablations vary."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from starshift.layers import fused_star
from starshift.layers.activation import activation, add_branches, one_of
from starshift.layers.conv_bn import ConvBN
from starshift.layers.depthwise import DepthwiseConv2d
from starshift.layers.folding import Foldable, Run
from starshift.layers.norm import is_watched, norm_act
from starshift.layers.prepared import run_prepared
from starshift.ops import ACTIVATIONS, PLACEMENTS, star, star_mlp
from starshift.ops._operator import autocast_dtype

MODES = ("star", "sum")
LAYOUTS = ("both", "before", "after", "none")


class StarBlock(Foldable):
    """Depthwise + BN, two 1x1 branches, their star, 1x1 projection + BN, depthwise, residual (Ma et al., CVPR 2024).

    Args:
        dim: channels.
        expansion: width of each branch over ``dim``.
        kernel_size: of the depthwise convolutions.
        act: one of :data:`starshift.ops.ACTIVATIONS`.
        placement: ``first`` act(x1) * x2, ``both`` act(x1) * act(x2), ``product`` act(x1 * x2).
        mode: ``star`` multiplies the branches, ``sum`` adds them (the paper's comparison).
        layout: where depthwise convolutions stand: ``both`` ends (StarNet), ``before``, ``after`` or ``none``. The one
            before the branches has a batch norm, the one after the projection has none.
        drop_path: probability that the branch is dropped for a sample in training.

    Shapes: (N, dim, H, W) to the same.

    Raises:
        StarshiftError: unknown act, placement, mode or layout.
    """

    def __init__(
        self,
        dim: int,
        expansion: int = 4,
        kernel_size: int = 7,
        act: str = "relu6",
        placement: str = "first",
        mode: str = "star",
        layout: str = "both",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.act = one_of("act", act, ACTIVATIONS)
        self.placement = one_of("placement", placement, PLACEMENTS)
        self.mode = one_of("mode", mode, MODES)
        one_of("layout", layout, LAYOUTS)
        wide = int(expansion * dim)
        before, after = layout in ("both", "before"), layout in ("both", "after")
        self.dwconv = ConvBN(DepthwiseConv2d(dim, kernel_size)) if before else nn.Identity()
        self.f1 = ConvBN(nn.Conv2d(dim, wide, 1), bn=False)
        self.f2 = ConvBN(nn.Conv2d(dim, wide, 1), bn=False)
        self.g = ConvBN(nn.Conv2d(wide, dim, 1))
        self.dwconv2 = ConvBN(DepthwiseConv2d(dim, kernel_size), bn=False) if after else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.folded = False

    def fold(self) -> None:
        """The convolutions take their norms in themselves; the block then runs with weights laid out once."""
        self.folded = True

    def prepare(self) -> Run | None:
        ready = self.folded and self.mode == "star"
        return fused_star.prepare(self, self.dwconv, self.dwconv2, self.act, self.placement) if ready else None

    def forward(self, x: Tensor) -> Tensor:
        """As one operator where kernels and the block's parts allow it, else layer by layer."""
        if self.folded:
            y = run_prepared(self, x)
            return self.by_layers(x) if y is None else y
        if self.mode == "star" and fused_star.why_unfused(self, x) is None:
            return fused_star.run(self, x, self.act, self.placement)
        return self.by_layers(x)

    def by_layers(self, x: Tensor) -> Tensor:
        """Layer by layer; the same numbers."""
        return x + self.drop_path(self.dwconv2(self._mix(self.dwconv(x))))

    def _mix(self, x: Tensor) -> Tensor:
        if self.mode == "sum":
            return self.g(add_branches(self.f1(x), self.f2(x), activation(self.act), self.placement))
        return star_mix(self, x, self.act, self.placement)


def _is_plain(part: Any) -> bool:
    """A convolution with its norm and nothing after it, which nobody watches."""
    plain = type(part) is ConvBN and type(part.conv) is nn.Conv2d and part.act == "none"
    return plain and not is_watched(part) and not is_watched(part.conv)


def star_mix(block: Any, x: Tensor, act: str, placement: str = "first", shortcut: Tensor | None = None) -> Tensor:
    """``g(star(f1(x), f2(x))) + shortcut`` by a block's three ConvBN, the branches not stored where its parts allow it.

    Each part is called on its own where one is of another kind (a convolution in factors, say), or a hook waits on it.
    """
    parts = (block.f1, block.f2, block.g)
    if all(map(_is_plain, parts)) and all(type(part.bn) is nn.Identity for part in parts[:2]):
        f1, f2, g = (part.conv for part in parts)
        y = star_mlp(x, f1.weight, f1.bias, f2.weight, f2.bias, g.weight, g.bias, act, placement)
        return norm_act(block.g.bn, y, shortcut=shortcut)
    y = project(block.g, star(block.f1(x), block.f2(x), act, placement))
    return y if shortcut is None else y + shortcut


def project(layer: nn.Module, product: Tensor) -> Tensor:
    """``layer(product)``, without autocast where that would be to float16, whose range products leave."""
    fits = autocast_dtype(product) != torch.float16
    with nullcontext() if fits else torch.autocast(product.device.type, enabled=False):
        return layer(product)
