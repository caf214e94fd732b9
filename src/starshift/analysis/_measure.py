# SPDX-License-Identifier: Apache-2.0
"""What measurements on a trained network share: statistics of channels, batches, eval mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Batches = Iterable[Any]
"""(images, classes, ...) each."""


class ChannelStatistics:
    """Mean and covariance of channels over all positions of all images, gathered batch by batch in float64.

    Attributes:
        count: positions seen. mean: (C,). scatter: (C, C), count times the covariance.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.scatter = torch.zeros(())

    def update(self, x: Tensor) -> None:
        """Add (N, C, H, W): the scatter matrices of two parts add up with that of their means (Chan et al., 1983)."""
        for images in x.detach().split(max(1, 2**16 // (x.shape[2] * x.shape[3]))):
            flat = images.transpose(0, 1).flatten(1).double()
            count, mean = flat.shape[1], flat.mean(1)
            flat = flat - mean[:, None]
            scatter, step = flat @ flat.T, mean - self.mean
            if self.count:
                scatter = scatter + step.outer(step) * (self.count * count / (self.count + count))
            self.mean = self.mean + step * (count / (self.count + count))
            self.scatter = self.scatter + scatter
            self.count += count

    def correlation(self) -> tuple[Tensor, Tensor]:
        """(C, C) Pearson correlations, 0 for channels that never vary, and which channels (C,) do vary."""
        variance = self.scatter.diagonal()
        live = variance > 1e-12 * (variance + self.count * self.mean.square())
        scale = torch.where(live, variance.clamp_min(1e-300).rsqrt(), 0.0)
        return self.scatter * scale[:, None] * scale, live


def images_of(model: nn.Module, batch: Any) -> Tensor:
    """A batch's images, where the model is."""
    return batch[0].to(next(model.parameters()).device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within: eval mode; after: each module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
