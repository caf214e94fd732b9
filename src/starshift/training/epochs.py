# SPDX-License-Identifier: Apache-2.0
"""What happens around the steps: validation, the table of epochs, checkpoints, and stopping when asked to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from starshift.data import Batch
from starshift.training.display import Display
from starshift.training.evaluation import Validation, validate
from starshift.training.folder import copy_checkpoint, disk_errors, write_csv
from starshift.training.interrupts import StopAsked, StopSignal
from starshift.training.task import ClassificationTask, NotFiniteError

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "val_loss",
    "val_top1",
    "val_top5",
    "images_per_s",
    "seconds",
    "skipped",
)
AGREE_EVERY = 10  # steps between two looks of several processes at each other's signals


class PositionedLoader:
    """A training loader that starts where the run stands: ``position()`` is (epoch, batches of it already done)."""

    def __init__(self, loader: DataLoader, position: Callable[[], tuple[int, int]]) -> None:
        self.loader = loader
        self.position = position
        self.batches = len(loader)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        epoch, done = self.position()
        self.loader.batch_sampler.set_epoch(epoch, done)  # type: ignore[union-attr]
        yield from self.loader


def end_workers(loader: DataLoader) -> None:
    """End the loader's persistent workers now; left to the garbage collector they would disturb later ones."""
    if loader._iterator is not None and loader.num_workers > 0:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
    loader._iterator = None


class EpochKeeper(Callback):
    """Validates after each epoch, writes its row, then ``last.ckpt``, and when top-1 (or loss) is better ``best.ckpt``.

    ``keep`` is called with the network then, so that what a run has reached can be used before it ends. ``data`` goes
    into every checkpoint.

    Within an epoch ``last.ckpt`` is also written when it is older than the setting ``checkpoint_minutes``. On a signal
    it is written after the running update, or within validation at once; StopAsked follows.
    A checkpoint never replaces a good one with weights or losses that are not finite.
    """

    def __init__(
        self,
        run: Path,
        val_loader: DataLoader,
        display: Display,
        classes: int,
        keep: Callable[[nn.Module], None],
        data: dict[str, Any],
    ) -> None:
        self.run = run
        self.keep = keep
        self.data = data
        self.val_loader = val_loader
        self.display = display
        self.classes = classes
        self.stop = StopSignal()
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.seconds = 0.0  # of training in the running epoch
        self.skipped = 0  # unreadable images in the running epoch
        self.bad: dict[str, str] = {}  # all of them, name to reason
        self.unvalidated = False  # the last epoch's steps are done, its validation is not
        self.earlier = 0.0  # seconds that the run took before it was resumed
        self._started = self._since = self._saved = time.monotonic()

    # -- state in checkpoints

    def state_dict(self) -> dict[str, Any]:
        names = ("rows", "best", "seconds", "skipped", "bad", "unvalidated")
        return {"data": self.data, "earlier": self.elapsed(), **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            if name != "data":  # what is there now stays
                setattr(self, name, value)

    def elapsed(self) -> float:
        """Seconds that the run has taken so far, over all its parts."""
        return self.earlier + time.monotonic() - self._started

    # -- hooks

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop.install()  # over Lightning's own handler, which raises where no checkpoint can be written

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.catch_up(trainer, pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.skipped += len(batch.bad)
        self.bad.update(batch.bad)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        task: ClassificationTask = pl_module
        batches, done = int(trainer.num_training_batches), task.batches_done
        if done < batches and done % task.config.grad_accum_steps == 0:
            stop = self._asked_to_stop(trainer, done)
            if stop or self._due(trainer, done, 60 * task.config.checkpoint_minutes):
                self._keep_time()
                task.check_loss()
                self._save(trainer, task)
            if stop:
                raise StopAsked
        epoch = trainer.current_epoch
        self.display.batch(epoch * batches + done, f"epoch {epoch + 1}/{task.config.epochs}{self._latest()}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._keep_time()
        self._finish_epoch(trainer, pl_module, trainer.current_epoch)
        self._since = time.monotonic()

    def catch_up(self, trainer: Trainer, device: torch.device) -> None:
        """Validate an epoch whose steps were done when the run was stopped."""
        if self.unvalidated:
            trainer.lightning_module.to(device)  # Lightning takes it off when it has nothing left to train
            self._finish_epoch(trainer, trainer.lightning_module, len(self.rows))
        self._since = time.monotonic()

    # -- parts

    def _finish_epoch(self, trainer: Trainer, task: Any, epoch: int) -> None:
        task.check_loss()
        task.check_weights()
        if self._asked_to_stop(trainer):
            self._stop_unvalidated(trainer, task)
        found = validate(
            task.best_model,
            self.val_loader,
            classes=self.classes,
            device=task.device,
            precision=task.config.precision,
            channels_last=task.config.channels_last,
            across_processes=trainer.world_size > 1,
            after_batch=lambda: (
                self._stop_unvalidated(trainer, task) if self._asked_to_stop(trainer, alone=True) else None
            ),
        )
        if not math.isfinite(found.loss):
            where = f"epoch {epoch + 1}, step {(epoch + 1) * task.updates_per_epoch} of {task.total_updates}"
            raise NotFiniteError(f"the validation loss became NaN or infinite after {where}")
        self.bad.update(found.bad)
        row = self._row(trainer, task, epoch, found)
        self.rows.append(row)
        better = (row["val_top1"], -row["val_loss"]) > (
            self.best.get("val_top1", -1.0),
            -self.best.get("val_loss", math.inf),
        )
        if better:
            self.best = dict(row)
        self.seconds, self.skipped, self.unvalidated = 0.0, 0, False
        if trainer.is_global_zero:
            self.write_tables()
            self._log(trainer, row)
        self._save(trainer, task)
        if better and trainer.is_global_zero:
            with disk_errors(self.run):
                copy_checkpoint(self.run / "checkpoints" / "last.ckpt", self.run / "checkpoints" / "best.ckpt")
                self.keep(task.best_model)
        self.display.epoch(row, task.config.epochs, better)
        if self._asked_to_stop(trainer):
            raise StopAsked

    def _row(self, trainer: Trainer, task: ClassificationTask, epoch: int, found: Validation) -> dict[str, Any]:
        images = task.images_done * trainer.world_size
        return {
            "epoch": epoch + 1,
            "step": trainer.global_step,
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "train_loss": task.close_epoch(),
            "val_loss": found.loss,
            "val_top1": round(found.top1, 4),
            "val_top5": round(found.top5, 4),
            "images_per_s": round(images / max(self.seconds, 1e-9), 2),
            "seconds": round(self.seconds, 3),
            "skipped": self.skipped + len(found.bad),
        }

    def write_tables(self) -> None:
        """metrics.csv, and skipped.csv if an image could not be read."""
        with disk_errors(self.run):
            write_csv(self.run / "metrics.csv", COLUMNS, self.rows)
            if self.bad:
                write_csv(self.run / "skipped.csv", ("name", "reason"), sorted(self.bad.items()))

    def _log(self, trainer: Trainer, row: dict[str, Any]) -> None:
        if trainer.logger is not None:
            with disk_errors(self.run):
                trainer.logger.log_metrics({k: float(v) for k, v in row.items() if k != "step"}, step=row["step"])

    def _save(self, trainer: Trainer, task: ClassificationTask) -> None:
        task.check_weights()
        trainer.save_checkpoint(self.run / "checkpoints" / "last.ckpt")
        self._saved = time.monotonic()

    def _stop_unvalidated(self, trainer: Trainer, task: ClassificationTask) -> None:
        self.unvalidated = True
        self._save(trainer, task)
        raise StopAsked

    def _asked_to_stop(self, trainer: Trainer, step: int = 0, alone: bool = False) -> bool:
        """Whether a signal came; several processes agree on it, at the same steps (not in validation: ``alone``)."""
        if trainer.world_size == 1:
            return self.stop.received is not None
        if alone or step % AGREE_EVERY:
            return False
        asked = trainer.strategy.reduce_boolean_decision(self.stop.received is not None, all=False)
        if asked and self.stop.received is None:
            self.stop.received = 15
        return asked

    def _due(self, trainer: Trainer, step: int, seconds: float) -> bool:
        """Whether the last checkpoint is ``seconds`` old (0: never); several processes agree as in stopping."""
        if not seconds:
            return False
        due = time.monotonic() - self._saved >= seconds
        if trainer.world_size == 1:
            return due
        return step % AGREE_EVERY == 0 and trainer.strategy.reduce_boolean_decision(due, all=False)

    def _keep_time(self) -> None:
        self.seconds += time.monotonic() - self._since
        self._since = time.monotonic()

    def _latest(self) -> str:
        return f"  top-1 {self.rows[-1]['val_top1']:.2f}%" if self.rows else ""
