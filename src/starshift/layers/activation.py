# SPDX-License-Identifier: Apache-2.0
"""Activations by the names that the star operator uses, and the checks of named options shared by the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from starshift.errors import StarshiftError, nearest
from starshift.ops.star.reference import ACTIVATIONS


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The element-wise function of this name, one of :data:`starshift.ops.ACTIVATIONS`.

    Raises:
        StarshiftError: unknown name.
    """
    return ACTIVATIONS[one_of("act", name, ACTIVATIONS)][0]


def one_of(option: str, value: str, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        StarshiftError: it is not; the message lists the choices and names the nearest.
    """
    choices = tuple(choices)
    if value not in choices:
        raise StarshiftError(f"{option}={value!r}: choose from {', '.join(choices)}.{nearest(str(value), choices)}")
    return value


def add_branches(x1: Tensor, x2: Tensor, act: Callable[[Tensor], Tensor], placement: str) -> Tensor:
    """The star's counterpart in the paper's comparison: the same branches and placements, added."""
    if placement == "product":
        return act(x1 + x2)
    return act(x1) + (act(x2) if placement == "both" else x2)
