# SPDX-License-Identifier: Apache-2.0
"""Optimiser, learning rate over time and loss, by timm's names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn

from starshift.errors import StarshiftError, nearest
from starshift.training.config import TrainConfig

ADAPTIVE = ("ada", "lamb", "lion", "lars", "nadam", "muon")  # what timm scales by the root of the batch size


def learning_rate(config: TrainConfig, global_batch: int) -> float:
    """``lr`` as given, or ``lr_base`` times ``global_batch / lr_base_size`` or the root of that (timm's rule)."""
    if config.lr is not None:
        return config.lr
    share = global_batch / config.lr_base_size
    scale = config.lr_base_scale or ("sqrt" if any(name in config.opt.lower() for name in ADAPTIVE) else "linear")
    return config.lr_base * (math.sqrt(share) if scale == "sqrt" else share)


def check_optimizer(config: TrainConfig) -> None:
    """Raise StarshiftError if timm has no optimiser of the name ``opt``."""
    known = [str(name) for name in list_optimizers()]
    if config.opt.lower().removeprefix("lookahead_") not in known:
        raise StarshiftError(f"no optimiser {config.opt!r}.{nearest(config.opt, known)}")


def make_optimizer(model: nn.Module, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """timm's optimiser of that name over the model's parameters, in its groups (no decay on norms, layer decay).

    Raises:
        StarshiftError: timm has none of the name, or it cannot be made with these settings.
    """
    check_optimizer(config)
    try:
        return create_optimizer_v2(
            model,
            opt=config.opt,
            lr=lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            filter_bias_and_bn=config.filter_bias_and_bn,
            layer_decay=config.layer_decay,
        )
    except (ValueError, TypeError, AssertionError, NotImplementedError, ImportError) as error:
        how = f"lr {lr:g}, momentum {config.momentum:g}, weight_decay {config.weight_decay:g}"
        raise StarshiftError(f"opt {config.opt} cannot be made with {how}: {error}") from error


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, updates_per_epoch: int
) -> Callable[[int], None]:
    """A function that sets the learning rates for update ``step`` (from 0): of ``step`` alone, so it has no state."""
    if config.sched == "onecycle":
        return _one_cycle(optimizer, config, config.epochs * updates_per_epoch)
    peak = max(group["lr"] for group in optimizer.param_groups)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=config.sched,
        num_epochs=config.epochs,
        warmup_epochs=min(config.warmup_epochs, config.epochs / 2),  # type: ignore[arg-type]  # may be a part of one
        warmup_lr=min(config.warmup_lr, peak),
        min_lr=min(config.min_lr, peak),
        decay_milestones=list(config.decay_milestones),
        decay_epochs=config.decay_epochs,
        decay_rate=config.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler.step_update


def _one_cycle(optimizer: torch.optim.Optimizer, config: TrainConfig, updates: int) -> Callable[[int], None]:
    """Up along a cosine from ``warmup_lr`` over ``pct_start`` of all updates, down along a cosine to ``min_lr``."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    rise = max(1.0, config.pct_start * updates)

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    def set_rates(step: int) -> None:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            if step < rise:
                rate = between(min(config.warmup_lr, peak), peak, step / rise)
            else:
                rate = between(peak, min(config.min_lr, peak), min(1.0, (step - rise) / max(1.0, updates - rise)))
            group["lr"] = rate * group.get("lr_scale", 1.0)

    return set_rates


def make_mixup(config: TrainConfig, classes: int) -> Mixup | None:
    """timm's mixup and cutmix, if either is on."""
    if config.mixup <= 0 and config.cutmix <= 0:
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        mode=config.mixup_mode,
        label_smoothing=config.smoothing,
        num_classes=classes,
    )


def make_loss(config: TrainConfig, mixed: bool) -> nn.Module:
    """timm's choice: for soft targets (after mixup), smoothed labels or plain ones; or binary cross-entropy."""
    if config.bce_loss:
        return BinaryCrossEntropy(smoothing=0.0 if mixed else config.smoothing)
    if mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(config.smoothing) if config.smoothing > 0 else nn.CrossEntropyLoss()
