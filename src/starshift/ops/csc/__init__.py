# SPDX-License-Identifier: Apache-2.0
"""The inside of a conv-shift-conv module as one operator: the wide tensor between its convolutions is never stored."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from starshift.errors import StarshiftError
from starshift.ops._operator import Operator, autocast_dtype, cast
from starshift.ops.csc import reference
from starshift.ops.norm import move_running
from starshift.ops.shift.offsets import Offsets, flatten

_WEIGHTS = "Tensor x, Tensor w1, Tensor weight, Tensor bias, Tensor w2"
_csc = Operator(
    "csc",
    f"({_WEIGHTS}, int[] offsets, int stride, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.csc,
)
_csc_backward = Operator(
    "csc_backward",
    f"(Tensor grad, {_WEIGHTS}, Tensor mean, Tensor var, Tensor x_mean, Tensor covariance, "
    "int[] offsets, int stride, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.csc_backward,
)


def csc(
    x: Tensor,
    w1: Tensor,
    weight: Tensor,
    bias: Tensor,
    w2: Tensor,
    offsets: Offsets,
    stride: int = 1,
    eps: float = 1e-5,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.1,
) -> Tensor:
    """``w2 @ shift(relu(batch_norm(w1 @ x)))`` in training: the norm takes the batch's own mean and variance.

    Args:
        x: (N, C, H, W), best channels last.
        w1: (E, C, 1, 1). w2: (K, E, 1, 1). Both without bias.
        weight, bias: (E,), of the batch norm.
        offsets: for E channels, as in :func:`starshift.ops.shift2d`.
        stride: of the second convolution, in pixels.
        eps: added to the variance.
        running_mean, running_var: (E,), moved in place by ``momentum``; None leaves them out.

    Returns:
        (N, K, ceil(H / stride), ceil(W / stride)).

    Raises:
        StarshiftError: shapes that do not fit, a stride below 1, or one value a channel.

    Source:
        Wu et al., "Shift", CVPR 2018, figure 4.

    Example:
        >>> import torch
        >>> from starshift.ops import csc
        >>> x, one = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2), torch.ones(1)
        >>> w = torch.ones(1, 1, 1, 1)
        >>> csc(x, w, one, 0 * one, w, ((1, 0, 1),), eps=0.0).flatten().tolist()  # -1, 1; then 0, 1; then moved
        [1.0, 0.0]
    """
    _check(x, w1, weight, bias, w2, offsets, stride)
    (x,) = cast(autocast_dtype(x), x)
    z, mean, var, _, _ = _csc(x, w1, weight, bias, w2, flatten(offsets), stride, eps)
    move_running(running_mean, running_var, mean, var, x.numel() // x.shape[1], momentum)
    return z


def _check(x: Tensor, w1: Tensor, weight: Tensor, bias: Tensor, w2: Tensor, offsets: Offsets, stride: int) -> None:
    wide = sum(n for n, _, _ in offsets)
    fits = (
        x.dim() == w1.dim() == w2.dim() == 4
        and w1.shape == (wide, x.shape[1], 1, 1)
        and w2.shape[1:] == (wide, 1, 1)
        and weight.shape == bias.shape == (wide,)
    )
    if not fits or stride < 1:
        raise StarshiftError(
            f"csc: w1 must be ({wide}, C, 1, 1), the norm ({wide},), w2 (K, {wide}, 1, 1), stride >= 1; got "
            f"{', '.join(str(tuple(t.shape)) for t in (x, w1, weight, bias, w2))}, {stride}"
        )
    if x.numel() == x.shape[1]:
        raise StarshiftError("csc: one value a channel has no variance; train with larger batches or images")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.offsets, ctx.stride, ctx.eps = inputs
    _, *statistics = output
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *statistics)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    return (*_csc_backward(grad, *ctx.saved_tensors, ctx.offsets, ctx.stride, ctx.eps), None, None, None)


_csc.differentiable(_setup, _backward)
