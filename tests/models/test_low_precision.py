# SPDX-License-Identifier: Apache-2.0
"""A StarNet with branch values around 300 trains under bfloat16 and float16 autocast; the plain form overflows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import starshift.layers.star_block as star_block
from starshift.layers import StarBlock
from starshift.models import create_model

BRANCH = 300.0


def network() -> nn.Module:
    """Without activation in the blocks, so that both branches are unbounded; each scaled to a spread of 300."""
    torch.manual_seed(0)
    model = create_model("starnet_s050_32px", act="none", depths=(1, 1), num_classes=4)
    with torch.no_grad():
        for block in (m for m in model.modules() if isinstance(m, StarBlock)):
            for branch in (block.f1.conv, block.f2.conv):  # their input is a batch norm's output: spread 1 a channel
                branch.weight.copy_(F.normalize(branch.weight, dim=1) * BRANCH)
    return model.train()


def train(model: nn.Module, dtype: torch.dtype, steps: int = 4) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    image, target = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 4
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=dtype == torch.float16)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", dtype):
            logits = model(image)
        loss = F.cross_entropy(logits.float(), target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def plain_star(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, wg: Tensor, bg: Tensor, *_: str) -> Tensor:
    return F.conv2d(F.conv2d(x, w1, b1) * F.conv2d(x, w2, b2), wg, bg)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_trains_where_the_plain_form_overflows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    losses = train(model, dtype)
    assert all(torch.tensor(losses).isfinite()), losses
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)), "no step was taken"
    assert losses[-1] < losses[0]
    if dtype == torch.float16:
        monkeypatch.setattr(star_block, "star_mlp", plain_star)
        assert not all(torch.tensor(train(network(), dtype)).isfinite())
