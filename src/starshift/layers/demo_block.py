# SPDX-License-Identifier: Apache-2.0
"""DemoNet's block: the plain isotropic one in which star and sum are compared."""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from starshift.layers.activation import activation, add_branches, one_of
from starshift.layers.depthwise import DepthwiseConv2d
from starshift.layers.norm import is_watched
from starshift.layers.star_block import MODES, project
from starshift.ops import ACTIVATIONS, PLACEMENTS, star, star_mlp


class DemoBlock(nn.Module):
    """LayerNorm, depthwise, Linear to two branches, star or sum, Linear back, layer scale, residual.

    Args:
        dim: channels.
        mode: ``star`` or ``sum``.
        act, placement: as in :class:`StarBlock`.
        kernel_size: of the depthwise convolution; 0 leaves it out (the network on 2-D points).
        layer_scale: its initial value; None leaves it out.
        expansion: width of each branch over ``dim``.
        drop_path: probability that the branch is dropped for a sample in training.

    Shapes: (N, dim, H, W) to the same, best in channels-last memory, where no copy is made.

    Raises:
        StarshiftError: unknown mode, act or placement.
    """

    def __init__(
        self,
        dim: int,
        mode: str = "star",
        act: str = "gelu",
        placement: str = "first",
        kernel_size: int = 7,
        layer_scale: float | None = 1e-6,
        expansion: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.mode = one_of("mode", mode, MODES)
        self.placement = one_of("placement", placement, PLACEMENTS)
        self.act = one_of("act", act, ACTIVATIONS)
        self.norm = nn.LayerNorm(dim)
        self.dwconv = DepthwiseConv2d(dim, kernel_size) if kernel_size else nn.Identity()
        self.f = nn.Linear(dim, 2 * expansion * dim)
        self.g = nn.Linear(expansion * dim, dim)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self._mix(self.dwconv(y).permute(0, 2, 3, 1))
        if self.gamma is not None:
            y = self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))

    def _mix(self, x_NHWC: Tensor) -> Tensor:
        if self.mode == "sum":
            x1, x2 = self.f(x_NHWC).chunk(2, dim=-1)
            return self.g(add_branches(x1, x2, activation(self.act), self.placement))
        if any(type(layer) is not nn.Linear or is_watched(layer) for layer in (self.f, self.g)):
            x1, x2 = self.f(x_NHWC).chunk(2, dim=-1)
            return project(self.g, star(x1, x2, self.act, self.placement))
        (w1, w2), (b1, b2) = self.f.weight.chunk(2), self.f.bias.chunk(2)
        return star_mlp(x_NHWC, w1, b1, w2, b2, self.g.weight, self.g.bias, self.act, self.placement)
