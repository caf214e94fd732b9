# SPDX-License-Identifier: Apache-2.0
"""What every opened file does alike: says what it is from its metadata, and guards what goes in and comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from starshift.deploy._metadata import Metadata
from starshift.errors import StarshiftError


class FilePredictor(ABC):
    """An exported file, opened: a :class:`starshift.deploy.Predictor`. A target's own implements :meth:`run`.

    Attributes:
        path: the file.
        metadata: what it says about itself.
        trained: see :class:`Metadata`.
    """

    def __init__(self, path: Path, metadata: Metadata) -> None:
        self.path = path
        self.metadata = metadata
        self.name = metadata.model
        self.classes = metadata.classes
        self.preprocessing = metadata.preprocessing
        self.trained_on = metadata.trained_on
        self.trained = metadata.trained

    def logits(self, batch: Tensor) -> Tensor:
        """See :class:`starshift.deploy.Predictor`.

        Raises:
            StarshiftError: the batch is not float32 (N, C, H, W) of the network's size, or the file answers for another
                number of images than it was asked, as some runtimes do, without an error, with a file made for a fixed
                batch.
        """
        shape = (len(batch), self.preprocessing.channels, *self.preprocessing.size)
        if tuple(batch.shape) != shape or batch.dtype != torch.float32:
            raise StarshiftError(
                f"{self.path} takes float32 images of shape (N, {', '.join(map(str, shape[1:]))}),"
                f" not {str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
            )
        result = self.run(batch.contiguous())
        if tuple(result.shape) != (len(batch), len(self.classes)):
            raise StarshiftError(
                f"{self.path} answered with {tuple(result.shape)} numbers for {len(batch)} images and"
                f" {len(self.classes)} classes: it was made for another batch; export it again with 'starshift export'"
            )
        return result

    @abstractmethod
    def run(self, batch: Tensor) -> Tensor:
        """Float32 logits for a contiguous float32 batch of the right shape; memory of its own, the batch untouched."""
