# SPDX-License-Identifier: Apache-2.0
"""StarNet's block as one operator: what stands between its convolutions needs no pass over memory of its own.

Unlike the operators that it is made of, it has a meaning only together: its kernel writes three tensors of the input's
size and nothing else, where the plain layers write and read twenty.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from starshift.ops._operator import Operator
from starshift.ops.star_block import reference

_WEIGHTS = (
    "Tensor wd, Tensor? bd, Tensor gamma1, Tensor beta1, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, "
    "Tensor wg, Tensor? bg, Tensor gamma2, Tensor beta2, Tensor we, Tensor? be"
)
_OPTIONS = "Tensor? sample_scale, bool training, float eps1, float eps2, str act, str placement"
_star_block = Operator(
    "star_block",
    f"(Tensor x, {_WEIGHTS}, Tensor mean1, Tensor var1, Tensor mean2, Tensor var2, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference.star_block,
)
_star_block_backward = Operator(
    "star_block_backward",
    f"(Tensor grad, Tensor x, Tensor y, Tensor z, Tensor statistics, {_WEIGHTS}, {_OPTIONS}) "
    f"-> ({', '.join(['Tensor'] * 15)})",
    reference.star_block_backward,
)


class Weights(NamedTuple):
    """The block's parameters: depthwise, batch norm, the two branches, projection, batch norm, depthwise.

    wd, we: (C, 1, k, k) with odd k. w1, w2: (K, C, 1, 1). wg: (C, K, 1, 1). Biases may be None.
    """

    wd: Tensor
    bd: Tensor | None
    gamma1: Tensor
    beta1: Tensor
    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    wg: Tensor
    bg: Tensor | None
    gamma2: Tensor
    beta2: Tensor
    we: Tensor
    be: Tensor | None


def star_block(
    x: Tensor,
    weights: Weights,
    running: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    sample_scale: Tensor | None = None,
    training: bool = False,
    eps: tuple[float, float] = (1e-5, 1e-5),
    act: str = "relu6",
    placement: str = "first",
) -> tuple[Tensor, Tensor]:
    """``x + s * dw2(bn2(g(star(f1(u), f2(u)))))`` with ``u = bn1(dw1(x))`` (Ma et al., CVPR 2024, figure 4).

    Args:
        x: (N, C, H, W).
        weights: float32, also for x in bfloat16.
        running: mean and variance, (C,) each, of the first and the second batch norm. In training the batch's own
            statistics are used, and these only keep the sums small.
        sample_scale: s, (N,) in float32 (drop path: 0, or 1 over the probability to be kept), or None for ones.
        training: whether the batch norms take the batch's statistics.

    Returns:
        (N, C, H, W), and the (biased) statistics that were used, (4, C) in float32: mean and variance of each norm. No
        gradient flows through the statistics.
    """
    out, _, _, statistics = _star_block(x, *weights, *running, sample_scale, training, *eps, act, placement)
    return out, statistics


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weights = inputs[0], inputs[1:15]
    sample_scale, *ctx.options = inputs[19:]
    _, *rest = output
    ctx.mark_non_differentiable(*rest)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *rest, *weights, sample_scale)


def _backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Any, ...]:
    x, y, z, statistics, *weights, sample_scale = ctx.saved_tensors
    grads = _star_block_backward(grad, x, y, z, statistics, *weights, sample_scale, *ctx.options)
    there = [True, *(w is not None for w in weights)]
    return tuple(g if t else None for g, t in zip(grads, there, strict=True)) + (None,) * 10


_star_block.differentiable(_setup, _backward)

__all__ = ["Weights", "star_block"]
