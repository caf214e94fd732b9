# SPDX-License-Identifier: Apache-2.0
"""Factors of low rank and weights of one byte: exact where they must be, no worse than they say elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from starshift.analysis import int8_model, low_rank, pack_int8, size_in_bytes, unpack_int8
from starshift.errors import StarshiftError
from starshift.layers import ShiftConv2d, StarBlock, StarShiftBlock, fold_batchnorm, make_offsets
from starshift.models._counting import count_macs, count_params
from tests.models.helpers import randomise, small, smallest_image
from tests.tolerance import assert_close

NAMES = ["starnet_s050_32px", "shiftresnet20", "shiftnet_c"]


def _make(name: str) -> nn.Module:
    return randomise(small(name, expansion=6) if name == "shiftresnet20" else small(name))


def _limit_rank(model: nn.Module, rank: int) -> None:
    """Every pointwise weight to its best approximation of this rank."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            u, s, v = torch.linalg.svd(module.weight.detach().flatten(1), full_matrices=False)
            module.weight.data = (u[:, :rank] * s[:rank] @ v[:rank]).view_as(module.weight)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", [*NAMES, "timm", "starshift_s"])
def test_weights_of_low_rank_are_factored_exactly(name: str, folded: bool) -> None:
    model = randomise(timm.create_model("starnet_s050", num_classes=5)) if name == "timm" else _make(name)
    model = model.double()
    _limit_rank(model, 2)
    model = fold_batchnorm(model) if folded else model
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    factored, rows = low_rank(model, energy=1)
    assert rows and all(row.rank == 2 for row in rows)
    with torch.no_grad():
        assert_close("factored", factored(x), model(x))
        assert_close("folded after", fold_batchnorm(factored)(x), factored(x))
    saved = sum(row.params_before - row.params_after for row in rows)
    assert saved > 0 and count_macs(factored.float(), (64, 64)) < count_macs(model.float(), (64, 64))
    assert count_params(model) - count_params(factored) == saved


def test_the_best_approximation_of_its_rank() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(12, 10, 1)).double()
    factored, (row,) = low_rank(model, params=0.6)
    assert (row.rank, row.inputs, row.outputs) == (3, 12, 10) and row.params_after == 3 * 22 <= 0.6 * 120
    weight = model[0].weight.detach().flatten(1)
    ours = factored[0][1].weight.flatten(1) @ factored[0][0].weight.flatten(1)
    values = torch.linalg.svdvals(weight)
    assert_close("Eckart-Young", (weight - ours).square().sum(), values[3:].square().sum())
    assert_close(
        "energy", torch.tensor(row.energy, dtype=torch.float64), values[:3].square().sum() / values.square().sum()
    )
    assert_close("bias", factored[0][1].bias, model[0].bias)


@pytest.mark.parametrize("bias", [False, True])
def test_fitted_to_data_it_keeps_what_the_data_use(bias: bool) -> None:
    torch.manual_seed(0)
    offsets = make_offsets(16)
    model = nn.Sequential(ShiftConv2d(16, 12, offsets, stride=2, bias=bias)).double().train()
    plane = torch.randn(16, 2, dtype=torch.float64)
    x = 1 + torch.einsum("ck,nkhw->nchw", plane, torch.randn(6, 2, 9, 8, dtype=torch.float64))
    plain, (first,) = low_rank(model, params=0.5)
    fitted, (second,) = low_rank(model, params=0.5, batches=[(x[:3],), (x[:0],), (x[3:],)])
    assert first.rank == second.rank == 3 and fitted.training
    with torch.no_grad():
        y = model(x)
        errors = [F.mse_loss(m(x), y).item() for m in (plain, fitted)]
        variance = (y - y.mean((0, 2, 3), keepdim=True)).square().mean()
        assert_close("unexplained", torch.tensor(errors[1], dtype=torch.float64), (1 - second.energy) * variance)
        assert errors[1] < errors[0]


def test_every_convolution_is_seen_by_the_data() -> None:
    model = _make("starnet_s050_32px")
    x = torch.randn(4, 3, 32, 32)
    fitted, rows = low_rank(model, params=0.5, batches=[(x,)])
    plain, _ = low_rank(model, params=0.5)
    pointwise = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert [row.layer for row in rows] == pointwise
    assert any(type(fitted.get_submodule(n)) is nn.Sequential for n in pointwise)
    with torch.no_grad():
        errors = [F.mse_loss(m(x), model(x)).item() for m in (plain, fitted)]
    assert errors[1] < errors[0]
    fitted.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in fitted.parameters())


@pytest.mark.parametrize("kind", [StarBlock, StarShiftBlock])
def test_a_hook_on_a_branch_is_called_and_changes_nothing(kind: Callable[[int], Any]) -> None:
    torch.manual_seed(0)
    block = randomise(kind(8))
    x = torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    expected, seen = block(x), []
    for part in (block.f1, block.f2, block.g):
        part.conv.register_forward_hook(lambda *args: seen.append(args[2]))
    assert_close("watched", block(x), expected)
    assert len(seen) == 3
    with torch.no_grad():
        block.f1.conv.bias.fill_(6)
        block.f2.conv.bias.fill_(3e4)
        block.g.conv.weight.fill_(1e-3)
        with torch.autocast("cpu", torch.float16):
            assert block(x).isfinite().all()  # the product, 1.8e5, is beyond float16


@pytest.mark.parametrize("name", NAMES)
def test_int8(name: str) -> None:
    model = fold_batchnorm(_make(name))
    packed = pack_int8(model)
    restored = unpack_int8(packed)
    quantised = int8_model(model)
    weights = 0
    for key, value in model.state_dict().items():
        assert torch.equal(quantised.state_dict()[key], restored.get(key, value))
        if packed.get(key, value).dtype == torch.int8:
            weights += value.numel()
            steps = packed[key + ".int8_scale"].view(-1, *[1] * (value.dim() - 1))
            assert ((restored[key] - value).abs() <= 0.5001 * steps).all()
            assert packed[key].abs().flatten(1).amax(1).eq(127).all()
        elif key in restored:
            assert torch.equal(restored[key], value)
    total = sum(v.numel() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked"))
    scales = sum(v.numel() for k, v in packed.items() if k.endswith("int8_scale"))
    assert weights > 0.9 * total * (name != "shiftresnet20") and size_in_bytes(model) == 4 * total
    assert size_in_bytes(packed) == weights + 4 * (total - weights + scales) < 0.45 * size_in_bytes(model)
    x = smallest_image(model)
    with torch.no_grad():
        error = F.mse_loss(quantised(x), model(x)) / model(x).var()
    assert 0 < error < 0.05
    assert torch.equal(unpack_int8(pack_int8(quantised))["head.weight"], restored["head.weight"])


def test_low_rank_and_int8_together() -> None:
    model = fold_batchnorm(_make("shiftresnet20"))
    sizes = [size_in_bytes(model)]
    for step in (lambda m: low_rank(m, params=0.6)[0], int8_model):
        model = step(model)
        sizes.append(size_in_bytes(pack_int8(model) if step is int8_model else model))
    assert sizes[0] > 1.3 * sizes[1] > 1.3 * 2 * sizes[2]
    assert model(smallest_image(model)).isfinite().all()


def test_a_channel_of_zeros() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    assert torch.equal(unpack_int8(pack_int8(layer))["weight"], layer.weight)


@pytest.mark.parametrize("args", [{}, {"energy": 0.5, "params": 0.5}, {"energy": 1.5}, {"params": 1}, {"params": 0}])
def test_low_rank_asks_for_one_share(args: dict) -> None:
    with pytest.raises(StarshiftError, match="one of the two"):
        low_rank(nn.Sequential(nn.Conv2d(4, 4, 1)), **args)


def test_low_rank_needs_something_to_factor() -> None:
    with pytest.raises(StarshiftError, match="no plain 1x1"):
        low_rank(nn.Sequential(nn.Conv2d(3, 4, 3)), energy=0.9)
