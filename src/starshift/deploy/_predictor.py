# SPDX-License-Identifier: Apache-2.0
"""What ``eval``, ``predict`` and every exported file have in common: classes, preprocessing, and logits for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from starshift.preprocessing import Preprocessing


@dataclass(frozen=True)
class TrainedOn:
    """The data of a training run, and how its validation part was split off, so that it can be found again.

    Attributes:
        data: as ``train`` took it; empty if that is not known.
        options: ``val_fraction``, ``seed``, ``data_dir`` of ``open_data``, as far as they are known.
    """

    data: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrainedOn:
        """From a run's config, or from an empty one."""
        options = {key: config[key] for key in ("val_fraction", "seed", "data_dir") if config.get(key) is not None}
        return cls(str(config.get("data") or ""), options)

    def is_data(self, spec: str) -> bool:
        """Whether ``spec`` names the same data: the same words, or the same folder."""
        return bool(self.data) and (spec == self.data or Path(spec).resolve() == Path(self.data).resolve())


@runtime_checkable
class Predictor(Protocol):
    """A network ready to answer, wherever it runs: a PyTorch module, or a file in another runtime.

    Attributes:
        name: what it is called in messages and tables.
        classes: the names of the outputs, in order.
        preprocessing: how an image becomes an input.
        trained_on: see :class:`TrainedOn`.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    trained_on: TrainedOn

    def logits(self, batch: Tensor) -> Tensor:
        """Return float32 (N, classes) on the CPU for a preprocessed float32 batch (N, C, H, W) on the CPU."""
        ...
