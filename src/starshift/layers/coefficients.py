# SPDX-License-Identifier: Apache-2.0
"""Coefficients of the star's monomials in closed form, and penalties that shape their distribution in training.

A star channel ``(a x)(b x)``, biases folded in as the weight of a constant channel, has coefficients ``alpha(i, i) =
a_i b_i`` and ``alpha(i, j) = a_i b_j + a_j b_i`` for i < j ("Rewrite the Stars", CVPR 2024, section 3.1). Their power
sums need no d^2 values: with ``m_pq = sum_i a_i^p b_i^q``, summing over all (i, j), halving, and mending the diagonal::

    S1 = m10 m01                    S2 = m20 m02 + m11^2 - m22
    S3 = m30 m03 + 3 m21 m12 - 3 m33        S4 = m40 m04 + 4 m31 m13 + 3 m22^2 - 7 m44
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers.activation import one_of
from starshift.layers.demo_block import DemoBlock
from starshift.layers.star_shift_block import StarShiftBlock


@dataclass(frozen=True)
class Branches:
    """The two branches of one block, biases folded in: ``first`` and ``second`` (K, d + 1); ``mode`` star or sum."""

    name: str
    mode: str
    first: Tensor
    second: Tensor


def find_branches(model: nn.Module, standardised: bool = False) -> Iterator[Branches]:
    """The branches of every star or sum block: our DemoNet's and StarNet's, and timm's StarNet; differentiable.

    Args:
        model: with such blocks, or without: then there is nothing.
        standardised: take scale and shift of a batch norm right before the branches (StarNet's, StarShift's) into their
            weights: the coefficients are then those of inputs with mean 0 and variance 1, which can be compared with
            each other.
    """
    for name, module in model.named_modules():
        block: Any = module
        if isinstance(block, DemoBlock):
            (w1, w2), (b1, b2) = block.f.weight.chunk(2), block.f.bias.chunk(2)
            yield Branches(name, block.mode, fold_bias(w1, b1), fold_bias(w2, b2))
        elif all(isinstance(_conv(block, part), nn.Conv2d) for part in ("f1", "f2", "g")):
            f1, f2 = _conv(block, "f1"), _conv(block, "f2")
            first, second = fold_bias(f1.weight.flatten(1), f1.bias), fold_bias(f2.weight.flatten(1), f2.bias)
            of_space = isinstance(block, StarShiftBlock)
            norm = block.norm if of_space else getattr(getattr(block, "dwconv", None), "bn", None)
            if standardised and isinstance(norm, nn.BatchNorm2d) and norm.affine:
                first, second = _after(norm, first), _after(norm, second)
            yield Branches(name, getattr(block, "mode", "star"), first, second)


def power_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of alpha, alpha^2, alpha^3 and alpha^4 over i <= j for each channel: a, b (K, D) to four of (K,)."""

    def m(p: int, q: int) -> Tensor:
        return (a**p * b**q).sum(1)

    return (
        m(1, 0) * m(0, 1),
        m(2, 0) * m(0, 2) + m(1, 1) ** 2 - m(2, 2),
        m(3, 0) * m(0, 3) + 3 * m(2, 1) * m(1, 2) - 3 * m(3, 3),
        m(4, 0) * m(0, 4) + 4 * m(3, 1) * m(1, 3) + 3 * m(2, 2) ** 2 - 7 * m(4, 4),
    )


def coefficient_gram(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the channels' coefficients, ``sum_{i<=j} alpha_k alpha_l``: a, b (K, D) to (K, K)."""
    return (a @ a.T) * (b @ b.T) + (a @ b.T) * (b @ a.T) - (a * b) @ (a * b).T


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """cos(w1, w2) of each channel, (K,)."""
    return nn.functional.cosine_similarity(a, b, dim=1)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return cosine(a, b).square().mean()


def _participation(a: Tensor, b: Tensor) -> Tensor:
    _, second, _, fourth = power_sums(_unit(a), _unit(b))
    return (fourth.log() - 2 * second.log()).mean() + math.log(a.shape[1] * (a.shape[1] + 1) / 2)


def _diagonal(a: Tensor, b: Tensor) -> Tensor:
    a, b = _unit(a), _unit(b)
    return ((a * b).square().sum(1) / power_sums(a, b)[1]).mean()


def _redundancy(a: Tensor, b: Tensor) -> Tensor:
    gram = coefficient_gram(_unit(a), _unit(b))
    norm = gram.diagonal().clamp_min(1e-12).rsqrt()
    gram = gram * norm[:, None] * norm
    channels = len(gram)
    return (gram.square().sum() - channels) / max(1, channels * (channels - 1))


PENALTIES = {
    "cosine": _cosine,
    "participation": _participation,
    "diagonal": _diagonal,
    "redundancy": _redundancy,
}


def coefficient_penalty(model: nn.Module, kind: str = "participation") -> Tensor:
    """A term for the loss that shapes the coefficients of all star blocks; none depends on the weights' scale.

    Args:
        model: a network with star blocks (sum blocks have no such coefficients and are left alone).
        kind: ``participation``: ``log M - log PR``, 0 where all M coefficients of a channel are equally large, with the
            participation ratio ``PR = (sum alpha^2)^2 / sum alpha^4``; ``cosine``: cos^2 of the two branches, 0 where
            the channel's quadratic form has two equal and opposite eigenvalues, 1 where it is a square; ``diagonal``:
            share of the squares x_i^2 in sum alpha^2; ``redundancy``: squared cosine between the coefficients of two
            channels of one block. Each is a mean over channels (pairs of them) and then over blocks.

    Returns:
        A scalar with an exact gradient.

    Raises:
        StarshiftError: unknown kind, or a model without star blocks.

    Example:
        >>> import starshift
        >>> from starshift.layers import coefficient_penalty
        >>> model = starshift.create_model("demonet_2d")
        >>> coefficient_penalty(model, "cosine").backward()
    """
    penalty = PENALTIES[one_of("kind", kind, PENALTIES)]
    terms = [penalty(found.first, found.second) for found in find_branches(model) if found.mode == "star"]
    if not terms:
        raise StarshiftError("the model has no star blocks: a penalty on their coefficients does not apply to it")
    return torch.stack(terms).mean()


def _unit(w: Tensor) -> Tensor:
    return nn.functional.normalize(w, dim=1)


def _conv(block: Any, part: str) -> Any:
    inner = block._modules.get(part)
    return None if inner is None else inner._modules.get("conv")


def _after(norm: nn.BatchNorm2d, folded: Tensor) -> Tensor:
    """Weights (K, C + 1), bias last, of the norm's outputs, as weights of what it scales and shifts."""
    weight, bias = folded[:, :-1], folded[:, -1]
    return fold_bias(weight * norm.weight, bias + weight @ norm.bias)


def fold_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    """(K, d) and (K,) to (K, d + 1): the bias is the weight of a channel that is 1; without one the weight as it is."""
    return weight if bias is None else torch.cat((weight, bias[:, None]), 1)
