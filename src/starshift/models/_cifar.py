# SPDX-License-Identifier: Apache-2.0
"""The frame that ShiftResNet and the residual networks it is compared with share: groups of 16, 32, 64 channels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers import ConvBN
from starshift.models._base import ImageModel, drop_path_rates
from starshift.models._counting import count_macs

DEPTHS = {20: 3, 56: 9, 110: 18}
"""Modules in each of the three groups, by the network's number."""


class BlockMaker(Protocol):
    def __call__(self, in_channels: int, out_channels: int, stride: int, drop_path: float) -> nn.Module: ...


class CifarResNet(ImageModel):
    """3x3 convolution to 16 channels + BN + ReLU, three groups of blocks (stride 1, 2, 2), mean pool, classifier.

    Args:
        make_block: block from (in_channels, out_channels, stride, drop_path).
        depth: blocks in each group.
        width_divisor: all widths are ``int(width / width_divisor)``.
        others: as everywhere.
    """

    feature_levels = 3

    def __init__(
        self,
        make_block: BlockMaker,
        depth: int,
        width_divisor: float,
        num_classes: int,
        in_chans: int,
        drop_rate: float,
        drop_path_rate: float,
        global_pool: str,
    ) -> None:
        widths = [int(width / width_divisor) for width in (16, 32, 64)]
        if depth < 1 or min(widths) < 1:
            raise StarshiftError(f"depth {depth} and widths {widths}: each must be at least 1")
        stem = nn.Sequential(ConvBN(nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False), act="relu"))
        stages: list[nn.Module] = []
        before = widths[0]
        for width, stride, rates in zip(widths, (1, 2, 2), drop_path_rates(drop_path_rate, [depth] * 3), strict=True):
            blocks = []
            for i, rate in enumerate(rates):
                blocks.append(make_block(before, width, stride if i == 0 else 1, rate))
                before = width
            stages.append(nn.Sequential(*blocks))
        super().__init__(
            stem=stem,
            stages=stages,
            norm=nn.Identity(),
            widths=widths,
            reductions=[1, 2, 4],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            global_pool=global_pool,
            min_size=4,
        )

    def reference_macs(self, input_size: tuple[int, int] = (32, 32)) -> int:
        """MACs as the reference code's counter gives them (shiftresnet-cifar, models/resnet.py, ``ResNet.flops``).

        It ignores batch norm, and multiplies the stem's pixels by ``9 * last width`` where the convolution does
        ``9 * in_chans * first width`` (by then ``in_planes`` holds the last stage's).
        """
        widths = [info["num_chs"] for info in self.feature_info]
        stem = 9 * (widths[-1] - self.in_chans * widths[0])
        return count_macs(self, input_size, norms=False) + math.prod(input_size) * stem

    @classmethod
    def convert_state_dict(cls, state: dict[str, Tensor], model: ImageModel) -> dict[str, Tensor]:
        """The reference code's parameter names (conv1, layer1.0.conv1, ..., linear) turned into ours."""
        if "layer1.0.conv1.weight" not in state:
            return state
        return {rename(key): value for key, value in state.items()}


_RENAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^conv1\.", "stem.0.conv."),
    (r"^bn1\.", "stem.0.bn."),
    (r"^linear\.", "head."),
    (r"^layer(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.{m[2]}."),
    (r"\.shortcut\.0\.", ".shortcut.conv."),
    (r"\.shortcut\.1\.", ".shortcut.bn."),
    (r"(^stages\.\d+\.\d+\.)depth\.", r"\1conv2.conv."),
    (r"(^stages\.\d+\.\d+\.)conv(\d)\.(weight|bias)$", r"\1conv\2.conv.\3"),
    (r"(^stages\.\d+\.\d+\.)bn(\d)\.", r"\1conv\2.bn."),
)


def rename(key: str) -> str:
    """One parameter name of the reference code in our names; other names pass."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key
