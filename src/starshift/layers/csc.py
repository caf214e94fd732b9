# SPDX-License-Identifier: Apache-2.0
"""Conv-shift-conv modules (Wu et al., CVPR 2018): two 1x1 convolutions and a shift do a spatial one's work."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers.activation import one_of
from starshift.layers.conv_bn import ConvBN, is_pointwise, plain_conv
from starshift.layers.folding import Foldable, Run, fuse_conv_bn_
from starshift.layers.norm import has_kernels, is_watched, next_momentum
from starshift.layers.prepared import run_prepared
from starshift.layers.shift import Assignment, ShiftConv2d, shift_conv, shift_layer
from starshift.ops import batch_norm_act, csc
from starshift.ops.csc.infer import Prepared

RELU_PLACES = ("branch", "sum")


class CSC(Foldable):
    """The CIFAR form: 1x1 conv, BN, ReLU, shift, 1x1 conv (stride here), BN, ReLU, plus the shortcut.

    Args:
        in_channels, out_channels: of the module. The shortcut is the identity, or 1x1 conv + BN where shapes change.
        stride: of the second convolution and of the shortcut.
        expansion: E, the middle has ``int(E * out_channels)`` channels.
        kernel_size, dilation: of the shift.
        offsets: of the fixed shift, ``grouped``, ``interleaved`` or runs [channels, dy, dx], see :func:`make_offsets`.
        relu: where the second ReLU stands: on the ``branch`` before the sum, or after the ``sum`` (a later version of
            the reference code; checkpoints do not say which they were trained with).
        sc2: shift before the first convolution too (SC², shift-conv-shift-conv).
        drop_path: probability that the branch is dropped for a sample in training.
        shift: ``fixed``, or learned: ``active`` or ``sparse``, see :class:`LearnedShift2d`.

    Shapes: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        expansion: float = 1,
        kernel_size: int = 3,
        dilation: int = 1,
        offsets: Assignment = "grouped",
        relu: str = "branch",
        sc2: bool = False,
        drop_path: float = 0.0,
        shift: str = "fixed",
    ) -> None:
        super().__init__()
        self.relu = one_of("relu", relu, RELU_PLACES)
        middle = middle_width(out_channels, expansion)
        self.conv1 = ConvBN(_first_conv(in_channels, middle, kernel_size, dilation, offsets, sc2, shift))
        self.conv2 = ConvBN(shift_conv(middle, out_channels, kernel_size, dilation, offsets, shift, stride))
        self.shortcut = shortcut(in_channels, out_channels, stride)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.folded = False

    def fold(self) -> None:
        """The convolutions take their norms in themselves; the module then runs with weights laid out once."""
        self.folded = True

    def prepare(self) -> Run | None:
        first, second = plain_conv(self.conv1), plain_conv(self.conv2)
        same = type(self.shortcut) is nn.Identity
        short: Any = None if same else plain_conv(self.shortcut)
        if not (
            self.folded
            and (type(first), type(second)) == (nn.Conv2d, ShiftConv2d)
            and is_pointwise(first, (1, 1))
            and (second.stride == (1, 1) if same else type(short) is nn.Conv2d and is_pointwise(short, second.stride))
            and type(self.drop_path) in (DropPath, nn.Identity)
            and first.out_channels == second.in_channels == sum(n for n, _, _ in second.offsets)
            and (first.in_channels, second.out_channels)
            == ((second.out_channels, first.in_channels) if same else (short.in_channels, short.out_channels))
        ):
            return None
        return Prepared(
            *((first.weight, first.bias), (second.weight, second.bias), second.offsets, second.stride[0]),
            None if short is None else (short.weight, short.bias),
            after_sum=self.relu == "sum",
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.folded:
            y = run_prepared(self, x)
            return self._by_layers(x) if y is None else y
        return self._fused(x) if self._fusable(x) else self._by_layers(x)

    def _by_layers(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        if self.relu == "sum":
            return F.relu(self.drop_path(y) + self.shortcut(x))
        return self.drop_path(F.relu(y)) + self.shortcut(x)

    def _fusable(self, x: Tensor) -> bool:
        """Whether the operators that hold a whole module do what its parts would: in training, with plain parts on
        which no hook waits, and where there is a kernel."""
        if not self.training or not has_kernels(x, "csc"):
            return False
        conv1, conv2 = self.conv1, self.conv2
        parts: tuple[nn.Module, ...] = (conv1, conv1.conv, conv1.bn, conv2, conv2.conv, conv2.bn)
        plain = (ConvBN, nn.Conv2d, nn.BatchNorm2d, ConvBN, ShiftConv2d, nn.BatchNorm2d)
        return all(
            type(part) is kind and not is_watched(part) for part, kind in zip(parts, plain, strict=True)
        ) and all(
            norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None
            for norm in (conv1.bn, conv2.bn)
            if isinstance(norm, nn.BatchNorm2d)
        )

    def _fused(self, x: Tensor) -> Tensor:
        conv1, norm1, conv2, norm2 = self.conv1.conv, self.conv1.bn, self.conv2.conv, self.conv2.bn
        assert isinstance(norm1, nn.BatchNorm2d) and isinstance(norm2, nn.BatchNorm2d)
        assert isinstance(conv2, ShiftConv2d)
        z = csc(
            *(x, conv1.weight, norm1.weight, norm1.bias, conv2.weight, conv2.offsets, conv2.stride[0], norm1.eps),
            *(norm1.running_mean, norm1.running_var, next_momentum(norm1)),
        )
        short = self.shortcut(x)
        same = short.dtype == z.dtype and type(self.drop_path) is nn.Identity and not is_watched(self.drop_path)
        before = self.relu == "sum"
        y = batch_norm_act(
            *(z, norm2.weight, norm2.bias, norm2.running_mean, norm2.running_var, True, next_momentum(norm2)),
            norm2.eps,
            act="none" if before and not same else "relu",
            residual=short if before and same else None,
            shortcut=short if same and not before else None,
        )
        if same:
            return y
        y = self.drop_path(y) + short
        return F.relu(y) if before else y


class PreActCSC(Foldable):
    """The ImageNet form (ShiftNet): BN, ReLU, 1x1 conv, shift, BN, ReLU, 1x1 conv (stride here), no bias.

    At stride 2 the shortcut is a 3x3 average pool which is concatenated: the branch makes the channels that are new.
    Otherwise the input is added.

    Args:
        in_channels, out_channels: of the module; equal at stride 1.
        expansion: E, the middle has E times the channels that the branch makes.
        kernel_size, dilation, offsets, drop_path, shift: as in :class:`CSC`.
        sc2: SC²: BN, ReLU, shift, 1x1 conv, BN, ReLU, shift, 1x1 conv.

    Raises:
        StarshiftError: stride 2 that adds no channels, or stride 1 that changes them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        expansion: float = 1,
        kernel_size: int = 3,
        dilation: int = 1,
        offsets: Assignment = "grouped",
        sc2: bool = False,
        drop_path: float = 0.0,
        shift: str = "fixed",
    ) -> None:
        super().__init__()
        new = out_channels - in_channels if stride > 1 else out_channels
        if new < 1 or (stride == 1 and in_channels != out_channels):
            raise StarshiftError(
                f"a ShiftNet module from {in_channels} to {out_channels} channels at stride {stride}: "
                "a strided module must add channels, another must keep them"
            )
        self.sc2 = sc2
        middle = middle_width(new, expansion)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _first_conv(in_channels, middle, kernel_size, dilation, offsets, sc2, shift)
        self.shift = nn.Identity() if sc2 else shift_layer(middle, kernel_size, dilation, offsets, shift)
        self.norm2: nn.Module = nn.BatchNorm2d(middle)
        self.conv2 = (
            shift_conv(middle, new, kernel_size, dilation, offsets, shift, stride)
            if sc2
            else nn.Conv2d(middle, new, 1, stride, bias=False)
        )
        self.pool = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.shift(self.conv1(F.relu(self.norm1(x))))
        y = self.drop_path(self.conv2(F.relu(self.norm2(y))))
        if isinstance(self.pool, nn.AvgPool2d):
            return torch.cat((y, self.pool(x)), dim=1)
        return x + y

    def fold(self) -> None:
        """Only SC² has a norm right after a convolution; after a shift the zeros at the border forbid it."""
        if self.sc2 and fuse_conv_bn_(self.conv1, self.norm2):
            self.norm2 = nn.Identity()


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Identity where shapes stay, else 1x1 convolution with the stride, and BN (ResNet's projection shortcut)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvBN(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))


def middle_width(channels: int, expansion: float) -> int:
    """``int(expansion * channels)``.

    Raises:
        StarshiftError: that is below 1.
    """
    width = int(expansion * channels)
    if width < 1:
        raise StarshiftError(f"expansion={expansion} leaves no channels of {channels}: take a larger one")
    return width


def _first_conv(
    in_channels: int, middle: int, kernel_size: int, dilation: int, offsets: Assignment, sc2: bool, shift: str
) -> nn.Conv2d:
    """The convolution before the shift; SC²'s own shift is grouped where the other's runs are given."""
    if not sc2:
        return nn.Conv2d(in_channels, middle, 1, bias=False)
    own = offsets if isinstance(offsets, str) else "grouped"
    return shift_conv(in_channels, middle, kernel_size, dilation, own, shift)
