# SPDX-License-Identifier: Apache-2.0
"""A pointwise convolution that widens, with the batch norm and activation after it, by our operator."""

from __future__ import annotations

from typing import Any, ClassVar

from timm.layers import BatchNormAct2d, ConvNormAct
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

from starshift.acceleration._rules import ClassRule, rule
from starshift.acceleration.norm import AcceleratedBatchNorm2d, AcceleratedBatchNormAct2d, activation_name
from starshift.acceleration.pointwise import is_pointwise
from starshift.layers.norm import is_watched, next_momentum, runs_kernels
from starshift.ops import pointwise_norm_act

_PIXELS_A_CHANNEL = 16  # fewer do not repay the statistics, which cost the same for any number
_NORMS = (nn.BatchNorm2d, AcceleratedBatchNorm2d, BatchNormAct2d, AcceleratedBatchNormAct2d)


def widens(conv: Any, norm: Any) -> bool:
    """Whether the two are such a convolution and such a norm."""
    return is_pointwise(conv) and conv.bias is None and conv.out_channels > conv.in_channels and type(norm) in _NORMS


def widen(conv: Any, norm: Any, x: Tensor, act: str | None = "none") -> Tensor | None:
    """``act(norm(conv(x)))`` as one operator, with the norm's running statistics kept; None where that cannot be.

    Args:
        conv, norm: None is returned for two that :func:`widens` says no to.
        x: (N, C, H, W).
        act: of what follows the norm; a norm with an activation of its own has that. None: it has no name.
    """
    if not norm.training or not widens(conv, norm):  # a part may have been replaced
        return None
    own = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
    if own:
        act = activation_name(norm.act) if type(norm.drop) is nn.Identity else None
    if (
        act is None
        or norm.weight is None
        or norm.bias is None
        or not runs_kernels(x, "pointwise_norm_act")
        or x.numel() < _PIXELS_A_CHANNEL * x.shape[1] ** 2
        or x.numel() == x.shape[1]
        or any(map(is_watched, (conv, norm, *own)))
    ):
        return None
    mean, var = (norm.running_mean, norm.running_var) if norm.track_running_stats else (None, None)
    momentum = next_momentum(norm)
    return pointwise_norm_act(x, conv.weight, norm.weight, norm.bias, norm.eps, act, mean, var, momentum)


class AcceleratedInvertedResidual(InvertedResidual):
    """timm's inverted residual block, its first convolution and norm as one operator in training."""

    def forward(self, x: Tensor) -> Tensor:
        y = widen(self.conv_pw, self.bn1, x)
        if y is None:
            return super().forward(x)
        y = self.aa(self.bn2(self.conv_dw(y)))  # type: ignore[misc]  # timm annotates its layers as it sets them
        y = self.bn3(self.conv_pwl(self.se(y)))
        return self.drop_path(y) + x if self.has_skip else y


class AcceleratedConvNormAct(ConvNormAct):
    """timm's convolution with norm and activation, as one operator in training."""

    def forward(self, x: Tensor) -> Tensor:
        y = widen(self.conv, self.bn, x)
        if y is None:
            return super().forward(x)
        return y if self.aa is None else self.aa(y)


@rule
class Expansion(ClassRule):
    what = "widening convolution with norm and activation"
    classes: ClassVar = {InvertedResidual: AcceleratedInvertedResidual, ConvNormAct: AcceleratedConvNormAct}

    def match(self, module: nn.Module) -> bool | str | None:
        return super().match(module) if type(module) in self.classes else None

    def fits(self, module: Any) -> bool | str | None:
        if isinstance(module, ConvNormAct):
            return widens(module.conv, module.bn) or None
        return (module.conv_s2d is None and widens(module.conv_pw, module.bn1)) or None
