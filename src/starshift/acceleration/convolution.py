# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolutions by our operator."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from starshift.acceleration._rules import DTYPES, ClassRule, rule
from starshift.layers.norm import is_small_inference
from starshift.ops import depthwise_conv2d


def _padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """In pixels at each side, (vertical, horizontal); None where the two sides differ."""
    if not isinstance(conv.padding, str):
        return cast(tuple[int, int], conv.padding)
    (top, left) = (
        d * (k - 1) if conv.padding == "same" else 0 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
    )
    return None if top % 2 or left % 2 else (top // 2, left // 2)


class AcceleratedConv2d(nn.Conv2d):
    """A depthwise ``nn.Conv2d`` that runs :func:`starshift.ops.depthwise_conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        if is_small_inference(input) and input.dtype == torch.float32:
            return super().forward(input)
        padding = _padding(self)
        if input.dim() != 4 or padding is None:
            return super().forward(input)
        return depthwise_conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation)  # type: ignore[arg-type]


class AcceleratedConv2dSame(Conv2dSame):
    """A depthwise ``timm.layers.Conv2dSame`` (TensorFlow's padding) that runs our operator."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or (is_small_inference(input) and input.dtype == torch.float32):
            return super().forward(input)
        padded = pad_same(input, list(self.kernel_size), list(self.stride), list(self.dilation))
        return depthwise_conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation)  # type: ignore[arg-type]


@rule
class DepthwiseConvolution(ClassRule):
    what = "depthwise convolution"
    classes: ClassVar = {nn.Conv2d: AcceleratedConv2d, Conv2dSame: AcceleratedConv2dSame}

    def fits(self, module: nn.Conv2d) -> bool | str | None:
        if module.groups == 1 and module.kernel_size == (1, 1):
            return None
        if module.groups == 1:
            return "mixes pixels and channels"
        if not module.groups == module.in_channels == module.out_channels:
            return "groups != channels"
        if module.padding_mode != "zeros":
            return f"padding_mode {module.padding_mode!r}"
        if _padding(module) is None:
            return "uneven padding"
        if module.weight.dtype not in DTYPES:
            return str(module.weight.dtype).removeprefix("torch.")
        return True
