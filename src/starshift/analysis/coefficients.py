# SPDX-License-Identifier: Apache-2.0
"""How the coefficients of trained blocks are distributed, which "Rewrite the Stars" (CVPR 2024) leaves open.

For a star block these are the alpha(i, j) of section 3.1, for a sum block the linear ones, w1 + w2. With an activation
they are those of the layer where the activation is the identity. Everything here is computed in float64 from closed
forms (:mod:`starshift.layers.coefficients`), so no (channels, d^2 / 2) matrix is formed. For orientation: independent
Gaussian branches on D inputs (the constant included) have a share of squares of about 1 / D and a kurtosis above 3 (5
for the crossed terms, 9 for the squares).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers.coefficients import Branches, coefficient_gram, cosine, find_branches, power_sums


@dataclass(frozen=True)
class CoefficientStats:
    """The coefficients of one block. What has no meaning for a sum is NaN there.

    Attributes:
        block, mode: name in the model; ``star`` or ``sum``.
        channels, terms: K output channels of the branches, of M coefficients each.
        mean, std, kurtosis: over all channels' coefficients (a normal distribution has kurtosis 3).
        effective_terms: participation ratio (sum alpha^2)^2 / sum alpha^4, from 1 (one term) to M (all equal), which is
            the exponential of the Renyi entropy of order 2 of alpha^2; mean over channels.
        effective_share: the same over M.
        square_share: share of the squares x_i^2 in sum alpha^2, mean over channels.
        cosine, cosine_squared: mean of |cos(w1, w2)| and of cos^2.
        positive, negative: mean eigenvalues of ``w1 w2' + w2 w1'``: ``<w1, w2> +- |w1| |w2|``; the rest are zero.
        form_rank: participation ratio of those two, from 1 (a square) to 2 (equal and opposite).
        effective_features: participation ratio of the eigenvalues of the channels' Gram matrix, ``tr(G)^2 / |G|^2``:
            how many channels the block has that differ; at most min(K, M).
    """

    block: str
    mode: str
    channels: int
    terms: int
    mean: float
    std: float
    kurtosis: float
    effective_terms: float
    effective_share: float
    square_share: float
    cosine: float
    cosine_squared: float
    positive: float
    negative: float
    form_rank: float
    effective_features: float


@torch.no_grad()
def coefficient_stats(model: nn.Module, bias: bool = True, standardised: bool = False) -> list[CoefficientStats]:
    """One entry a block of our DemoNet, StarNet or StarShift or of timm's StarNet, in the order of the forward pass.

    Args:
        model: trained or not; left as it is.
        bias: count the terms of degree 1 and 0, which biases make.
        standardised: coefficients of inputs with mean 0 and variance 1, see :func:`find_branches`; for StarNet and
            StarShift.

    Raises:
        StarshiftError: a model without such blocks.

    Example:
        >>> import starshift
        >>> from starshift.analysis import coefficient_stats
        >>> stats = coefficient_stats(starshift.create_model("demonet_2d"))
        >>> len(stats), stats[0].channels, stats[0].terms
        (4, 300, 5151)
    """
    found = list(find_branches(model, standardised))
    if not found:
        raise StarshiftError("the model has no star or sum blocks: give it a DemoNet or a StarNet")
    return [_stats(branches, bias) for branches in found]


def block_coefficients(branches: Branches, bias: bool = True) -> Tensor:
    """All coefficients of a block, formed: (K, M) for a star, (K, D) for a sum. For histograms.

    Example:
        >>> import starshift
        >>> from starshift.analysis import block_coefficients, find_branches
        >>> model = starshift.create_model("demonet_2d", width=8)
        >>> [tuple(block_coefficients(branches).shape) for branches in find_branches(model)][:1]
        [(24, 45)]
    """
    from starshift.analysis.expansion import star_coefficients

    a, b = _sides(branches, bias)
    return star_coefficients(a, None, b, None) if branches.mode == "star" else a + b


def form_eigenvalues(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The two eigenvalues of ``a b' + b a'`` that are not zero, positive and negative: ``<a, b> +- |a| |b|``.

    On span(a, b) the matrix maps ``a / |a| +- b / |b|`` to that multiple of itself; what is orthogonal to both goes to
    0.

    Args:
        a, b: (K, D).

    Returns:
        Two of (K,).
    """
    inner, norms = (a * b).sum(1), a.norm(dim=1) * b.norm(dim=1)
    return inner + norms, inner - norms


def _sides(branches: Branches, bias: bool) -> tuple[Tensor, Tensor]:
    last = branches.first.shape[1] - (not bias)
    return branches.first[:, :last].double(), branches.second[:, :last].double()


def _stats(branches: Branches, bias: bool) -> CoefficientStats:
    a, b = _sides(branches, bias)
    star = branches.mode == "star"
    if star:
        terms, gram = a.shape[1] * (a.shape[1] + 1) // 2, coefficient_gram(a, b)
        sums = power_sums(a, b)
    else:
        alpha = a + b
        terms, gram = alpha.shape[1], alpha @ alpha.T
        sums = (alpha.sum(1), *((alpha**p).sum(1) for p in (2, 3, 4)))  # type: ignore[assignment]
    mean, std, kurtosis = _shape(*(float(s.mean()) / terms for s in sums))
    effective = float(_ratio(sums[1].square(), sums[3]).mean())
    nan = math.nan
    form = (nan,) * 6
    if star:
        cos = cosine(a, b)
        positive, negative = form_eigenvalues(a, b)
        squares = _ratio((a * b).square().sum(1), sums[1])
        rank = 2 * (1 + cos**2) ** 2 / (1 + 6 * cos**2 + cos**4)
        form = tuple(  # type: ignore[assignment]
            float(v.mean()) for v in (squares, cos.abs(), cos.square(), positive, negative, rank)
        )
    return CoefficientStats(
        *(branches.name, branches.mode, len(a), terms, mean, std, kurtosis, effective, effective / terms),
        *form,
        effective_features=float(_ratio(gram.trace().square(), gram.square().sum())),
    )


def _shape(m1: float, m2: float, m3: float, m4: float) -> tuple[float, float, float]:
    """Mean, standard deviation and kurtosis from raw moments."""
    variance = m2 - m1**2
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    return m1, math.sqrt(max(variance, 0.0)), fourth / variance**2 if variance > 0 else math.nan


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, 0 where both are."""
    return torch.where(below > 0, above / below.clamp_min(torch.finfo(below.dtype).tiny), 0.0)
