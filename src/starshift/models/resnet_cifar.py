# SPDX-License-Identifier: Apache-2.0
"""The residual networks that ShiftResNet is compared with: plain, reduced in width, and with depthwise bottlenecks.

The plain ones are those of He et al. (CVPR 2016) with projection shortcuts, the reductions those of Wu et al. (CVPR
2018): ``reduction=r`` divides all widths by the square root of r (``reduction_mode="net"``) or each block's inner
width by r (``"block"``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from starshift.layers import ConvBN, DepthwiseConv2d
from starshift.layers.activation import one_of
from starshift.layers.csc import middle_width, shortcut
from starshift.models._cifar import DEPTHS, CifarResNet
from starshift.models._registry import CIFAR, Variant

REDUCTION_MODES = ("net", "block")


class BasicBlock(nn.Module):
    """3x3 conv (stride here), BN, ReLU, 3x3 conv, BN, plus the shortcut, ReLU.

    Args:
        in_channels, out_channels, stride: of the block.
        reduction: the inner width is ``int(out_channels / reduction)``.
        drop_path: probability that the branch is dropped for a sample in training.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, reduction: float = 1, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        middle = middle_width(out_channels, 1 / reduction)
        self.conv1 = ConvBN(nn.Conv2d(in_channels, middle, 3, stride, 1, bias=False))
        self.conv2 = ConvBN(nn.Conv2d(middle, out_channels, 3, 1, 1, bias=False))
        self.shortcut = shortcut(in_channels, out_channels, stride)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        return F.relu(self.drop_path(y) + self.shortcut(x))


class DepthwiseBottleneck(nn.Module):
    """1x1 conv, BN, ReLU, 3x3 depthwise conv, BN, 1x1 conv (stride here), BN, plus the shortcut, ReLU.

    Args:
        as :class:`BasicBlock`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, reduction: float = 1, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        middle = middle_width(out_channels, 1 / reduction)
        self.conv1 = ConvBN(nn.Conv2d(in_channels, middle, 1, bias=False))
        self.conv2 = ConvBN(DepthwiseConv2d(middle, 3, bias=False))
        self.conv3 = ConvBN(nn.Conv2d(middle, out_channels, 1, stride, bias=False))
        self.shortcut = shortcut(in_channels, out_channels, stride)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(F.relu(self.conv1(x))))
        return F.relu(self.drop_path(y) + self.shortcut(x))


class ResNetCifar(CifarResNet):
    """The plain CIFAR ResNet with basic blocks.

    Args:
        depth: blocks in each group.
        reduction: r, 1 or more.
        reduction_mode: ``net`` or ``block``.
        num_classes, in_chans, drop_rate, drop_path_rate, global_pool: as everywhere.
    """

    def __init__(
        self,
        depth: int = 3,
        reduction: float = 1,
        reduction_mode: str = "net",
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        net = one_of("reduction_mode", reduction_mode, REDUCTION_MODES) == "net"

        def block(in_channels: int, out_channels: int, stride: int, drop_path: float) -> BasicBlock:
            return BasicBlock(in_channels, out_channels, stride, 1 if net else reduction, drop_path)

        divisor = reduction**0.5 if net else 1
        super().__init__(block, depth, divisor, num_classes, in_chans, drop_rate, drop_path_rate, global_pool)


class DepthwiseResNetCifar(CifarResNet):
    """The CIFAR ResNet with depthwise bottlenecks.

    Args:
        depth: blocks in each group.
        reduction: r, the inner width is a block's width over r; below 1 it is wider.
        num_classes, in_chans, drop_rate, drop_path_rate, global_pool: as everywhere.
    """

    def __init__(
        self,
        depth: int = 3,
        reduction: float = 1,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        def block(in_channels: int, out_channels: int, stride: int, drop_path: float) -> DepthwiseBottleneck:
            return DepthwiseBottleneck(in_channels, out_channels, stride, reduction, drop_path)

        super().__init__(block, depth, 1, num_classes, in_chans, drop_rate, drop_path_rate, global_pool)


_FULL = {
    20: {"cifar10": 91.35, "cifar100": 66.25},
    56: {"cifar10": 92.01, "cifar100": 69.27},
    110: {"cifar10": 92.46, "cifar100": 72.11},
}
# Reduced to the size of the ShiftResNet of the same number with expansion 1, 3, 6, 9.
_REDUCED = {
    20: {"cifar10": (84.77, 88.81, 91.30, 91.96), "cifar100": (50.23, 60.72, 65.59, 68.30)},
    56: {"cifar10": (88.32, 91.20, 93.01, 93.74)},
    110: {"cifar10": (89.79, 93.18, 93.40, 94.09)},
}
_DEPTHWISE: dict[int, dict[str, tuple[float, ...]]] = {20: {"cifar100": (61.32, 64.51, 65.38, 65.59)}}


def _same_size(table: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    return {
        f"{data} at the size of E={e}": top1
        for data, values in table.items()
        for e, top1 in zip((1, 3, 6, 9), values, strict=True)
    }


def _variant(name: str, cls: type[CifarResNet], depth: int, top1: dict[str, float]) -> Variant:
    return Variant(
        name,
        cls,
        {"depth": depth},
        **CIFAR,
        published_top1=top1,
        paper="Shift (arXiv 1711.08141), baseline",
    )


VARIANTS = (
    *(_variant(f"resnet{n}", ResNetCifar, d, {**_FULL[n], **_same_size(_REDUCED[n])}) for n, d in DEPTHS.items()),
    *(_variant(f"dwresnet{n}", DepthwiseResNetCifar, d, _same_size(_DEPTHWISE.get(n, {}))) for n, d in DEPTHS.items()),
)
