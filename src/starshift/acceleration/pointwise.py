# SPDX-License-Identifier: Apache-2.0
"""Pointwise convolutions, and the pair of them in ConvNeXt's block, by our operators."""

from __future__ import annotations

from typing import ClassVar

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from starshift.acceleration._rules import DTYPES, ClassRule, rule
from starshift.acceleration.norm import activation_name
from starshift.layers.norm import is_watched, runs_kernels
from starshift.ops import pointwise_conv2d, pointwise_mlp

_LEAST_PIXELS = 256  # below, what calling costs outweighs what is gained


def _pixels(x: Tensor) -> int:
    return x.numel() // max(x.shape[1], 1)


def is_pointwise(layer: nn.Module) -> bool:
    """Whether it is a plain 1x1 convolution, ours or torch's."""
    return (
        type(layer) in (nn.Conv2d, AcceleratedPointwiseConv2d)
        and (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        and layer.padding in ((0, 0), "same", "valid")
    )


class AcceleratedPointwiseConv2d(nn.Conv2d):
    """A 1x1 ``nn.Conv2d`` that learns by :func:`starshift.ops.pointwise_conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and self.weight.requires_grad and is_pointwise(self)
        if not learns or not runs_kernels(input, "pointwise_conv2d") or _pixels(input) < _LEAST_PIXELS:
            return super().forward(input)
        return pointwise_conv2d(input, self.weight, self.bias)


@rule
class PointwiseConvolution(ClassRule):
    what = "pointwise convolution"
    classes: ClassVar = {nn.Conv2d: AcceleratedPointwiseConv2d}

    def match(self, module: nn.Module) -> bool | str | None:
        return super().match(module) if type(module) is nn.Conv2d else None

    def fits(self, module: nn.Conv2d) -> bool | str | None:
        if module.groups != 1 or module.kernel_size != (1, 1):
            return None
        if module.weight.dtype not in DTYPES:
            return str(module.weight.dtype).removeprefix("torch.")
        return True if is_pointwise(module) else "a pointwise convolution with stride or padding"


class AcceleratedMlp(Mlp):
    """A ``timm.layers.Mlp`` of 1x1 convolutions that runs :func:`starshift.ops.pointwise_mlp`."""

    def forward(self, x: Tensor) -> Tensor:
        drops = [d for d in (self.drop1, self.drop2) if not _is_idle(d)]
        parts = (self.fc1, self.act, self.drop1, self.norm, self.fc2, self.drop2)
        act = activation_name(self.act)
        fits = is_pointwise(self.fc1) and is_pointwise(self.fc2) and _pixels(x) >= _LEAST_PIXELS
        plain = not drops and type(self.norm) is nn.Identity
        if not plain or act is None or not fits or not runs_kernels(x, "pointwise_mlp") or any(map(is_watched, parts)):
            return super().forward(x)
        return pointwise_mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, act)


def _is_idle(drop: nn.Module) -> bool:
    return type(drop) is nn.Identity or (type(drop) is nn.Dropout and (drop.p == 0 or not drop.training))


@rule
class PointwiseMlp(ClassRule):
    what = "two pointwise convolutions with their activation"
    classes: ClassVar = {Mlp: AcceleratedMlp}
    whole = True

    def match(self, module: nn.Module) -> bool | str | None:
        return super().match(module) if type(module) is Mlp else None

    def fits(self, module: Mlp) -> bool | str | None:
        if not (is_pointwise(module.fc1) and is_pointwise(module.fc2)):
            return None
        for part, kinds in ((module.norm, (nn.Identity,)), (module.drop1, (nn.Identity, nn.Dropout))):
            if type(part) not in kinds:
                return f"{type(part).__name__} stands between its convolutions"
        if activation_name(module.act) is None:
            return f"activation {type(module.act).__name__}"
        return True if module.fc1.weight.dtype in DTYPES else str(module.fc1.weight.dtype).removeprefix("torch.")
