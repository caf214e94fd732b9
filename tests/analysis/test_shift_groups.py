# SPDX-License-Identifier: Apache-2.0
"""Redundancy and contribution of shift groups against direct computation; allocations that models take."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from starshift.analysis import (
    ChannelStatistics,
    GroupContribution,
    allocate,
    allocations,
    group_contributions,
    group_redundancy,
    shift_layers,
    top1,
    zeroed,
)
from starshift.errors import StarshiftError
from starshift.layers import module_offsets
from starshift.ops.shift.offsets import per_channel
from tests.models.helpers import randomise, small
from tests.tolerance import assert_close


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 3, 64, 64, generator=generator), torch.randint(5, (n,), generator=generator)) for n in (5, 0, 3)
    ]


def test_streamed_correlation_is_numpys() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 9, 8)
    x[:, 1] = 100 + x[:, 0] - 0.5 * x[:, 1]
    x[:, 3] = 7.0
    sums = ChannelStatistics()
    for part in x.split([1, 3, 2]):
        sums.update(part)
    correlation, live = sums.correlation()
    assert live.tolist() == [True, True, True, False]
    expected = torch.from_numpy(np.corrcoef(x[:, :3].transpose(0, 1).flatten(1).double().numpy()))
    assert_close("correlation", correlation[:3, :3], expected)
    assert not correlation[3].any()


def _direct(x: Tensor, displacements: list, wanted: tuple[int, int]) -> tuple[float, float]:
    """Mean |r| inside a group, and between it and the rest, pair by pair."""
    flat = x.transpose(0, 1).flatten(1).double()
    live = [c for c in range(len(flat)) if flat[c].std() > 0]
    pairs = {True: [], False: []}
    for a in live:
        for b in live:
            if a != b and displacements[a] == wanted:
                r = abs(np.corrcoef(flat[a].numpy(), flat[b].numpy())[0, 1])
                pairs[displacements[b] == wanted].append(r)
    return tuple(float(np.mean(values)) if values else math.nan for values in (pairs[True], pairs[False]))


@pytest.mark.parametrize(("name", "offsets"), [("shiftresnet20", "interleaved"), ("shiftnet_c", "grouped")])
def test_redundancy(name: str, offsets: str, batches: list) -> None:
    model = randomise(small(name, offsets=offsets)).train()
    rows = group_redundancy(model, batches)
    assert all(m.training for m in model.modules())
    layer_name, layer = next(iter(shift_layers(model).items()))
    seen: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])), torch.no_grad():
        model.eval()
        for image, _ in batches:
            if len(image):
                model(image)
    displacements = per_channel(layer.offsets)
    first = [row for row in rows if row.module == layer_name]
    assert {(row.dy, row.dx): row.channels for row in first} == {d: displacements.count(d) for d in set(displacements)}
    for row in first:
        expected = torch.tensor(_direct(torch.cat(seen), displacements, (row.dy, row.dx)))
        assert_close("redundancy", torch.tensor((row.within, row.between)).nan_to_num(-1), expected.nan_to_num(-1))
    assert len({row.module for row in rows}) == len(module_offsets(model))


def test_copies_in_a_group_are_redundant(batches: list) -> None:
    model = randomise(small("shiftresnet20", expansion=3))
    block = model.stages[0][0]
    with torch.no_grad():
        for tensor in (*block.conv1.parameters(), *block.conv1.bn.buffers()):
            if tensor.dim():
                tensor[:5] = tensor[:1]
    row = group_redundancy(model, batches)[0]
    assert (row.dy, row.dx, row.channels) == (-1, -1, 5)
    assert_close("copies", torch.tensor(row.within), torch.tensor(1.0))
    assert row.between < 0.9


@pytest.mark.parametrize("name", ["shiftresnet20", "shiftnet_c"])
def test_contribution(name: str, batches: list) -> None:
    model = randomise(small(name))
    with torch.no_grad():
        batches = [(image, model(image).argmax(1) if len(image) else target) for image, target in batches]
    before = module_offsets(model)
    modules = list(shift_layers(model))[1:3]
    rows = group_contributions(model, batches, modules)
    assert module_offsets(model) == before and [r.module for r in rows] == [m for m in modules for _ in range(9)]
    for row in rows[:3]:
        runs = [
            [[n, 0, 0] if (dy, dx) == (row.dy, row.dx) else [n, dy, dx] for n, dy, dx in groups] for groups in before
        ]
        runs = [now if i == 1 else was for i, (now, was) in enumerate(zip(runs, before, strict=True))]
        other = small(name, offsets=runs).eval()
        other.load_state_dict(model.state_dict())
        assert row.top1 == top1(other, batches) and row.lost == 100 - row.top1
    still = [row for row in rows if (row.dy, row.dx) == (0, 0)]
    assert all(row.lost == 0 for row in still)
    module = model.get_submodule(modules[0])
    conv = module.conv2 if name == "shiftnet_c" else module.conv2.conv
    squares = sum(row.weight_norm**2 for row in rows if row.module == modules[0])
    assert_close("norms", torch.tensor(squares), conv.weight.double().square().sum())


def test_zeroed_is_undone_also_after_an_error() -> None:
    layer = next(iter(shift_layers(small("shiftresnet20")).values()))
    before = layer.offsets

    def fail() -> Iterator[None]:
        with zeroed(layer, (0, 1)):
            assert (0, 1) not in per_channel(layer.offsets) and len(per_channel(layer.offsets)) == 16
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert layer.offsets == before


def test_allocate() -> None:
    # 10 by thirds: 3.33 each, the first of equal remainders gets the last channel
    assert allocate({(0, 0): 1, (0, 1): 1, (1, 0): 1}, 10) == ((4, 0, 0), (3, 0, 1), (3, 1, 0))
    assert allocate({(0, 0): -3, (0, 1): 0.5, (1, 0): 0}, 4) == ((4, 0, 1),)
    assert allocate({(0, 0): 0, (0, 1): 0}, 5) == ((3, 0, 0), (2, 0, 1))
    assert allocate({(0, 0): 0, (0, 1): 1}, 5, least=2) == ((2, 0, 0), (3, 0, 1))
    for seed in range(20):
        shares = {(0, i): float(v) for i, v in enumerate(torch.rand(9, generator=torch.Generator().manual_seed(seed)))}
        total = sum(shares.values())
        runs = allocate(shares, 50)
        assert sum(n for n, _, _ in runs) == 50
        assert all(abs(n - 50 * shares[dy, dx] / total) < 1 for n, dy, dx in runs)
    for shares, channels, least in (({}, 3, 0), ({(0, 0): math.nan}, 3, 0), ({(0, 0): 1.0, (0, 1): 1.0}, 3, 2)):
        with pytest.raises(StarshiftError, match="cannot share"):
            allocate(shares, channels, least)


def test_allocations_are_a_model_s_offsets() -> None:
    model = small("shiftresnet20", expansion=3)
    points = torch.rand(81, generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        GroupContribution(name, dy, dx, n, 0, points.pop(), 5.0 + dy + 2 * dx, 1)
        for name, groups in zip(shift_layers(model), module_offsets(model), strict=True)
        for n, dy, dx in groups
    ]
    uniform = module_offsets(model)
    for by in ("lost", "weight_norm"):
        runs = allocations(rows, by)
        assert runs != uniform
        assert module_offsets(small("shiftresnet20", expansion=3, offsets=runs)) == runs
        assert allocations(rows, by, smooth=1) == uniform
        assert all(n >= 2 for module in allocations(rows, by, least=2) for n, _, _ in module)
        if by == "lost":
            assert all(
                [r for r in now if r[1:] == [0, 0]] == [r for r in was if r[1:] == [0, 0]]
                for now, was in zip(runs, uniform, strict=True)
            )
    one = [GroupContribution("m", *d, 4, 50, lost, 1, 1) for d, lost in (((0, 0), 0.0), ((0, 1), 3.0), ((1, 0), 1.0))]
    assert allocations(one) == [[[4, 0, 0], [6, 0, 1], [2, 1, 0]]]


def test_what_is_refused(batches: list) -> None:
    model = small("shiftresnet20")
    with pytest.raises(StarshiftError, match="not an iterator"):
        group_contributions(model, iter(batches))
    with pytest.raises(StarshiftError, match=r"Did you mean 'stages\.0\.0'"):
        group_contributions(model, batches, ["stages.0.00"])
    with pytest.raises(StarshiftError, match="no images"):
        top1(model, batches[1:2])
    with pytest.raises(StarshiftError, match="fix_shifts"):
        group_redundancy(small("shiftresnet20", shift="sparse"), batches)
    with pytest.raises(StarshiftError, match="fixed shifts"):
        group_redundancy(nn.Identity(), batches)
