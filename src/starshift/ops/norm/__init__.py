# SPDX-License-Identifier: Apache-2.0
"""Batch norm with the activation after it as one operator, and what is added between them or at the end."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from starshift.errors import StarshiftError
from starshift.ops._operator import Operator
from starshift.ops.norm import reference
from starshift.ops.star.reference import check_activation

_TENSORS = "Tensor x, Tensor? weight, Tensor? bias, Tensor? residual"
_batch_norm_act = Operator(
    "batch_norm_act",
    f"({_TENSORS}, Tensor? shortcut, Tensor? mean, Tensor? var, float eps, str act) -> (Tensor, Tensor, Tensor)",
    reference.batch_norm_act,
)
_batch_norm_act_backward = Operator(
    "batch_norm_act_backward",
    f"(Tensor grad, {_TENSORS}, Tensor mean, Tensor var, float eps, str act, bool training)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference.batch_norm_act_backward,
)


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "none",
    residual: Tensor | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """``act(batch_norm(x) + residual) + shortcut``; without the last three ``torch.nn.functional.batch_norm``.

    Args:
        x: (N, C, H, W).
        weight, bias: (C,) or None; may be float32 where x is of a smaller type.
        running_mean, running_var: (C,) or None. Evaluation reads them and needs both; training updates them in place.
        training: normalise by the batch's own mean and variance.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.
        act: one of :data:`starshift.ops.ACTIVATIONS`.
        residual, shortcut: of x's shape and dtype, or None; added before the activation and after it.

    Returns:
        (N, C, H, W) of x's dtype.

    Raises:
        StarshiftError: unknown ``act``; shapes that do not fit; one value a channel in training; no running statistics
            in evaluation.

    Source:
        Ioffe and Szegedy, ICML 2015, algorithms 1 and 2.

    Example:
        >>> import torch
        >>> from starshift.ops import batch_norm_act
        >>> x = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
        >>> batch_norm_act(x, training=True, eps=0.0, act="relu").flatten().tolist()
        [0.0, 1.0]
    """
    _check(x, weight, bias, running_mean, running_var, training, act, residual, shortcut)
    if not training:
        return _batch_norm_act(x, weight, bias, residual, shortcut, running_mean, running_var, eps, act)[0]
    out, mean, var = _batch_norm_act(x, weight, bias, residual, shortcut, None, None, eps, act)
    move_running(running_mean, running_var, mean, var, x.numel() // x.shape[1], momentum)
    return out


def move_running(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, count: int, momentum: float
) -> None:
    """Move running statistics in place towards a batch's mean and biased variance, which are of ``count`` values."""
    if running_mean is not None and count > 0:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None and count > 0:
        running_var.lerp_(var.to(running_var.dtype) * (count / (count - 1)), momentum)


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    act: str,
    residual: Tensor | None,
    shortcut: Tensor | None,
) -> None:
    check_activation(act)
    if x.dim() != 4:
        raise StarshiftError(f"batch_norm_act: x must be (N, C, H, W), not {tuple(x.shape)}")
    for name, t in (("weight", weight), ("bias", bias), ("running_mean", running_mean), ("running_var", running_var)):
        if t is not None and t.shape != (x.shape[1],):
            raise StarshiftError(f"batch_norm_act: {name} must be ({x.shape[1]},), not {tuple(t.shape)}")
    for name, t in (("residual", residual), ("shortcut", shortcut)):
        if t is not None and (t.shape != x.shape or t.dtype != x.dtype):
            raise StarshiftError(
                f"batch_norm_act: the {name} must be as x, {tuple(x.shape)} of {x.dtype}, "
                f"not {tuple(t.shape)} of {t.dtype}"
            )
    if training and x.numel() == x.shape[1]:
        raise StarshiftError("batch_norm_act: one value a channel has no variance; train with larger batches or images")
    if not training and (running_mean is None or running_var is None):
        raise StarshiftError("batch_norm_act: evaluation needs running_mean and running_var")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, residual, shortcut, mean, var, ctx.eps, ctx.act = inputs
    _, batch_mean, batch_var = output
    ctx.training = mean is None
    ctx.mark_non_differentiable(batch_mean, batch_var)
    ctx.set_materialize_grads(False)
    if ctx.training:
        mean, var = batch_mean, batch_var
    ctx.has = [t is not None for t in (residual, shortcut)]
    ctx.save_for_backward(x, weight, bias, residual if ctx.act != "none" else None, mean, var)


def _backward(ctx: Any, grad: Tensor, _mean_grad: None, _var_grad: None) -> tuple[Any, ...]:
    x, weight, bias, residual, mean, var = ctx.saved_tensors
    x_grad, residual_grad, weight_grad, bias_grad = _batch_norm_act_backward(
        grad, x, weight, bias, residual, mean, var, ctx.eps, ctx.act, ctx.training
    )
    if ctx.act == "none":  # the residual's gradient is the output's: nothing to compute
        residual_grad = grad
    weight_grad = weight_grad.to(weight.dtype) if weight is not None else None
    bias_grad = bias_grad.to(bias.dtype) if bias is not None else None
    added = (g if there else None for g, there in zip((residual_grad, grad), ctx.has, strict=True))
    return x_grad, weight_grad, bias_grad, *added, None, None, None, None


_batch_norm_act.differentiable(_setup, _backward)
