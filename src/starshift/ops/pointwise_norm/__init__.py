# SPDX-License-Identifier: Apache-2.0
"""A 1x1 convolution with the batch norm and activation after it, in training, as one operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from starshift.errors import StarshiftError
from starshift.ops._operator import Operator, autocast_dtype, cast
from starshift.ops.norm import move_running
from starshift.ops.pointwise_norm import reference
from starshift.ops.star.reference import check_activation

_WEIGHTS = "Tensor x, Tensor w, Tensor weight, Tensor bias"
_pointwise_norm_act = Operator(
    "pointwise_norm_act",
    f"({_WEIGHTS}, float eps, str act) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.pointwise_norm_act,
)
_pointwise_norm_act_backward = Operator(
    "pointwise_norm_act_backward",
    f"(Tensor grad, {_WEIGHTS}, Tensor mean, Tensor var, Tensor x_mean, Tensor covariance, float eps, str act)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference.pointwise_norm_act_backward,
)


def pointwise_norm_act(
    x: Tensor,
    w: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    act: str = "none",
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.1,
) -> Tensor:
    """``act(batch_norm(w @ x))`` in training: the norm takes the batch's own mean and variance.

    Worth it where E is larger than C, as at the wide end of an inverted residual block: nothing of E channels but the
    result is stored, and nothing of them kept for backward.

    Args:
        x: (N, C, H, W), best channels last.
        w: (E, C, 1, 1), without bias, which the norm would take away.
        weight, bias: (E,), of the batch norm.
        eps: added to the variance.
        act: one of :data:`starshift.ops.ACTIVATIONS`.
        running_mean, running_var: (E,), moved in place by ``momentum``; None leaves them out.

    Returns:
        (N, E, H, W).

    Raises:
        StarshiftError: unknown ``act``, shapes that do not fit, or one value a channel.

    Source:
        Sandler et al., "MobileNetV2", CVPR 2018, section 3.3 (the block); Ioffe and Szegedy, ICML 2015 (the norm).

    Example:
        >>> import torch
        >>> from starshift.ops import pointwise_norm_act
        >>> x, one = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2), torch.ones(1)
        >>> pointwise_norm_act(x, torch.ones(1, 1, 1, 1), one, 0 * one, eps=0.0, act="relu").flatten().tolist()
        [0.0, 1.0]
    """
    _check(x, w, weight, bias, act)
    (x,) = cast(autocast_dtype(x), x)
    y, mean, var, _, _ = _pointwise_norm_act(x, w, weight, bias, eps, act)
    move_running(running_mean, running_var, mean, var, x.numel() // x.shape[1], momentum)
    return y


def _check(x: Tensor, w: Tensor, weight: Tensor, bias: Tensor, act: str) -> None:
    check_activation(act)
    fits = x.dim() == w.dim() == 4 and w.shape[1:] == (x.shape[1], 1, 1) and weight.shape == bias.shape == w.shape[:1]
    if not fits:
        raise StarshiftError(
            "pointwise_norm_act: x must be (N, C, H, W), w (E, C, 1, 1), the norm (E,); got "
            f"{', '.join(str(tuple(t.shape)) for t in (x, w, weight, bias))}"
        )
    if x.numel() == x.shape[1]:
        raise StarshiftError(
            "pointwise_norm_act: one value a channel has no variance; train with larger batches or images"
        )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.act = inputs
    _, *statistics = output
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *statistics)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    return (*_pointwise_norm_act_backward(grad, *ctx.saved_tensors, ctx.eps, ctx.act), None, None)


_pointwise_norm_act.differentiable(_setup, _backward)
