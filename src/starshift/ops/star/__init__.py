# SPDX-License-Identifier: Apache-2.0
"""The star operation: two linear branches multiplied element by element (Ma et al., CVPR 2024, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from starshift.errors import StarshiftError
from starshift.ops._operator import Operator, autocast_dtype, cast, check_bias
from starshift.ops.star import reference

ACTIVATIONS: tuple[str, ...] = tuple(reference.ACTIVATIONS)
PLACEMENTS: tuple[str, ...] = reference.PLACEMENTS

_star = Operator("star", "(Tensor x1, Tensor x2, str act, str placement) -> Tensor", reference.star)
_star_backward = Operator(
    "star_backward",
    "(Tensor grad, Tensor x1, Tensor x2, str act, str placement) -> (Tensor, Tensor)",
    reference.star_backward,
)
_MLP = "Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor wg"
_star_mlp = Operator("star_mlp", f"({_MLP}, Tensor? bg, str act, str placement) -> Tensor", reference.star_mlp)
_star_mlp_backward = Operator(
    "star_mlp_backward",
    f"(Tensor grad, {_MLP}, str act, str placement) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.star_mlp_backward,
)


def star(x1: Tensor, x2: Tensor, act: str = "relu6", placement: str = "first") -> Tensor:
    """Multiply two branches element by element, with an activation.

    ``first``: ``act(x1) * x2`` (StarNet); ``both``: ``act(x1) * act(x2)``; ``product``: ``act(x1 * x2)``.
    Under float16 autocast the product is formed and returned in float32: it leaves float16's range (65504) easily.

    Args:
        x1, x2: branches of one shape and dtype.
        act: one of :data:`ACTIVATIONS` (``"none"`` leaves the plain product).
        placement: where the activation stands, one of :data:`PLACEMENTS`.

    Returns:
        Tensor of the branches' shape.

    Raises:
        StarshiftError: unknown ``act`` or ``placement``, or branches of different shapes.

    Example:
        >>> import torch
        >>> from starshift.ops import star
        >>> star(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([5.0, 5.0, 5.0])).tolist()
        [5.0, 10.0, 30.0]
    """
    _check(act, placement)
    if x1.shape != x2.shape:
        raise StarshiftError(f"star: branches must have one shape, not {tuple(x1.shape)} and {tuple(x2.shape)}")
    dtype = torch.float32 if autocast_dtype(x1) == torch.float16 else torch.promote_types(x1.dtype, x2.dtype)
    return _star(*cast(dtype, x1, x2), act, placement)


def star_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    wg: Tensor,
    bg: Tensor | None,
    act: str = "relu6",
    placement: str = "first",
) -> Tensor:
    """Both branches, their star and the projection back: ``wg @ star(w1 @ x + b1, w2 @ x + b2) + bg``.

    Backward computes the two wide branches again instead of storing them. float16 is safe: product and projection are
    computed in float32, and under float16 autocast the result stays float32 (the batch norm that follows brings it back
    into range), so a branch value of 300 does not overflow as ``300 * 300`` would.

    Args:
        x: (..., C) with 2-D weights, or (N, C, H, W) with 1x1 convolution weights.
        w1, w2: (K, C) or (K, C, 1, 1). b1, b2: (K,) or None.
        wg: (Cout, K) or (Cout, K, 1, 1). bg: (Cout,) or None.
        act, placement: as in :func:`star`.

    Returns:
        (..., Cout) or (N, Cout, H, W).

    Raises:
        StarshiftError: unknown ``act`` or ``placement``, or weights whose shapes do not fit.

    Example:
        >>> import torch
        >>> from starshift.ops import star_mlp
        >>> x, w, wg = torch.ones(1, 2), torch.ones(3, 2), torch.ones(1, 3)
        >>> star_mlp(x, w, None, w, None, wg, None).tolist()  # three products of 2 * 2
        [[12.0]]
    """
    _check(act, placement)
    _check_weights(x, w1, w2, wg)
    for bias, weight in ((b1, w1), (b2, w2), (bg, wg)):
        check_bias("star_mlp", bias, weight)
    dtype = autocast_dtype(x)
    x, w1, b1, w2, b2 = cast(dtype, x, w1, b1, w2, b2)
    wg, bg = cast(torch.float32 if dtype == torch.float16 else dtype, wg, bg)
    return _star_mlp(x, w1, b1, w2, b2, wg, bg, act, placement)


def _check(act: str, placement: str) -> None:
    reference.check_activation(act)
    if placement not in PLACEMENTS:
        raise StarshiftError(f"unknown placement '{placement}', there are: {', '.join(PLACEMENTS)}")


def _check_weights(x: Tensor, w1: Tensor, w2: Tensor, wg: Tensor) -> None:
    conv = w1.dim() == 4
    channels = x.shape[1] if conv and x.dim() == 4 else x.shape[-1]
    fits = (
        w1.dim() == wg.dim()
        and (x.dim() == 4 if conv else w1.dim() == 2)
        and w1.shape == w2.shape
        and w1.shape[1] == channels
        and wg.shape[1] == w1.shape[0]
        and (not conv or w1.shape[2:] == (1, 1) == wg.shape[2:])
    )
    if not fits:
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in (("x", x), ("w1", w1), ("w2", w2), ("wg", wg)))
        raise StarshiftError(
            f"star_mlp: weights must be (K, C) or (K, C, 1, 1), the projection (Cout, K[, 1, 1]); got {shapes}"
        )


def _setup_star(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x1, x2, ctx.act, ctx.placement = inputs
    ctx.save_for_backward(x1, x2)


def _backward_star(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return (*_star_backward(grad, *ctx.saved_tensors, ctx.act, ctx.placement), None, None)


def _setup_star_mlp(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w1, b1, w2, b2, wg, bg, ctx.act, ctx.placement = inputs
    ctx.has_bias = (b1 is not None, b2 is not None, bg is not None)
    ctx.save_for_backward(x, w1, b1, w2, b2, wg)


def _backward_star_mlp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, w1, b1, w2, b2, wg, bg = _star_mlp_backward(grad, *ctx.saved_tensors, ctx.act, ctx.placement)
    b1, b2, bg = (g if there else None for g, there in zip((b1, b2, bg), ctx.has_bias, strict=True))
    return x, w1, b1, w2, b2, wg, bg, None, None


_star.differentiable(_setup_star, _backward_star)
_star_mlp.differentiable(_setup_star_mlp, _backward_star_mlp)
