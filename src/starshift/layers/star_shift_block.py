# SPDX-License-Identifier: Apache-2.0
"""StarShift's block: the star for nonlinearity, and for space a shift, or a depthwise convolution where one pays."""

from __future__ import annotations

from timm.layers import DropPath
from torch import Tensor, nn

from starshift.layers import fused_star
from starshift.layers.activation import one_of
from starshift.layers.conv_bn import ConvBN
from starshift.layers.depthwise import DepthwiseConv2d
from starshift.layers.folding import Foldable, Run, fuse_bn_pointwise_, fuse_conv_bn_
from starshift.layers.norm import norm_act
from starshift.layers.prepared import run_prepared
from starshift.layers.shift import Shift2d, make_offsets
from starshift.layers.star_block import star_mix
from starshift.ops import ACTIVATIONS

SPACES = ("shift", "depthwise", "none")


def make_space(dim: int, space: str, kernel_size: int) -> nn.Module:
    """What mixes space: a shift in contiguous groups, a depthwise convolution with bias, or nothing.

    Raises:
        StarshiftError: unknown space, or an even kernel size.
    """
    one_of("space", space, SPACES)
    if space == "none":
        return nn.Identity()
    return Shift2d(make_offsets(dim, kernel_size)) if space == "shift" else DepthwiseConv2d(dim, kernel_size)


class StarShiftBlock(Foldable):
    """Space, BN, two 1x1 branches, their star, 1x1 projection + BN, space again if wanted, residual.

    Every channel of the star multiplies two sums over channels that come from different pixels, so that one shift of
    the narrow tensor gives products between all pairs of its ``kernel_size²`` neighbours. Batch norm stands after the
    first shift and folds into the branches exactly: the zeros that a shift brings in are there before it.

    Args:
        dim: channels.
        expansion: width of each branch over ``dim``.
        space: ``shift``, ``depthwise`` or ``none``.
        kernel_size: of either.
        twice: space after the projection too.
        act: of the first branch, one of :data:`starshift.ops.ACTIVATIONS`.
        drop_path: probability that the branch is dropped for a sample in training.

    Shapes: (N, dim, H, W) to the same.

    Raises:
        StarshiftError: unknown space or act, or an even kernel size.
    """

    def __init__(
        self,
        dim: int,
        expansion: int = 3,
        space: str = "shift",
        kernel_size: int = 3,
        twice: bool = False,
        act: str = "relu6",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.act = one_of("act", act, ACTIVATIONS)
        wide = int(expansion * dim)
        self.space = make_space(dim, space, kernel_size)
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.f1 = ConvBN(nn.Conv2d(dim, wide, 1), bn=False)
        self.f2 = ConvBN(nn.Conv2d(dim, wide, 1), bn=False)
        self.g = ConvBN(nn.Conv2d(wide, dim, 1))
        self.space2 = make_space(dim, space if twice else "none", kernel_size)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        ready = run_prepared(self, x) if self.folded else None
        return self._by_layers(x) if ready is None else ready

    def _by_layers(self, x: Tensor) -> Tensor:
        plain = isinstance(self.space2, nn.Identity) and isinstance(self.drop_path, nn.Identity)
        y = norm_act(self.norm, self.space(x))
        if plain:
            return star_mix(self, y, self.act, shortcut=x)
        return x + self.drop_path(self.space2(star_mix(self, y, self.act)))

    def fold(self) -> None:
        """The first norm into the depthwise convolution before it, or else into both branches."""
        if isinstance(self.space, DepthwiseConv2d):
            folded = fuse_conv_bn_(self.space, self.norm)
        else:
            branches = (self.f1.conv, self.f2.conv)
            plain = all(type(conv) is nn.Conv2d for conv in branches)  # no factors of low rank, say
            folded = plain and all(fuse_bn_pointwise_(self.norm, conv) for conv in branches)
        if folded:
            self.norm = nn.Identity()
        self.folded = True

    def prepare(self) -> Run | None:
        ready = self.folded and type(self.norm) is nn.Identity
        return fused_star.prepare(self, self.space, self.space2, self.act) if ready else None
