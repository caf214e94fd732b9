# SPDX-License-Identifier: Apache-2.0
"""What several of the models' tests need."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from starshift.models import create_model, list_models

STARNETS = [name for name in list_models("starnet_*") if not name.endswith("32px")]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with statistics and weights of their own, layer scales that let blocks through; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
        if isinstance(getattr(module, "gamma", None), nn.Parameter):
            nn.init.constant_(module.gamma, 0.5)
    return model.eval()


def smallest_image(model: nn.Module, batch: int = 2, seed: int = 0) -> Tensor:
    """Images of the smallest size that the model takes."""
    side = model.min_size
    return torch.randn(batch, model.in_chans, side, side, generator=torch.Generator().manual_seed(seed))


def small(name: str, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=kwargs.pop("num_classes", 5), **kwargs)
