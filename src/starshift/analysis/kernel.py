# SPDX-License-Identifier: Apache-2.0
"""The polynomial kernel that random star features are in expectation ("Rewrite the Stars", section 3).

Let the entries of w1, w2 be independent N(0, s^2) and the biases b1, b2 N(0, t^2). The two branches are independent and
equally distributed, so the expectation of a product of features factors::

    E[(w1 x + b1)(w2 x + b2) (w1 y + b1)(w2 y + b2)] = E[(w1 x + b1)(w1 y + b1)]^2 = (s^2 <x, y> + t^2)^2,

which is the polynomial kernel of degree 2, scikit-learn's ``gamma = s^2``, ``coef0 = t^2``. A sum of the branches gives
the linear kernel ``2 (s^2 <x, y> + t^2)``. In a stack whose hidden layers have m channels and weights of variance s^2 /
m, the mean over channels tends to its expectation as m grows, and the kernel of layer l to ``(s^2 k_{l-1} + t^2)^2``,
of degree 2^l: the limit alone, since the features of a narrow layer are not Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from starshift.errors import StarshiftError
from starshift.layers.activation import one_of
from starshift.layers.star_block import MODES


@dataclass(frozen=True)
class KernelEstimate:
    """A Monte-Carlo estimate beside what it should be.

    Attributes:
        estimate, standard_error: (N, N'), mean over random channels and the standard error of that mean.
        closed_form: (N, N').
        channels: how many were drawn.
    """

    estimate: Tensor
    standard_error: Tensor
    closed_form: Tensor
    channels: int

    @property
    def deviation(self) -> Tensor:
        """(estimate - closed form) in standard errors."""
        return (self.estimate - self.closed_form) / self.standard_error


def star_kernel(
    x: Tensor, y: Tensor, weight_std: float = 1.0, bias_std: float = 1.0, mode: str = "star", layers: int = 1
) -> Tensor:
    """The closed form between points x (N, d) and y (N', d): (N, N'); for several layers the wide limit.

    Example:
        >>> import torch
        >>> from starshift.analysis import star_kernel
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> star_kernel(x, x).item()  # (1 + 4 + 1)^2
        36.0
    """
    one_of("mode", mode, MODES)
    kernel = x @ y.T
    for _ in range(layers):
        branch = weight_std**2 * kernel + bias_std**2
        kernel = branch.square() if mode == "star" else 2 * branch
    return kernel


def estimate_kernel(
    x: Tensor,
    y: Tensor,
    channels: int = 100_000,
    weight_std: float = 1.0,
    bias_std: float = 1.0,
    mode: str = "star",
    seed: int = 0,
) -> KernelEstimate:
    """The mean of f(x) f(y) over random channels f of one layer, with its standard error, beside :func:`star_kernel`.

    Args:
        x: (N, d). y: (N', d); computed in float64.
        channels: independent draws, at least 2.
        weight_std, bias_std: s and t.
        mode: ``star`` or ``sum``.
        seed: of the draws.

    Raises:
        StarshiftError: fewer than 2 channels, or an unknown mode.
    """
    if channels < 2:
        raise StarshiftError(f"channels={channels}: an estimate with a standard error takes at least 2")
    x, y = x.double(), y.double()
    closed = star_kernel(x, y, weight_std, bias_std, mode)
    generator = torch.Generator().manual_seed(seed)
    points = torch.cat((x, y))
    first, second = torch.zeros_like(closed), torch.zeros_like(closed)
    for start in range(0, channels, 8192):  # in pieces, so that memory stays small
        size = min(8192, channels - start)
        u, v = (_branch(points, size, weight_std, bias_std, generator) for _ in range(2))
        fx, fy = (u * v if mode == "star" else u + v).split((len(x), len(y)))
        first += fx @ fy.T
        second += fx.square() @ fy.square().T
    mean = first / channels
    variance = (second / channels - mean.square()) * channels / (channels - 1)
    return KernelEstimate(mean, (variance / channels).sqrt(), closed, channels)


def _branch(x: Tensor, channels: int, weight_std: float, bias_std: float, generator: torch.Generator) -> Tensor:
    weight = weight_std * torch.randn(x.shape[1], channels, generator=generator, dtype=x.dtype)
    return x @ weight + bias_std * torch.randn(channels, generator=generator, dtype=x.dtype)
