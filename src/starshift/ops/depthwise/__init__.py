# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution: one spatial filter for each channel, the part of StarNet that mixes space."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from starshift.errors import StarshiftError
from starshift.ops._operator import Operator, autocast_dtype, cast, check_bias
from starshift.ops.depthwise import reference

_GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation"
_depthwise_conv2d = Operator(
    "depthwise_conv2d", f"(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor", reference.depthwise_conv2d
)
_depthwise_conv2d_backward = Operator(
    "depthwise_conv2d_backward",
    f"(Tensor grad, Tensor x, Tensor weight, {_GEOMETRY}) -> (Tensor, Tensor, Tensor)",
    reference.depthwise_conv2d_backward,
)

Pair = int | tuple[int, int]


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> Tensor:
    """Convolve every channel with its own filter; ``torch.nn.functional.conv2d`` with ``groups = C``.

    Args:
        x: (N, C, H, W). weight: (C, 1, kh, kw). bias: (C,) or None.
        stride, padding, dilation: in pixels, one number or (vertical, horizontal).

    Returns:
        (N, C, Hout, Wout) with ``Hout = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1``.

    Raises:
        StarshiftError: x is not 4-D, or weight is not (C, 1, kh, kw) for x's C channels.

    Example:
        >>> import torch
        >>> from starshift.ops import depthwise_conv2d
        >>> depthwise_conv2d(torch.ones(1, 8, 5, 5), torch.ones(8, 1, 3, 3), padding=1)[0, 0, 0].tolist()
        [4.0, 6.0, 6.0, 6.0, 4.0]
    """
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[:2] != (x.shape[1], 1):
        raise StarshiftError(
            "depthwise_conv2d: x must be (N, C, H, W) and weight (C, 1, kh, kw); "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    check_bias("depthwise_conv2d", bias, weight)
    x, weight, bias = cast(autocast_dtype(x), x, weight, bias)
    return _depthwise_conv2d(x, weight, bias, as_pair(stride), as_pair(padding), as_pair(dilation))


def as_pair(value: Pair) -> list[int]:
    """[vertical, horizontal]."""
    return [value, value] if isinstance(value, int) else list(value)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.geometry = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, bias = _depthwise_conv2d_backward(grad, *ctx.saved_tensors, *ctx.geometry)
    return x, weight, bias if ctx.has_bias else None, None, None, None


_depthwise_conv2d.differentiable(_setup, _backward)
