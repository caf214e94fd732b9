# SPDX-License-Identifier: Apache-2.0
"""Training a network on a data set, from the settings to the finished run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from starshift.errors import StarshiftError
from starshift.ops import kernels_switched
from starshift.training.config import TrainConfig, default_recipe, override, resolve
from starshift.training.display import Display, quiet_libraries
from starshift.training.epochs import EpochKeeper, PositionedLoader, end_workers
from starshift.training.finish import write_results
from starshift.training.folder import (
    CheckpointFiles,
    Run,
    data_to_go_on_with,
    disk_errors,
    new_run_folder,
    run_to_resume,
    write_bytes,
)
from starshift.training.interrupts import StopAsked, TrainingInterrupted
from starshift.training.machine import choose_devices, keep_freed_memory, memory_errors, process_rank
from starshift.training.setup import Setup, set_up
from starshift.training.task import ClassificationTask, NotFiniteError

# What a resumed run may change.
RESUMABLE = ("data", "data_dir", "epochs", "devices", "workers", "kernels", "checkpoint_minutes")
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
RUN_VARIABLE = "STARSHIFT_RUN"  # tells the processes of one distributed run their folder


def train(
    data: str | Path | None = None,
    model: str | None = None,
    *,
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    quiet: bool = False,
    stream: TextIO | None = None,
    **settings: Any,
) -> Run:
    """Train an image classifier and leave a run folder with everything about it.

    Args:
        data: ``"digits"``, a folder of images, or timm's ``"torch/..."``, ``"hfds/..."``, ``"wds/..."``.
        model: a name of ``list_models()``, or of timm; default: one that suits the size of the images.
        recipe: a recipe's name or a YAML file; default ``quick``, or ``finetune`` when ``checkpoint`` or
            ``pretrained`` is given.
        out: the run folder, new or empty; default ``runs/<model>-<data>-<n>``.
        resume: a run folder to go on with; its settings are kept (``epochs``, ``devices``, ``workers``,
            ``kernels`` and ``checkpoint_minutes`` may change; ``devices`` between epochs only, in number).
        quiet, stream: print nothing, or to another stream.
        settings: anything of :class:`~starshift.training.config.TrainConfig`, e.g. ``epochs=10, lr=0.05``.

    Returns:
        The finished run.

    Raises:
        StarshiftError: a mistake in settings, data or folders, a loss that is not finite, or too little memory (the
            last good checkpoint stays).
        TrainingInterrupted: Ctrl-C or SIGTERM came, or the terminal was closed; the run can be resumed.
    """
    named = {"data": data, "model": model}
    settings = {**settings, **{name: value for name, value in named.items() if value is not None}}
    display = Display(stream, quiet)
    keep_freed_memory()
    began = None
    if resume is not None:
        if recipe is not None or out is not None:
            raise StarshiftError("a resumed run keeps its settings and folder: leave out --recipe, --config and --out")
        folder = run_to_resume(resume)
        config = _resumed_config(folder, settings)
        if (folder / "summary.json").is_file() and Run.open(folder).summary["epochs"] >= config.epochs:
            raise StarshiftError(f"{folder} is finished ({config.epochs} epochs); to train on, give more --epochs")
        began = data_to_go_on_with(folder, choose_devices(config.devices)[1], config.epochs)
    else:
        config = resolve(recipe or default_recipe(settings), settings)
        if not config.data:
            raise StarshiftError("name the data to train on: a folder of images, or 'digits'")
    with kernels_switched(config.kernels):
        setup = set_up(config, display, began)
        setup.announce(display)
        if resume is None:  # after all that can fail, so that a corrected command may have the same folder
            folder = _run_folder(out, setup.config)
        with disk_errors(folder):
            write_bytes(folder / "config.yaml", setup.config.to_yaml().encode())
        display.say(f"run     {folder}")
        return _fit(setup, folder, display, resumed=resume is not None)


def _run_folder(out: str | Path | None, config: TrainConfig) -> Path:
    """Make the run folder; further processes of the same run are told it."""
    if RUN_VARIABLE in os.environ and process_rank() > 0:
        return Path(os.environ[RUN_VARIABLE])
    folder = new_run_folder(out, config.model, config.data)
    os.environ[RUN_VARIABLE] = str(folder.resolve())
    return folder


def _resumed_config(folder: Path, settings: dict[str, Any]) -> TrainConfig:
    config = resolve(folder / "config.yaml")
    changed = override(config, **settings)
    for f in fields(TrainConfig):
        if getattr(config, f.name) != getattr(changed, f.name) and f.name not in RESUMABLE:
            was = f"{f.name} was {getattr(config, f.name)!r}"
            raise StarshiftError(f"a resumed run keeps its settings: {was} (only {', '.join(RESUMABLE)} may change)")
    return changed


@dataclass(frozen=True)
class _Parts:
    trainer: Trainer
    task: ClassificationTask
    keeper: EpochKeeper
    loader: PositionedLoader


def _fit(setup: Setup, folder: Path, display: Display, *, resumed: bool) -> Run:
    loaders = (setup.training, setup.validation)
    with quiet_libraries():
        parts = _assemble(setup, folder, display)
        try:
            with memory_errors(setup.config, folder / "checkpoints" / "last.ckpt", loaders):
                _run(parts, setup, folder, resumed)
                if not parts.trainer.is_global_zero:
                    return Run(folder, {})
                with disk_errors(folder):
                    return write_results(folder, setup, parts.task, parts.keeper, display=display)
        finally:
            for loader in loaders:
                end_workers(loader)


def _assemble(setup: Setup, folder: Path, display: Display) -> _Parts:
    config, classes = setup.config, len(setup.source.classes)
    network = setup.network.to(memory_format=torch.channels_last) if config.channels_last else setup.network
    task = ClassificationTask(network, config, classes=classes, lr=setup.lr, batches=len(setup.training))
    data = setup.fingerprint.state()
    keeper = EpochKeeper(folder, setup.validation, display, classes, lambda best: setup.save(best, folder), data)
    trainer = Trainer(
        accelerator="gpu" if setup.accelerator == "cuda" else setup.accelerator,
        devices=setup.processes,
        strategy="ddp" if setup.processes > 1 else "auto",
        precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
        max_epochs=config.epochs,
        accumulate_grad_batches=config.grad_accum_steps,
        gradient_clip_val=config.clip_grad,
        gradient_clip_algorithm=config.clip_mode,
        limit_val_batches=0,  # EpochKeeper validates: Lightning's own loop cannot be left and resumed half-way
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders shard
        callbacks=[keeper],
        logger=TensorBoardLogger(str(folder), name="", version="tensorboard"),
        plugins=[CheckpointFiles()],
        default_root_dir=str(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = PositionedLoader(setup.training, lambda: (trainer.current_epoch, task.batches_done))
    return _Parts(trainer, task, keeper, loader)


def _run(parts: _Parts, setup: Setup, folder: Path, resumed: bool) -> None:
    """Fit to the last epoch, or raise what a person can act on."""
    trainer, task, keeper = parts.trainer, parts.task, parts.keeper
    checkpoint = folder / "checkpoints" / "last.ckpt"
    try:
        with keeper.stop, disk_errors(folder), keeper.display.bar(task.config.epochs * len(parts.loader)):
            trainer.fit(task, train_dataloaders=parts.loader, ckpt_path=str(checkpoint) if resumed else None)
            keeper.catch_up(trainer, setup.device)
    except StopAsked:
        where = f"epoch {trainer.current_epoch + 1} of {task.config.epochs}, after step {trainer.global_step}"
        message = f"stopped in {where}; everything is kept. Go on with: starshift train --resume {folder}"
        raise TrainingInterrupted(message, folder, keeper.stop.received or 2) from None
    except SystemExit:  # Lightning's answer to a second Ctrl-C
        kept = f"; the last checkpoint is {checkpoint}" if checkpoint.is_file() else ""
        raise TrainingInterrupted(f"interrupted{kept}", folder, 2) from None
    except NotFiniteError as error:
        kept = f" The last good checkpoint is kept: {checkpoint}." if checkpoint.is_file() else ""
        advice = f"Try a lower learning rate (--lr, now {setup.lr:.3g}), --set clip_grad=1, more warm-up, or fp32."
        raise NotFiniteError(f"{error}.{kept} {advice}") from None
