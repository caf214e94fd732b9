# SPDX-License-Identifier: Apache-2.0
"""The form of an operator's cases: what is worth testing and timing, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One call of an operator's public function.

    Attributes:
        name: short, unique inside the operator; names the test.
        why: what this case can catch that the others cannot.
        tensors: argument name to shape; None for an optional tensor that is left out. Order is that of the function.
        options: the other arguments.
        bench: worth timing (a shape of a real network) rather than testing.
    """

    name: str
    why: str
    tensors: Mapping[str, tuple[int, ...] | None]
    options: Mapping[str, Any] = field(default_factory=dict)
    bench: bool = False
