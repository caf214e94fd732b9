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
        fingerprint: of the images, see :class:`starshift.data.Fingerprint`; empty if it was not kept.
    """

    data: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], model_config: Mapping[str, Any]) -> TrainedOn:
        """From a run's config, which may be empty, and that of its model."""
        options = {key: config[key] for key in ("val_fraction", "seed", "data_dir") if config.get(key) is not None}
        fingerprint = (model_config.get("starshift") or {}).get("data") or {}
        return cls(str(config.get("data") or ""), options, fingerprint)

    def is_data(self, spec: str) -> bool:
        """Whether ``spec`` names the same data: the same words, or the same folder."""
        here, there = (Path(path).expanduser().resolve() for path in (spec, self.data))
        return bool(self.data) and (spec == self.data or here == there)

    @property
    def opening(self) -> dict[str, Any]:
        """Options of ``open_data`` that divide the data as the training did, as far as it is known."""
        return {**self.options, "boundaries": self.fingerprint.get("boundaries")}


@runtime_checkable
class Predictor(Protocol):
    """A network ready to answer, wherever it runs: a PyTorch module, or a file in another runtime.

    Attributes:
        name: what it is called in messages and tables.
        classes: the names of the outputs, in order.
        preprocessing: how an image becomes an input.
        trained_on: see :class:`TrainedOn`.
        trained: False where the weights are random.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    trained_on: TrainedOn
    trained: bool

    def logits(self, batch: Tensor) -> Tensor:
        """Return float32 (N, classes) on the CPU for a preprocessed float32 batch (N, C, H, W) on the CPU."""
        ...
