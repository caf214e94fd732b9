# SPDX-License-Identifier: Apache-2.0
"""One star layer written out: its monomials and their coefficients ("Rewrite the Stars", section 3.1).

The layer is ``(W1 x + b1) * (W2 x + b2)``. With ``x_d = 1`` as one more input channel its biases are weights, and
output channel k is ``sum_{i<=j} alpha_k(i, j) x_i x_j``: (d + 1)(d + 2) / 2 monomials of degree 2, 1 and 0.
Letters: N points, d inputs, D = d + 1 with the constant, K outputs, M = D(D + 1) / 2 monomials.
"""

from __future__ import annotations

from math import comb, log10

import torch
from torch import Tensor

from starshift.errors import StarshiftError
from starshift.layers.coefficients import fold_bias


def monomial_count(inputs: int, bias: bool = True) -> int:
    """Monomials of one star layer on d inputs: (d + 1)(d + 2) / 2, without biases d(d + 1) / 2 (section 3.1).

    Example:
        >>> from starshift.analysis import monomial_count
        >>> monomial_count(128)
        8385
    """
    wide = inputs + bias
    return wide * (wide + 1) // 2


def monomial_indices(inputs: int, bias: bool = True) -> tuple[Tensor, Tensor]:
    """(i, j) of each monomial, i <= j, both (M,); with ``bias``, index d is the constant 1."""
    i, j = torch.triu_indices(inputs + bias, inputs + bias)
    return i, j


def monomials(x: Tensor, bias: bool = True) -> Tensor:
    """The products x_i x_j, i <= j, of points (N, d): (N, M) in the order of :func:`monomial_indices`."""
    if bias:
        x = torch.cat((x, x.new_ones(len(x), 1)), 1)
    i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    return x[:, i] * x[:, j]


def star_coefficients(w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    """Coefficients alpha of a star layer's output channels, so that ``layer(x) = monomials(x) @ alpha.T``.

    ``alpha(i, i) = w1_i w2_i`` and ``alpha(i, j) = w1_i w2_j + w1_j w2_i`` for i < j (section 3.1).

    Args:
        w1, w2: (K, d). b1, b2: (K,), or None for both: then there is no constant channel.

    Returns:
        (K, M), differentiable.

    Raises:
        StarshiftError: shapes that do not fit, or one bias without the other.

    Example:
        >>> import torch
        >>> from starshift.analysis import star_coefficients
        >>> star_coefficients(torch.tensor([[1.0, 2.0]]), None, torch.tensor([[3.0, 5.0]]), None).tolist()
        [[3.0, 11.0, 10.0]]
    """
    w1, w2 = fold_bias(w1, b1), fold_bias(w2, b2)
    if w1.shape != w2.shape:
        raise StarshiftError(
            f"the branches of a star need one shape, and biases both or neither: {tuple(w1.shape)}, {tuple(w2.shape)}"
        )
    i, j = torch.triu_indices(w1.shape[1], w1.shape[1], device=w1.device)
    crossed = w1[:, i] * w2[:, j] + w1[:, j] * w2[:, i]
    return torch.where(i == j, crossed / 2, crossed)


def stacked_count(inputs: int, layers: int) -> int:
    """Monomials that l stacked star layers (with biases) can hold at most: of degree up to 2^l, C(d + 2^l, d).

    This is the true bound on the dimension of what l layers compute. The paper's (d / sqrt 2)^(2^l) counts the factors
    of each product apart, though many multiply to the same monomial: see :func:`published_stacked_log10`.
    """
    return comb(inputs + 2**layers, inputs)


def published_stacked_log10(width: int, layers: int) -> float:
    """log10 of the paper's estimate (d / sqrt 2)^(2^l) for l stacked star layers of width d (section 3.2)."""
    return 2**layers * log10(width / 2**0.5)
