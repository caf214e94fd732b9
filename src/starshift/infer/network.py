# SPDX-License-Identifier: Apache-2.0
"""A PyTorch network as a :class:`Predictor`."""

from __future__ import annotations

import torch
from torch import Tensor

from starshift.deploy import TrainedOn
from starshift.layers import fold_batchnorm
from starshift.models import LoadedModel


class TorchPredictor:
    """A PyTorch network: eval mode, batch norm folded, channels last."""

    def __init__(self, loaded: LoadedModel, device: str = "cpu", trained_on: TrainedOn | None = None) -> None:
        self.name = loaded.name
        self.classes = tuple(loaded.classes)
        self.preprocessing = loaded.preprocessing
        self.trained_on = trained_on or TrainedOn()
        self.trained = True
        self._device = torch.device(device)
        model = fold_batchnorm(loaded.model.eval()).float()
        self._model = model.to(self._device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def logits(self, batch: Tensor) -> Tensor:
        batch = batch.to(self._device, memory_format=torch.channels_last)
        return self._model(batch).float().cpu()
