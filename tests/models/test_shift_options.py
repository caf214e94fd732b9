# SPDX-License-Identifier: Apache-2.0
"""Shift networks with allocations of their own and with learned shifts: they train, fold, save and convert."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
import yaml
from timm.optim import param_groups_weight_decay
from torch import nn

from starshift.errors import StarshiftError
from starshift.layers import CSC, PreActCSC, fix_shifts, fold_batchnorm, module_offsets
from starshift.models import create_model, load_model, save_model
from starshift.ops import use_kernel
from starshift.preprocessing import Preprocessing
from tests.models.helpers import randomise, small, smallest_image
from tests.tolerance import assert_close

NAMES = ["shiftresnet20", "shiftnet_c"]


def _uneven(name: str) -> list[list[list[int]]]:
    """For every module an allocation in which one channel goes up and half stay."""
    runs = []
    for groups in module_offsets(small(name)):
        channels = sum(n for n, _, _ in groups)
        runs.append([[channels // 2, 0, 0], [channels - channels // 2 - 1, 0, -2], [1, 1, 0]])
    return runs


@pytest.mark.parametrize("name", NAMES)
def test_explicit_allocations_survive_files(name: str, tmp_path) -> None:
    runs = _uneven(name)
    assert yaml.safe_load(yaml.safe_dump(runs)) == json.loads(json.dumps(runs)) == runs
    model = randomise(small(name, offsets=runs))
    assert module_offsets(model) == runs
    preprocessing = Preprocessing((32, 32))
    args = {"offsets": runs}
    save_model(model, tmp_path / "m", name=name, model_args=args, classes=list("abcde"), preprocessing=preprocessing)
    loaded = load_model(tmp_path / "m").model
    x = smallest_image(model)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        assert not torch.equal(small(name)(x), model(x))
        assert_close("folded", fold_batchnorm(model)(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_kernels_take_explicit_allocations(name: str) -> None:
    gradients = []
    for kernel in (nullcontext(), use_kernel("reference")):
        model = randomise(small(name, offsets=_uneven(name))).train()
        x = smallest_image(model, batch=4).contiguous(memory_format=torch.channels_last)
        with kernel:
            model(x).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.levels.parameters()]))
    assert_close("gradients", gradients[0], gradients[1], times=4)


@pytest.mark.parametrize("name", NAMES)
def test_an_allocation_equal_to_the_uniform_one_is_it(name: str) -> None:
    plain = randomise(small(name))
    given = small(name, offsets=module_offsets(plain)).eval()
    given.load_state_dict(plain.state_dict())
    x = smallest_image(plain)
    assert torch.equal(given(x), plain(x))
    with pytest.raises(StarshiftError, match="one entry for each"):
        small(name, offsets=[[[16, 0, 0]]])
    with pytest.raises(StarshiftError, match="add up to"):
        small(name, offsets=[[[1, 0, 0]]] * len(module_offsets(plain)))


@pytest.mark.parametrize("sc2", [False, True])
@pytest.mark.parametrize("shift", ["active", "sparse"])
@pytest.mark.parametrize("name", NAMES)
def test_learned_shifts_train_and_fold(name: str, shift: str, sc2: bool) -> None:
    model = small(name, shift=shift, sc2=sc2, kernel_size=3, drop_path_rate=0.1).train()
    x = smallest_image(model, batch=4)
    model(x).square().sum().backward()
    modules = [m for m in model.modules() if isinstance(m, (CSC, PreActCSC))]
    moving = {n: p for n, p in model.named_parameters() if n.endswith("displacement")}
    assert len(moving) == len(modules) * (1 + sc2)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all((p.grad != 0).any() for p in moving.values())
    decayed = {
        id(p)
        for g in param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
        if g["weight_decay"]
        for p in g["params"]
    }
    assert decayed and not decayed & {id(p) for p in moving.values()}
    model = randomise(model)
    with torch.no_grad():
        assert_close("folded", fold_batchnorm(model)(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_sparse_network_is_a_fixed_one(name: str) -> None:
    model = randomise(small(name, shift="sparse"))
    fixed = fix_shifts(model)
    plain = small(name, offsets=module_offsets(fixed)).eval()
    plain.load_state_dict(fixed.state_dict())
    x = smallest_image(model)
    with torch.no_grad():
        assert_close("plain", plain(x), model(x))
    assert all(len(runs) <= 25 for runs in module_offsets(fixed))  # one run a displacement


def test_learned_shifts_can_be_exported_and_counted() -> None:
    from starshift.models import count_macs

    model = randomise(small("shiftresnet20", shift="active"))
    assert count_macs(model, (32, 32)) > count_macs(small("shiftresnet20"), (32, 32))
    x = smallest_image(model)
    program = torch.export.export(model, (x,))
    assert_close("exported", program.module()(x), model(x))
    assert isinstance(create_model("shiftresnet20", shift="active").head, nn.Linear)
