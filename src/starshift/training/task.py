# SPDX-License-Identifier: Apache-2.0
"""What one training step does, as a LightningModule."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from starshift.data import Batch
from starshift.errors import StarshiftError
from starshift.layers import coefficient_penalty, displacement_penalty
from starshift.training.config import TrainConfig
from starshift.training.optim import make_loss, make_mixup, make_optimizer, make_schedule

CHECK_EVERY = 20  # steps between looks at the loss where a look makes the host wait for the device


class NotFiniteError(StarshiftError):
    """The loss or the weights became NaN or infinite."""


class ClassificationTask(LightningModule):
    """Trains ``model`` on batches of the data loaders.

    Randomness inside a step (mixup, dropout, drop path) depends on (seed, epoch, batch in the epoch, rank) alone, and
    the learning rate on the position in the run alone: a resumed run does what an unbroken one would have done.

    Args:
        model: logits (N, classes) from images (N, C, H, W).
        config: the settings.
        classes: number of classes.
        lr: learning rate at the schedule's peak.
        batches: batches in an epoch.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, *, classes: int, lr: float, batches: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.lr = lr
        self.updates_per_epoch = -(-batches // config.grad_accum_steps)
        self.mixup = make_mixup(config, classes)
        self.criterion = make_loss(config, mixed=self.mixup is not None)
        self.ema: ModelEmaV3 | None = None
        if config.model_ema:
            self.ema = ModelEmaV3(model, decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
            self.ema.requires_grad_(False)
        # The running epoch; kept in checkpoints, so that an epoch broken off goes on where it stood.
        self.batches_done = 0
        self.images_done = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.first_bad = torch.full((), -1)

    @property
    def best_model(self) -> nn.Module:
        """The network that is validated and kept: the averaged weights where there are any."""
        return self.model if self.ema is None else self.ema.module

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self.model, self.config, self.lr)
        self.set_rates = make_schedule(optimizer, self.config, self.updates_per_epoch)
        return optimizer

    def on_train_start(self) -> None:
        precise = torch.float32 if self.device.type == "mps" else torch.float64
        self.loss_sum = self.loss_sum.to(self.device, precise)
        self.first_bad = self.first_bad.to(self.device)

    @property
    def update(self) -> int:
        """The update that the next batch is part of, from 0: by epoch and batches done in it, whatever number the
        optimiser has counted (a run resumed on more devices makes fewer updates an epoch)."""
        return self.current_epoch * self.updates_per_epoch + self.batches_done // self.config.grad_accum_steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._seed_step()
        self.set_rates(self.update)
        image, target = batch.image, batch.target
        if self.config.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        if self.mixup is not None:
            off = self.config.mixup_off_epoch
            self.mixup.mixup_enabled = not (off and self.current_epoch >= off)
            image, target = self.mixup(image, target)
        loss = self.criterion(self.model(image).float(), target)
        self._watch(loss.detach(), len(image))
        return loss + self.config.penalty_weight * self._penalty() if self.config.penalty else loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step)

    def _penalty(self) -> Tensor:
        kind = self.config.penalty
        return displacement_penalty(self.model) if kind == "displacement" else coefficient_penalty(self.model, kind)

    def _seed_step(self) -> None:
        key = (self.config.seed, self.current_epoch, self.batches_done, self.global_rank)
        first, second = (int(word) for word in np.random.SeedSequence(key).generate_state(2))
        torch.manual_seed(first)
        np.random.seed(second)
        random.seed(second)

    def _watch(self, loss: Tensor, images: int) -> None:
        """Add to the epoch's mean; note the first step whose loss is not finite, and stop there if looking is free."""
        bad = (self.first_bad < 0) & ~torch.isfinite(loss)
        self.first_bad = torch.where(bad, self.update, self.first_bad)
        self.loss_sum += loss.to(self.loss_sum.dtype) * images
        self.images_done += images
        self.batches_done += 1
        alone = self.trainer.world_size == 1
        if (loss.device.type == "cpu" and alone) or self.batches_done % CHECK_EVERY == 0:
            self.check_loss()

    def check_loss(self) -> None:
        """Raise NotFiniteError if a loss of any process was NaN or infinite."""
        step = int(self._over_processes(self.first_bad, "max"))
        if step >= 0:
            where = f"in epoch {self.current_epoch + 1} at step {step} of {self.total_updates}"
            raise NotFiniteError(f"the loss became NaN or infinite {where}")

    @property
    def total_updates(self) -> int:
        return self.updates_per_epoch * self.config.epochs

    def check_weights(self) -> None:
        """Raise NotFiniteError if a weight is NaN or infinite: asked before a checkpoint replaces a good one."""
        with torch.no_grad():
            finite = torch.stack([torch.isfinite(p).all() for p in self.parameters()]).all()
        if not bool(finite):
            where = f"in epoch {self.current_epoch + 1}, by step {self.update} of {self.total_updates}"
            raise NotFiniteError(f"weights became NaN or infinite {where}")

    def close_epoch(self) -> float:
        """The mean training loss of the epoch; the next one starts from nothing."""
        mean = float(self._over_processes(self.loss_sum, "sum")) / (self.images_done * self.trainer.world_size)
        self.loss_sum.zero_()
        self.images_done = self.batches_done = 0
        return mean

    def _over_processes(self, value: Tensor, how: str) -> Tensor:
        return self.trainer.strategy.reduce(value.clone(), reduce_op=how) if self.trainer.world_size > 1 else value

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        loss_sum = float(self._over_processes(self.loss_sum, "sum"))
        checkpoint["epoch_so_far"] = {
            "batches": self.batches_done,
            "images": self.images_done,
            "loss_sum": loss_sum,
            "processes": self.trainer.world_size,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        so_far = checkpoint["epoch_so_far"]
        self.batches_done, self.images_done = so_far["batches"], so_far["images"]
        self.loss_sum.fill_(so_far["loss_sum"] if self.trainer.is_global_zero else 0.0)
