# SPDX-License-Identifier: Apache-2.0
"""What ``eval``, ``predict`` and every exported file have in common: classes, preprocessing, and logits for a batch."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from starshift.preprocessing import Preprocessing


@runtime_checkable
class Predictor(Protocol):
    """A network ready to answer, wherever it runs: a PyTorch module, or a file in another runtime.

    Attributes:
        name: what it is called in messages and tables.
        classes: the names of the outputs, in order.
        preprocessing: how an image becomes an input.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def logits(self, batch: Tensor) -> Tensor:
        """Return float32 (N, classes) on the CPU for a preprocessed float32 batch (N, C, H, W) on the CPU."""
        ...
