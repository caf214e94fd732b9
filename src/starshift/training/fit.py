# SPDX-License-Identifier: Apache-2.0
"""Training a network on a data set, from the settings to the finished run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from starshift.data import Augment, DataSource, eval_loader, open_data, train_loader
from starshift.errors import StarshiftError
from starshift.models import count_macs, create_model, load_weights
from starshift.preprocessing import Preprocessing
from starshift.training.config import TrainConfig, override, resolve
from starshift.training.display import Display, quiet_libraries
from starshift.training.epochs import EpochKeeper, PositionedLoader
from starshift.training.finish import write_results
from starshift.training.folder import CheckpointFiles, Run, disk_errors, new_run_folder, run_to_resume, write_bytes
from starshift.training.interrupts import StopAsked, TrainingInterrupted
from starshift.training.machine import choose_devices, choose_workers, device_name, keep_freed_memory
from starshift.training.optim import learning_rate
from starshift.training.task import ClassificationTask, NotFiniteError

RESUMABLE = ("epochs", "devices", "workers", "data_dir", "data")  # what a resumed run may change
SMALLEST = 32  # pixels: smaller images are enlarged to this, unless img_size is given
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
RUN_VARIABLE = "STARSHIFT_RUN"  # tells the processes of one distributed run their folder


def train(
    data: str | None = None,
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
        model: a name of ``list_models()``, or of timm.
        recipe: a recipe's name or a YAML file; default ``quick``, or ``finetune`` when ``checkpoint`` is given.
        out: the run folder, new or empty; default ``runs/<model>-<data>-<n>``.
        resume: a run folder to go on with; its settings are kept (``epochs``, ``devices``, ``workers`` may change).
        quiet, stream: print nothing, or to another stream.
        settings: anything of :class:`~starshift.training.config.TrainConfig`, e.g. ``epochs=10, lr=0.05``.

    Returns:
        The finished run.

    Raises:
        StarshiftError: a mistake in settings, data or folders, or a loss that is not finite (the last good checkpoint stays).
        TrainingInterrupted: Ctrl-C or SIGTERM came; the run can be resumed.
    """
    named = {"data": data, "model": model}
    settings = {**settings, **{name: value for name, value in named.items() if value is not None}}
    display = Display(stream, quiet)
    keep_freed_memory()
    if resume is not None:
        if recipe is not None or out is not None:
            raise StarshiftError("a resumed run keeps its folder and settings: --resume goes without --recipe, --config and --out")
        folder = run_to_resume(resume)
        config = _resumed_config(folder, settings)
        return _fit(config, folder, display, resumed=True)
    config = resolve(recipe or ("finetune" if settings.get("checkpoint") else "quick"), settings)
    if not config.data or not config.model:
        missing = "the data (a folder of images, or 'digits')" if not config.data else "the model (--model; see 'starshift models')"
        raise StarshiftError(f"name {missing}")
    return _fit(config, _Later(out), display, resumed=False)


class _Later:
    """A run folder still to be made: only once data and model are known to be right."""

    def __init__(self, out: str | Path | None) -> None:
        self.out = out

    def make(self, config: TrainConfig) -> Path:
        if RUN_VARIABLE in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
            return Path(os.environ[RUN_VARIABLE])
        folder = new_run_folder(self.out, config.model, config.data)
        os.environ[RUN_VARIABLE] = str(folder.resolve())
        return folder


def _resumed_config(folder: Path, settings: Mapping[str, Any]) -> TrainConfig:
    config = resolve(folder / "config.yaml")
    changed = override(config, **settings)
    for f in fields(TrainConfig):
        if getattr(config, f.name) != getattr(changed, f.name) and f.name not in RESUMABLE:
            raise StarshiftError(f"a resumed run keeps its settings; {f.name} was {getattr(config, f.name)!r} (only {', '.join(RESUMABLE)} may change)")
    return changed


def _fit(config: TrainConfig, place: Path | _Later, display: Display, resumed: bool) -> Run:
    started = time.monotonic()
    accelerator, count = choose_devices(config.devices)
    if config.precision == "fp16" and accelerator == "cpu":
        raise StarshiftError("precision fp16 needs a GPU; on a CPU take bf16 or fp32")
    channels = int(config.model_args.get("in_chans", 3))
    source = open_data(
        config.data, val_fraction=config.val_fraction, seed=config.seed, channels=channels, data_dir=config.data_dir, download=config.download
    )
    network = _make_model(config, len(source.classes))
    preprocessing = choose_preprocessing(config, network, source, channels)
    config = _fitting_batch(config, len(source.train), count, display)
    folder = place if isinstance(place, Path) else place.make(config)
    with disk_errors(folder):
        write_bytes(folder / "config.yaml", config.to_yaml().encode())
    _announce(config, network, preprocessing, source, device_name(accelerator, count), folder, display)

    with quiet_libraries():
        trainer, task, keeper = _assemble(config, network, preprocessing, source, folder, display, accelerator, count)
        _run(trainer, task, keeper, folder, resumed)
        if not trainer.is_global_zero:
            return Run(folder, {})
        display.say("writing the model, its validation and the report")
        with disk_errors(folder):
            return write_results(folder, config, task, keeper, source, preprocessing, seconds=time.monotonic() - started, display=display)


def _make_model(config: TrainConfig, classes: int) -> nn.Module:
    torch.manual_seed(config.seed)
    rates = {"drop_rate": config.drop, "drop_path_rate": config.drop_path}
    arguments = {**{k: v for k, v in rates.items() if v is not None}, **config.model_args}
    network = create_model(config.model, num_classes=classes, **arguments)
    if config.checkpoint is not None:
        load_weights(network, config.checkpoint, new_head=True)
    return network


def choose_preprocessing(config: TrainConfig, network: nn.Module, source: DataSource, channels: int) -> Preprocessing:
    """What the settings say; then, for the size, the data's native size (at least 32 pixels) where it is below the model's;
    then what the model was made for."""
    made_for = dict(getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {})
    height, width = tuple(made_for.get("input_size", (3, 224, 224)))[1:]
    chosen = {"mean": made_for.get("mean"), "std": made_for.get("std"), "interpolation": made_for.get("interpolation"), "crop_pct": made_for.get("crop_pct")}
    native = source.native_size
    if config.img_size is not None:
        height = width = config.img_size
    elif native is not None and max(native) < height:
        height = width = max(SMALLEST, *native)
    if native is not None and max(native) <= height:
        chosen["crop_pct"] = 1.0  # no border to crop away: small images are used whole
    given = {name: getattr(config, name) for name in chosen}
    chosen = {name: value for name, value in {**chosen, **{k: v for k, v in given.items() if v is not None}}.items() if value is not None}
    return Preprocessing.from_config({**chosen, "input_size": (channels, height, width)})


def _fitting_batch(config: TrainConfig, images: int, count: int, display: Display) -> TrainConfig:
    """A batch no larger than the training images of one process, and even where mixup pairs them."""
    share = images // count
    if share < config.batch_size:
        size = share - share % 2 if config.mixup > 0 or config.cutmix > 0 else share
        if size < 1:
            raise StarshiftError(f"{images} training images are too few to train on")
        display.say(f"batch size {config.batch_size} -> {size}: there are only {images} training images")
        return override(config, batch_size=size)
    return config


def _announce(
    config: TrainConfig, network: nn.Module, preprocessing: Preprocessing, source: DataSource, device: str, folder: Path, display: Display
) -> None:
    parameters = sum(p.numel() for p in network.parameters())
    macs = count_macs(network, (preprocessing.channels, *preprocessing.size))
    size = f"{preprocessing.size[0]}x{preprocessing.size[1]}"
    display.say(f"model   {config.model}: {parameters:,} parameters, {macs / 1e6:.1f} M multiply-adds at {size} pixels")
    display.say(f"data    {source.name}: {len(source.classes)} classes, {len(source.train)} images to train on, {len(source.val)} to validate on")
    for note in source.notes:
        display.say(f"        {note}")
    recipe = f"recipe {config.recipe or 'none'}, {config.epochs} epochs, batch {config.batch_size}"
    display.say(f"run     {recipe}, {config.precision} on {device}, folder {folder}")


def _assemble(
    config: TrainConfig, network: nn.Module, preprocessing: Preprocessing, source: DataSource, folder: Path, display: Display, accelerator: str, count: int
) -> tuple[Trainer, ClassificationTask, EpochKeeper]:
    rank = int(os.environ.get("LOCAL_RANK", "0")) if count > 1 else 0
    workers = choose_workers(config.workers, accelerator, count, in_memory=source.train.load_small())
    augment = Augment(**{f.name: getattr(config, f.name) for f in fields(Augment) if hasattr(config, f.name)})
    sharding = {"workers": workers, "rank": rank, "world_size": count}
    training = train_loader(
        source.train, preprocessing, augment, batch_size=config.batch_size, seed=config.seed, aug_repeats=config.aug_repeats, **sharding
    )
    validation = eval_loader(source.val, preprocessing, batch_size=config.batch_size, **sharding)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    lr = learning_rate(config, config.batch_size * config.grad_accum_steps * count)
    task = ClassificationTask(network, config, classes=len(source.classes), lr=lr, batches=len(training))
    keeper = EpochKeeper(folder, validation, display, len(source.classes))
    trainer = Trainer(
        accelerator="gpu" if accelerator == "cuda" else accelerator,
        devices=count,
        strategy="ddp" if count > 1 else "auto",
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
    task.training_loader = PositionedLoader(training, lambda: (trainer.current_epoch, task.batches_done))
    return trainer, task, keeper


def _run(trainer: Trainer, task: ClassificationTask, keeper: EpochKeeper, folder: Path, resumed: bool) -> None:
    """Fit to the last epoch, or raise what a person can act on."""
    loader = task.training_loader
    checkpoint = folder / "checkpoints" / "last.ckpt"
    total = task.config.epochs * len(loader)
    try:
        with keeper.stop, disk_errors(folder), keeper.display.bar(total, 0):
            trainer.fit(task, train_dataloaders=loader, ckpt_path=str(checkpoint) if resumed else None)
            keeper.catch_up(trainer)
    except StopAsked:
        signum = keeper.stop.received or 2
        message = (
            f"stopped in epoch {trainer.current_epoch + 1} of {task.config.epochs}, after step {trainer.global_step} of"
            f" {task.total_updates}; everything is kept. Go on with: starshift train --resume {folder}"
        )
        raise TrainingInterrupted(message, folder, signum) from None
    except SystemExit:  # Lightning's answer to a second Ctrl-C
        kept = f"; the last checkpoint is {checkpoint}" if checkpoint.is_file() else ""
        raise TrainingInterrupted(f"interrupted{kept}", folder, 2) from None
    except NotFiniteError as error:
        kept = f" The last good checkpoint is kept: {checkpoint}." if checkpoint.is_file() else ""
        raise NotFiniteError(
            f"{error}.{kept} Try a lower learning rate (--lr, now {task.lr:.3g}), clip_grad=1, a longer warm-up,"
            " or --precision fp32 if it is lower"
        ) from None
