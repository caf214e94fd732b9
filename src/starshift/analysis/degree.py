# SPDX-License-Identifier: Apache-2.0
"""The polynomial degree of stacked star layers, exactly ("Rewrite the Stars", section 3.2).

Along a line x(t) = p + t q each output of l stacked star layers is a polynomial in t of degree at most 2^l; l stacked
sums stay at degree 1. The k-th finite difference over t = 0, 1, ... of a polynomial of degree k is constant and not
zero, the next is zero. In rational arithmetic that is a proof for the given weights, not a measurement: every float is
a rational number, so trained weights go in as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from starshift.errors import StarshiftError
from starshift.layers.activation import one_of
from starshift.layers.star_block import MODES

Layer = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
Vector = list[Fraction]


def exact_degree(
    layers: Sequence[Layer], point: Sequence[float], direction: Sequence[float], mode: str = "star"
) -> list[int]:
    """Degree in t of every output channel of stacked layers without activation, at ``point + t direction``.

    Args:
        layers: of each (W1, b1, W2, b2) with W (K, d) and b (K,) or None.
        point, direction: d numbers.
        mode: ``star`` or ``sum``, how the branches are joined.

    Returns:
        The degree of each output channel; -1 for one that is zero everywhere on the line.

    Example:
        >>> from starshift.analysis import exact_degree, integer_layers
        >>> exact_degree(integer_layers(inputs=3, width=2, depth=4), (1, -1, 2), (2, 1, -1))
        [16, 16]
    """
    one_of("mode", mode, MODES)
    exact = [tuple(_rational(part) for part in layer) for layer in layers]
    start, step = [Fraction(v) for v in point], [Fraction(v) for v in direction]

    def values(t: int) -> Vector:
        x = [p + t * q for p, q in zip(start, step, strict=True)]
        for w1, b1, w2, b2 in exact:
            pairs = zip(_affine(w1, b1, x), _affine(w2, b2, x), strict=True)
            x = [u * v if mode == "star" else u + v for u, v in pairs]
        return x

    return degrees(values, most=2 ** len(layers))


def degrees(values: Callable[[int], Vector], most: int) -> list[int]:
    """Degree of each component of a polynomial curve known to have degree ``most`` or less, by finite differences.

    Raises:
        StarshiftError: difference ``most + 1`` does not vanish: the curve has a higher degree or is no polynomial.
    """
    table = [values(t) for t in range(most + 2)]
    found = [-1] * len(table[0])
    for order in range(most + 2):
        for channel, value in enumerate(table[0]):
            if value != 0:
                found[channel] = order
        table = [[b - a for a, b in zip(low, high, strict=True)] for low, high in pairwise(table)]
    if max(found) > most:
        raise StarshiftError(f"the curve is no polynomial of degree {most} or less: difference {most + 1} is not zero")
    return found


def integer_layers(inputs: int, width: int, depth: int, seed: int = 0, bound: int = 3) -> list[Layer]:
    """Random star layers whose weights are whole numbers from -bound to bound: their powers stay short."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-bound, bound + 1, shape, generator=generator)

    sizes = [inputs] + [width] * (depth - 1)
    return [(draw(width, d), draw(width), draw(width, d), draw(width)) for d in sizes]


def _rational(part: Tensor | None) -> list:
    """A tensor's numbers as fractions, in nested lists; None as the empty list."""
    if part is None:
        return []
    rows = part.detach().cpu().tolist()
    return [[Fraction(v) for v in row] if isinstance(row, list) else Fraction(row) for row in rows]


def _affine(weight: list[Vector], bias: Vector, x: Vector) -> Vector:
    rows = [sum((w * v for w, v in zip(row, x, strict=True)), Fraction(0)) for row in weight]
    return [r + b for r, b in zip(rows, bias, strict=True)] if bias else rows
