# SPDX-License-Identifier: Apache-2.0
"""A network's first convolution: few channels in, many pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from starshift.errors import StarshiftError
from starshift.ops._operator import Operator, autocast_dtype, cast, check_bias
from starshift.ops.depthwise import Pair, as_pair
from starshift.ops.stem import reference

_GEOMETRY = "int[2] stride, int[2] padding"
_stem_conv2d = Operator(
    "stem_conv2d", f"(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor", reference.stem_conv2d
)
_stem_conv2d_backward = Operator(
    "stem_conv2d_backward",
    f"(Tensor grad, Tensor x, Tensor weight, {_GEOMETRY}) -> (Tensor, Tensor)",
    reference.stem_conv2d_backward,
)


def stem_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1, padding: Pair = 0) -> Tensor:
    """``torch.nn.functional.conv2d`` of images, which are rounded to the weight's dtype as they are read.

    Args:
        x: (N, C, H, W) in any layout and dtype: under autocast images may stay float32. weight: (K, C, kh, kw).
        bias: (K,) or None.
        stride, padding: in pixels, one number or (vertical, horizontal).

    Returns:
        (N, K, Hout, Wout) of the weight's dtype, with ``Hout = (H + 2 padding - kh) // stride + 1``.

    Raises:
        StarshiftError: x is not 4-D, or weight is not (K, C, kh, kw) for x's C channels.

    Example:
        >>> import torch
        >>> from starshift.ops import stem_conv2d
        >>> stem_conv2d(torch.ones(1, 3, 4, 4), torch.ones(2, 3, 3, 3), stride=2, padding=1)[0, 0].tolist()
        [[12.0, 18.0], [18.0, 27.0]]
    """
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[1] != x.shape[1]:
        raise StarshiftError(
            "stem_conv2d: x must be (N, C, H, W) and weight (K, C, kh, kw); "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    check_bias("stem_conv2d", bias, weight)
    weight, bias = cast(autocast_dtype(x), weight, bias)
    return _stem_conv2d(x, weight, bias, as_pair(stride), as_pair(padding))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.geometry = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    stride, padding = ctx.geometry
    weight_grad, bias_grad = _stem_conv2d_backward(grad, x, weight, stride, padding)
    x_grad = None
    if ctx.needs_input_grad[0]:  # of images, which is rare
        options = (None, stride, padding, [1, 1], False, [0, 0], 1, [True, False, False])
        x_grad = torch.ops.aten.convolution_backward(grad, x.to(weight.dtype), weight, *options)[0].to(x.dtype)
    return x_grad, weight_grad, bias_grad if ctx.has_bias else None, None, None


_stem_conv2d.differentiable(_setup, _backward)
