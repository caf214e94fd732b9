# SPDX-License-Identifier: Apache-2.0
"""From settings to the things they mean: data, network, preprocessing, device; what was left open is chosen here."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from timm.models import get_pretrained_cfg
from torch import nn

from starshift.acceleration import accelerate
from starshift.data import Augment, DataSource, Fingerprint, ImageLoader, eval_loader, open_data, train_loader
from starshift.errors import StarshiftError
from starshift.models import count_macs, create_model, load_model, load_weights, save_model
from starshift.preprocessing import Preprocessing
from starshift.training.config import TrainConfig, override
from starshift.training.display import Display
from starshift.training.machine import choose_devices, choose_workers, device_name, kernels_name, process_rank
from starshift.training.optim import check_optimizer, learning_rate, make_optimizer

SMALL = 64  # pixels: images this wide and high at most are small ones, for which there are models of their own
NEEDED = 32  # pixels that smaller images are enlarged to for models that do not say what they need


@dataclass(frozen=True)
class Setup:
    """A run ready to start.

    Attributes:
        config: the settings, with what was left open filled in.
        accelerator, processes: Lightning's ``accelerator``, and how many devices of it.
        training, validation: the loaders of this process.
        lr: learning rate at its peak.
        fingerprint: of the data.
    """

    config: TrainConfig
    source: DataSource
    network: nn.Module
    preprocessing: Preprocessing
    accelerator: str
    processes: int
    training: ImageLoader
    validation: ImageLoader
    lr: float
    fingerprint: Fingerprint

    @property
    def device(self) -> torch.device:
        return torch.device(self.accelerator)

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write ``network`` to ``folder/model``, with all that is needed to use it."""
        save_model(
            network,
            folder / "model",
            name=self.config.model,
            model_args=dict(self.config.model_args),
            classes=list(self.source.classes),
            preprocessing=self.preprocessing,
            extra={"data": self.fingerprint.to_dict()},
        )

    def announce(self, display: Display) -> None:
        """Say what is about to be trained, on what, where and how."""
        config, source = self.config, self.source
        parameters = sum(p.numel() for p in self.network.parameters())
        macs = count_macs(self.network, self.preprocessing.size)
        size = "x".join(str(side) for side in self.preprocessing.size)
        images = f"{len(source.train)} images to train on, {len(source.val)} to validate on"
        recipe = (
            f"recipe {config.recipe or 'none'}, {config.epochs} epochs, batch {config.batch_size}, lr {self.lr:.3g}"
        )
        where = device_name(self.accelerator, self.processes)
        display.say(
            f"model   {config.model}: {parameters:,} parameters, {macs / 1e6:,.1f} M multiply-adds at {size} pixels"
        )
        display.say(f"data    {source.name}: {len(source.classes)} classes, {images}")
        for note in source.notes:
            display.say(f"        {note}")
        display.say(f"how     {recipe}, {config.precision} on {where}")
        display.say(f"kernels {kernels_name(self.accelerator, config.kernels)}")


def set_up(config: TrainConfig, display: Display, began: Fingerprint | None = None) -> Setup:
    """Open the data and build the network; a resumed run's weights are in its checkpoint, so none are read here.

    A resumed run says which data it ``began`` with, and they are divided as those.

    Raises:
        StarshiftError: whatever does not fit: data, model, weights, device, precision, image size.
    """
    accelerator, processes = choose_devices(config.devices)
    if config.precision == "fp16" and accelerator == "cpu":
        raise StarshiftError("precision fp16 needs a GPU; on a CPU take bf16 or fp32")
    check_optimizer(config)
    config = _model_of_checkpoint(config)
    channels = int(config.model_args.get("in_chans", 3))
    source = open_data(
        config.data,
        val_fraction=config.val_fraction,
        seed=config.seed,
        channels=channels,
        data_dir=config.data_dir,
        download=config.download,
        boundaries=began.boundaries if began else None,
    )
    fingerprint = Fingerprint.of(source, config.seed)
    if began is not None and (note := began.changes(fingerprint, source)):
        source = replace(source, notes=(*source.notes, note))
    if source.root is not None:  # in full, to be found from other folders too
        config = override(config, data=str(source.root))
    if config.data_dir is not None or config.data.startswith("wds/"):  # which lie here, where nothing is said
        config = override(config, data_dir=str(Path(config.data_dir or ".").expanduser().resolve()))
    config = _fitting_batch(config, len(source.train) // processes, display)
    if not config.model:
        config = override(config, model=default_model(source))
    config = _made_for_size(config)
    network = make_network(config, len(source.classes), resumed=began is not None)
    preprocessing = choose_preprocessing(config, network, source.native_size, channels)
    if preprocessing.size[0] == preprocessing.size[1]:
        config = override(config, img_size=preprocessing.size[0])
    training, validation = make_loaders(config, source, preprocessing, accelerator, processes)
    lr = learning_rate(config, config.batch_size * config.grad_accum_steps * processes)
    make_optimizer(network, config, lr)  # the task makes its own; a mistake is told before there is a folder
    return Setup(
        config=config,
        source=source,
        network=network,
        preprocessing=preprocessing,
        accelerator=accelerator,
        processes=processes,
        training=training,
        validation=validation,
        lr=lr,
        fingerprint=fingerprint,
    )


def make_loaders(
    config: TrainConfig, source: DataSource, preprocessing: Preprocessing, accelerator: str, processes: int
) -> tuple[ImageLoader, ImageLoader]:
    """Training and validation batches for this one of ``processes`` processes."""
    augment = Augment(**{f.name: getattr(config, f.name) for f in fields(Augment)})
    shared = {
        "batch_size": config.batch_size,
        "workers": choose_workers(config.workers, accelerator, processes, in_memory=source.train.load_small()),
        "rank": process_rank() if processes > 1 else 0,
        "world_size": processes,
    }
    training = train_loader(
        source.train, preprocessing, augment, seed=config.seed, aug_repeats=config.aug_repeats, drop_last=True, **shared
    )
    return training, eval_loader(source.val, preprocessing, **shared)


def default_model(source: DataSource) -> str:
    """``shiftresnet20``, made for 32 pixels, for small images all of one size; else ``starnet_s050``."""
    small = source.native_size is not None and max(source.native_size) <= SMALL
    return "shiftresnet20" if small else "starnet_s050"


def make_network(config: TrainConfig, classes: int, resumed: bool = False) -> nn.Module:
    """The network with its first weights: published ones, from ``checkpoint``, or by chance from ``seed``."""
    torch.manual_seed(config.seed)
    rates = {"drop_rate": config.drop, "drop_path_rate": config.drop_path}
    arguments = {**{name: rate for name, rate in rates.items() if rate is not None}, **config.model_args}
    try:
        network = create_model(
            config.model, pretrained=config.pretrained and not resumed, num_classes=classes, **arguments
        )
    except (AssertionError, ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise StarshiftError(f"{config.model} cannot be made with {arguments}: {error}") from error
    if config.checkpoint is not None and not resumed:
        load_weights(network, config.checkpoint, new_head=True)
    if config.kernels:
        accelerate(network, channels_last=False)  # the task lays the weights out
    return network


def choose_preprocessing(
    config: TrainConfig, network: nn.Module, native: tuple[int, int] | None, channels: int
) -> Preprocessing:
    """What the settings say, and else what the model was made for.

    Where nothing is said of the size and all images have one below the model's, theirs is taken (enlarged to what the
    model needs), unless the model is made for one size. Images no larger than the input are used whole (crop_pct 1).
    """
    made_for = dict(getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {})
    _, height, width = made_for.get("input_size", (3, 224, 224))
    if config.img_size is not None:
        height = width = config.img_size
    elif made_for.get("fixed_input_size"):
        size = config.model_args.get("img_size", (height, width))
        height, width = (size, size) if isinstance(size, int) else size
    elif native is not None and max(native) < height:
        height = width = max(getattr(network, "min_size", NEEDED), *native)
    chosen = {name: made_for.get(name) for name in ("mean", "std", "interpolation", "crop_pct")}
    if native is not None and max(native) <= height:
        chosen["crop_pct"] = 1.0
    given = {name: getattr(config, name) for name in chosen if getattr(config, name) is not None}
    known = {name: value for name, value in {**chosen, **given}.items() if value is not None}
    return Preprocessing.from_config({**known, "input_size": (channels, height, width)})


def _made_for_size(config: TrainConfig) -> TrainConfig:
    """Where the model is one that is made for one size of images, ``img_size`` as its argument too."""
    try:
        known = get_pretrained_cfg(config.model)
    except RuntimeError as error:  # a tag that the model does not have
        raise StarshiftError(f"{config.model}: {error}") from error
    size = config.img_size
    if size is None or known is None or not known.fixed_input_size or tuple(known.input_size[1:]) == (size, size):
        return config
    return override(config, model_args={**config.model_args, "img_size": size})


def _model_of_checkpoint(config: TrainConfig) -> TrainConfig:
    """Where only a run or model folder is named, its model, the model's arguments and its preprocessing."""
    if config.model.startswith(("hf-hub:", "local-dir:")):
        raise StarshiftError(
            f"--model takes the name of a model; to start from the weights of {config.model}, give it as --checkpoint"
        )
    if config.model or config.checkpoint is None:
        return config
    try:
        loaded = load_model(config.checkpoint)
    except StarshiftError as error:
        raise StarshiftError(
            f"--checkpoint {config.checkpoint} does not tell its model: name it with --model ({error})"
        ) from error
    seen = loaded.preprocessing
    known = {
        "img_size": seen.size[0],
        "mean": seen.mean,
        "std": seen.std,
        "interpolation": seen.interpolation,
        "crop_pct": seen.crop_pct,
    }
    unsaid = {name: value for name, value in known.items() if getattr(config, name) is None}
    arguments = {name: value for name, value in loaded.model_args.items() if name != "num_classes"}
    return override(config, model=loaded.name, model_args={**arguments, **config.model_args}, **unsaid)


def _fitting_batch(config: TrainConfig, images: int, display: Display) -> TrainConfig:
    """A batch no larger than the training images of one process, and even where mixup pairs them."""
    if images >= config.batch_size:
        return config
    size = images - images % 2 if config.mixup > 0 or config.cutmix > 0 else images
    if size < 1:
        raise StarshiftError(f"{images} training image(s) for each process are too few to train on")
    display.say(f"batch size {config.batch_size} -> {size}: there are only {images} images to train on")
    return override(config, batch_size=size)
