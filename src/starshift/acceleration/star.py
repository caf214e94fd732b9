# SPDX-License-Identifier: Apache-2.0
"""timm's StarNet block as one operator."""

from __future__ import annotations

from typing import ClassVar

from timm.models.starnet import Block
from torch import Tensor, nn

from starshift.acceleration._rules import ClassRule, rule
from starshift.acceleration.norm import activation_name
from starshift.layers import fused_star
from starshift.layers.norm import is_watched


class AcceleratedStarBlock(Block):
    """timm's ``Block`` by :func:`starshift.ops.star_block.star_block`, in training as in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        act = activation_name(self.act)
        if act is None or is_watched(self.act) or fused_star.why_unfused(self, x) is not None:
            return super().forward(x)
        return fused_star.run(self, x, act, "first")


@rule
class StarBlock(ClassRule):
    what = "star block as one operator"
    whole = True
    classes: ClassVar = {Block: AcceleratedStarBlock}

    def fits(self, module: nn.Module) -> bool | str | None:
        """A block that has other parts is left, and its parts are looked at on their own."""
        return fused_star.why_unfusable(module) or True
