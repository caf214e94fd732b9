# SPDX-License-Identifier: Apache-2.0
"""Optimiser groups, learning rates over time, and losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from starshift.data import Batch
from starshift.errors import StarshiftError
from starshift.layers import PENALTIES, coefficient_penalty, displacement_penalty
from starshift.models import create_model
from starshift.training.config import CHOICES, resolve
from starshift.training.optim import learning_rate, make_loss, make_mixup, make_optimizer, make_schedule
from starshift.training.task import ClassificationTask
from tests.tolerance import assert_close


def rates(updates_per_epoch: int = 10, **settings: object) -> list[float]:
    config = resolve(None, {"lr": 1.0, "opt": "momentum", **settings})
    optimizer = make_optimizer(nn.Linear(2, 2), config, 1.0)
    set_rates = make_schedule(optimizer, config, updates_per_epoch)
    found = []
    for step in range(config.epochs * updates_per_epoch):
        set_rates(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_learning_rate_follows_the_batch_unless_it_is_given() -> None:
    sgd = resolve(None, {"opt": "sgd", "lr_base": 0.1, "lr_base_size": 64})
    adam = resolve(None, {"opt": "adamw", "lr_base": 0.1, "lr_base_size": 64})
    assert math.isclose(learning_rate(sgd, 256), 0.4)
    assert math.isclose(learning_rate(adam, 256), 0.2)
    assert learning_rate(resolve(None, {"lr": 0.3}), 256) == 0.3
    starnet = resolve("starnet-imagenet")
    assert math.isclose(learning_rate(starnet, 2048), 3e-3) and math.isclose(learning_rate(starnet, 256), 3e-3 / 8)


def test_one_cycle_rises_and_falls_once() -> None:
    found = rates(sched="onecycle", epochs=10, pct_start=0.3, warmup_lr=0.01, min_lr=0.001)
    peak = found.index(max(found))
    assert peak == 30 and math.isclose(max(found), 1.0) and math.isclose(found[0], 0.01)
    assert found[: peak + 1] == sorted(found[: peak + 1]) and found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-1] < 0.01


def test_cosine_warms_up_and_steps_fall_at_their_epochs() -> None:
    found = rates(sched="cosine", epochs=10, warmup_epochs=2, warmup_lr=0.1)
    assert math.isclose(found[0], 0.1) and found[:20] == sorted(found[:20]) and found[-1] < 0.01
    steps = rates(sched="multistep", epochs=6, warmup_epochs=0, decay_milestones=[2, 4], decay_rate=0.1)
    assert [round(steps[epoch * 10], 6) for epoch in range(6)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_a_rate_depends_on_its_step_alone() -> None:
    config = resolve("quick", {"epochs": 5})
    optimizer = make_optimizer(nn.Linear(2, 2), config, 0.1)
    set_rates = make_schedule(optimizer, config, 10)
    set_rates(17)
    once = optimizer.param_groups[0]["lr"]
    for step in (3, 49, 17):
        set_rates(step)
    assert optimizer.param_groups[0]["lr"] == once


def test_norms_and_biases_decay_only_where_the_recipe_says() -> None:
    model = create_model("shiftresnet20", num_classes=3)
    free = [g for g in make_optimizer(model, resolve("quick"), 0.1).param_groups if g["weight_decay"] == 0]
    assert sum(len(g["params"]) for g in free) == sum(p.ndim <= 1 for p in model.parameters())
    assert all(g["weight_decay"] == 5e-4 for g in make_optimizer(model, resolve("shiftresnet-cifar"), 0.1).param_groups)


def test_layer_decay_gives_early_layers_less() -> None:
    model = create_model("starnet_s050", num_classes=3)
    config = resolve("finetune", {"sched": "onecycle"})
    optimizer = make_optimizer(model, config, 0.1)
    make_schedule(optimizer, config, 10)(3)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert (
        rate[id(model.stem[0].conv.weight)] < rate[id(model.stages[1][1].f1.conv.weight)] < rate[id(model.head.weight)]
    )


def test_unknown_optimiser_is_refused() -> None:
    with pytest.raises(StarshiftError, match=r"no optimiser 'admw'. Did you mean 'adamw'"):
        make_optimizer(nn.Linear(2, 2), resolve(None, {"opt": "admw"}), 0.1)


@pytest.mark.parametrize("bce", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_every_loss_takes_its_targets(bce: bool, mixed: bool) -> None:
    config = resolve(None, {"bce_loss": bce, "mixup": 0.2 if mixed else 0.0})
    mixup = make_mixup(config, 5)
    assert (mixup is not None) == mixed
    image, target = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    if mixup is not None:
        image, target = mixup(image, target)
    logits = torch.zeros(4, 5, requires_grad=True)
    loss = make_loss(config, mixed)(logits, target)
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", CHOICES["penalty"][1:])
def test_a_penalty_is_added_to_the_loss_and_to_the_gradient(kind: str) -> None:
    torch.manual_seed(0)
    name, args = ("shiftresnet20", {"shift": "sparse"}) if kind == "displacement" else ("starnet_s050_32px", {})
    model = create_model(name, num_classes=10, **args).eval()
    batch = Batch(torch.randn(4, 3, 32, 32), torch.arange(4), torch.arange(4), ())
    losses, slopes = [], []
    for settings in ({}, {"penalty": kind, "penalty_weight": 0.5}):
        task = ClassificationTask(model, resolve(None, settings), classes=10, lr=0.1, batches=1)
        task.set_rates, task._watch = (lambda _: None), (lambda *_: None)  # no trainer
        model.zero_grad()
        loss = task.training_step(batch, 0)
        loss.backward()
        losses.append(loss.detach())
        slopes.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    model.zero_grad()
    penalty = displacement_penalty(model) if kind == "displacement" else coefficient_penalty(model, kind)
    penalty.backward()
    slope = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.parameters()])
    assert_close("loss", losses[1], losses[0] + 0.5 * penalty.detach())
    assert_close("gradient", slopes[1], slopes[0] + 0.5 * slope)
    assert slope.abs().sum() > 0


def test_the_kinds_of_penalty_are_those_of_the_layers() -> None:
    assert set(CHOICES["penalty"]) == {"", "displacement", *PENALTIES}
