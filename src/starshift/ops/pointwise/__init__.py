# SPDX-License-Identifier: Apache-2.0
"""Pointwise (1x1) convolution, and the pair of them with an activation between, as in ConvNeXt's block."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from starshift.errors import StarshiftError
from starshift.ops._operator import Operator, autocast_dtype, cast, check_bias
from starshift.ops.pointwise import reference
from starshift.ops.star.reference import check_activation

_pointwise_conv2d = Operator(
    "pointwise_conv2d", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", reference.pointwise_conv2d
)
_pointwise_conv2d_backward = Operator(
    "pointwise_conv2d_backward",
    "(Tensor grad, Tensor x, Tensor weight) -> (Tensor, Tensor, Tensor)",
    reference.pointwise_conv2d_backward,
)
_pointwise_mlp = Operator(
    "pointwise_mlp",
    "(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str act) -> Tensor",
    reference.pointwise_mlp,
)
_pointwise_mlp_backward = Operator(
    "pointwise_mlp_backward",
    "(Tensor grad, Tensor x, Tensor w1, Tensor? b1, Tensor w2, str act) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.pointwise_mlp_backward,
)


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mix the channels of every pixel: ``torch.nn.functional.conv2d`` with a 1x1 kernel, or ``linear``.

    Args:
        x: (N, C, H, W), or (..., C) with a weight of two dimensions.
        weight: (K, C, 1, 1) or (K, C). bias: (K,) or None.

    Returns:
        (N, K, H, W) or (..., K).

    Raises:
        StarshiftError: shapes that do not fit.

    Example:
        >>> import torch
        >>> from starshift.ops import pointwise_conv2d
        >>> pointwise_conv2d(torch.ones(1, 3), torch.ones(2, 3)).tolist()
        [[3.0, 3.0]]
    """
    _check("pointwise_conv2d", x, weight, bias)
    return _pointwise_conv2d(*cast(autocast_dtype(x), x, weight, bias))


def pointwise_mlp(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, act: str = "gelu") -> Tensor:
    """``w2 act(w1 x + b1) + b2`` for every pixel; the hidden units are not kept, backward makes them again.

    Args:
        x: (N, C, H, W) with 1x1 convolution weights, or (..., C) with weights of two dimensions.
        w1: (K, C[, 1, 1]). b1: (K,) or None. w2: (Cout, K[, 1, 1]). b2: (Cout,) or None.
        act: one of :data:`starshift.ops.ACTIVATIONS`.

    Returns:
        (N, Cout, H, W) or (..., Cout).

    Raises:
        StarshiftError: unknown ``act``; shapes that do not fit.

    Example:
        >>> import torch
        >>> from starshift.ops import pointwise_mlp
        >>> x, w1, w2 = torch.ones(1, 3), torch.ones(2, 3), torch.ones(1, 2)
        >>> pointwise_mlp(x, w1, None, w2, None, act="relu6").tolist()
        [[6.0]]
    """
    check_activation(act)
    _check("pointwise_mlp", x, w1, b1)
    if w1.dim() != w2.dim() or w2.shape[1] != w1.shape[0] or (w2.dim() == 4 and w2.shape[2:] != (1, 1)):
        raise StarshiftError(f"pointwise_mlp: weights {tuple(w1.shape)} and {tuple(w2.shape)} do not follow each other")
    check_bias("pointwise_mlp", b2, w2)
    return _pointwise_mlp(*cast(autocast_dtype(x), x, w1, b1, w2, b2), act)


def _check(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    conv = weight.dim() == 4
    fits = (x.dim() == 4 and weight.shape[2:] == (1, 1)) if conv else weight.dim() == 2
    if not fits or x.dim() < 2 or x.shape[1 if conv else -1] != weight.shape[1]:
        raise StarshiftError(
            f"{name}: a weight must be (K, C, 1, 1) for x (N, C, H, W), or (K, C) for (..., C); "
            f"got {tuple(weight.shape)} and {tuple(x.shape)}"
        )
    check_bias(name, bias, weight)


def _setup_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward_conv(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, bias = _pointwise_conv2d_backward(grad, *ctx.saved_tensors)
    return x, weight, bias if ctx.has_bias else None


def _setup_mlp(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w1, b1, w2, b2, ctx.act = inputs
    ctx.has_b2 = b2 is not None
    ctx.save_for_backward(x, w1, b1, w2)


def _backward_mlp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, w1, b1, w2 = ctx.saved_tensors
    x_grad, w1_grad, b1_grad, w2_grad, b2_grad = _pointwise_mlp_backward(grad, x, w1, b1, w2, ctx.act)
    return x_grad, w1_grad, None if b1 is None else b1_grad, w2_grad, b2_grad if ctx.has_b2 else None, None


_pointwise_conv2d.differentiable(_setup_conv, _backward_conv)
_pointwise_mlp.differentiable(_setup_mlp, _backward_mlp)
