# SPDX-License-Identifier: Apache-2.0
"""The implicit dimension measured: numeric rank of star features ("Rewrite the Stars", sections 3.1 to 3.3).

The features of N random points in K random output channels make a matrix (N, K). Its rank is the dimension of the space
of functions that the layer's channels are drawn from, as long as N and K are larger. What holds, with D = d + 1:

* ``star``: products of two linear forms span all quadratic polynomials: D(D + 1) / 2 (section 3.1).
* ``branch`` (special case II, ``(W x + b) * x``): x_i times a linear form. One output channel has d + 1
  monomials, all d together every one but the constant: D(D + 1) / 2 - 1. The paper's 2d is neither; at d = 1 it is
  both.
* ``branch_channel``: one output channel of the same: d + 1.
* ``square`` (special case III, ``x * x``): d.
* An activation on a branch (special case I) that is no polynomial leaves no bound at all: the functions
  ``act(w1 x + b1) (w2 x + b2)`` span an infinite-dimensional space (with w2 = 0 already act(w1 x + b1) does: Leshno et
  al., 1993), and the rank is min(N, K), less the channels on which a ReLU is off everywhere. The paper's "still about
  d^2 / 2" is right in each region where a piecewise linear activation is linear (a small ``radius`` shows it), and
  nearly so as a share of energy (``quadratic_share``).
* l stacked layers: C(d + 2^l, d), all polynomials of degree 2^l, where the layers between are wide enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from starshift.analysis.expansion import monomial_count, monomials, stacked_count
from starshift.errors import StarshiftError
from starshift.layers.activation import one_of
from starshift.ops import star

CASES = ("star", "branch", "branch_channel", "square")


@dataclass(frozen=True)
class ImplicitRank:
    """One measurement.

    Attributes:
        case, act, placement, bias, layers, inputs: what was measured, on d ``inputs``.
        points, channels: shape of the feature matrix.
        radius: half the side of the cube that the points fill.
        expected: the rank that the algebra gives; with an activation its upper bound, min(points, channels).
        rank: singular values above ``threshold``.
        threshold: ``max(points, channels) * eps`` of float64, over the largest singular value.
        smallest, next: the last singular value counted and the first that is not (0 if none), over the largest.
        effective: ``exp`` of the entropy of the squared singular values' shares.
        quadratic_share: share of the features' energy that a least-squares fit by the monomials explains.
    """

    case: str
    act: str
    placement: str
    bias: bool
    layers: int
    inputs: int
    points: int
    channels: int
    radius: float
    expected: int
    rank: int
    threshold: float
    smallest: float
    next: float
    effective: float
    quadratic_share: float


def implicit_rank(
    inputs: int,
    case: str = "star",
    act: str = "none",
    placement: str = "first",
    bias: bool = True,
    layers: int = 1,
    channels: int | None = None,
    points: int | None = None,
    radius: float = 1.0,
    seed: int = 0,
) -> ImplicitRank:
    """Numeric rank of star features with Gaussian weights at points of the cube [-radius, radius]^d, in float64.

    Args:
        inputs: d.
        case: one of :data:`CASES`.
        act, placement: as in :func:`starshift.ops.star`; for the case ``star``.
        bias: whether branches have biases.
        layers: star layers on top of each other, the hidden ones as wide as the last; for ``star`` without activation.
        channels, points: of the feature matrix; by default twice the expected rank, and twice that.
        radius: half the side of the cube.
        seed: of weights and points.

    Raises:
        StarshiftError: an unknown or impossible combination.

    Example:
        >>> from starshift.analysis import implicit_rank
        >>> implicit_rank(4).rank, implicit_rank(4, layers=2).rank
        (15, 70)
    """
    one_of("case", case, CASES)
    if (
        inputs < 1
        or layers < 1
        or (case != "star" and (act != "none" or layers > 1))
        or (layers > 1 and (not bias or act != "none"))
    ):
        raise StarshiftError(
            f"inputs={inputs}, layers={layers}, act={act!r}, bias={bias} do not go with case={case!r}: activations and "
            "several layers are for 'star', several layers have biases and no activation, and inputs and layers are at "
            "least 1"
        )
    count = expected_rank(inputs, case, bias, layers)
    channels = channels or (inputs if case == "square" else 2 * count + 2)
    points = points or 2 * max(channels, count)
    generator = torch.Generator().manual_seed(seed)
    x = radius * (2 * torch.rand(points, inputs, generator=generator, dtype=torch.float64) - 1)
    features = _features(x, channels, case, act, placement, bias, generator)
    for _ in range(layers - 1):
        features = _features(features / _rms(features), channels, case, act, placement, bias, generator)
    values = torch.linalg.svdvals(features)
    shares = values / values[0]
    threshold = max(points, channels) * torch.finfo(torch.float64).eps
    rank = int((shares > threshold).sum())
    energy = values.square() / values.square().sum()
    return ImplicitRank(
        *(case, act, placement, bias, layers, inputs, points, channels, radius),
        expected=min(count, channels, points) if act == "none" else min(channels, points),
        rank=rank,
        threshold=threshold,
        smallest=float(shares[rank - 1]),
        next=float(shares[rank]) if rank < len(shares) else 0.0,
        effective=float(torch.special.entr(energy).sum().exp()),
        quadratic_share=_explained(features, monomials(x, bias)),
    )


def expected_rank(inputs: int, case: str = "star", bias: bool = True, layers: int = 1) -> int:
    """The rank without activations; this module's text derives it."""
    if case == "square":
        return inputs
    if case == "branch_channel":
        return inputs + bias
    if case == "branch":
        return monomial_count(inputs, bias) - bias
    return stacked_count(inputs, layers) if layers > 1 else monomial_count(inputs, bias)


def _features(
    x: Tensor, channels: int, case: str, act: str, placement: str, bias: bool, generator: torch.Generator
) -> Tensor:
    """(points, d) to (points, channels)."""
    if case == "square":
        return x.square()[:, torch.arange(channels) % x.shape[1]]
    first = _linear(x, channels, bias, generator)
    if case == "branch_channel":
        return first * x[:, :1]
    if case == "branch":
        return first * x[:, torch.arange(channels) % x.shape[1]]
    return star(first, _linear(x, channels, bias, generator), act, placement)


def _linear(x: Tensor, channels: int, bias: bool, generator: torch.Generator) -> Tensor:
    weight = torch.randn(x.shape[1], channels, generator=generator, dtype=x.dtype)
    offset = torch.randn(channels, generator=generator, dtype=x.dtype) if bias else 0.0
    return x @ weight + offset


def _rms(x: Tensor) -> Tensor:
    """Root mean square of the points' norms: keeps stacked layers' powers in balance."""
    return x.square().sum(1).mean().sqrt()


def _explained(features: Tensor, basis: Tensor) -> float:
    """Share of the features' energy in the span of the basis' columns."""
    inside = torch.linalg.qr(basis)[0].T @ features
    return float(inside.square().sum() / features.square().sum())
