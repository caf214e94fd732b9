# SPDX-License-Identifier: Apache-2.0
"""What can be exported: a run or model folder, a hub id, or the bare name of an architecture.

The models are imported late: who opens an exported file does without them (and without timm, which takes seconds).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from starshift.deploy._predictor import TrainedOn
from starshift.errors import StarshiftError, nearest
from starshift.preprocessing import Preprocessing

PREFIXES = ("local-dir:", "hf-hub:")  # of names that are no paths
CHECK_IMAGES = 5


@dataclass(frozen=True)
class Source:
    """A network (eval mode, float32) and all that is known about it.

    Attributes:
        name: architecture, as ``create_model`` takes it.
        model, model_args, classes, preprocessing: as in ``starshift.models.LoadedModel``.
        trained_on: its data, as far as they are known.
        license: of the weights as far as its config states one.
        folder: the run or model folder, None for a bare architecture.
        trained: False where the weights are random.
    """

    name: str
    model: nn.Module
    model_args: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    license: str = ""
    folder: Path | None = None
    trained: bool = True


def open_source(
    source: str | Path | Source,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    img_size: int | None = None,
) -> Source:
    """Load a run folder, a model folder, ``local-dir:...``, ``hf-hub:...``, or make an architecture by its name. What
    is open already is returned as it is.

    An architecture has random weights unless ``checkpoint`` (a file or hub id) is given, or ``pretrained`` asks for the
    published ones. ``img_size`` (pixels) replaces the side of the input.

    Raises:
        StarshiftError: nothing of that name, no published weights, or weights given for something that has its own.
    """
    if isinstance(source, Source):
        return source
    if checkpoint is not None and pretrained:
        raise StarshiftError("give one of --checkpoint and --pretrained, not both")
    text = str(source)
    if Path(text).exists() or text.startswith(PREFIXES):
        if checkpoint is not None or pretrained:
            option = "--pretrained" if pretrained else "--checkpoint"
            raise StarshiftError(f"{text} has its own weights: {option} goes with the name of an architecture")
        found = _from_folder(text)
    else:
        found = _from_name(text, checkpoint, pretrained)
    if img_size is None:
        return found
    preprocessing = found.preprocessing.to_config() | {"input_size": [found.preprocessing.channels, img_size, img_size]}
    return Source(**{**found.__dict__, "preprocessing": Preprocessing.from_config(preprocessing)})


def _from_folder(text: str) -> Source:
    from starshift.models import load_model

    loaded = load_model(text)
    folder = Path(text.removeprefix("local-dir:"))
    is_folder = folder.is_dir()
    return Source(
        name=loaded.name,
        model=loaded.model.eval().float(),
        model_args=dict(loaded.model_args),
        classes=tuple(loaded.classes),
        preprocessing=loaded.preprocessing,
        trained_on=TrainedOn.from_config(run_config(folder), loaded.config),
        license=_license(loaded.config),
        folder=folder if is_folder else None,
    )


def _license(config: Mapping[str, Any]) -> str:
    """As a model's config.json states it: beside the architecture, or among timm's facts about the weights."""
    return str(config.get("license") or (config.get("pretrained_cfg") or {}).get("license") or "")


def _from_name(name: str, checkpoint: str | Path | None, pretrained: bool) -> Source:
    from starshift.models import create_model, is_model, list_models

    if not is_model(name):
        looks_like_path = "/" in name or "\\" in name
        hint = "" if looks_like_path else nearest(name, list_models())
        raise StarshiftError(
            f"no folder and no model '{name}'.{hint} Give a run folder (from 'starshift train')"
            " or one of 'starshift models'"
        )
    model = create_model(name, pretrained, checkpoint_path=checkpoint).eval()
    config: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", {}))
    preprocessing = Preprocessing.from_config(config)
    with torch.inference_mode():
        outputs = model(torch.zeros(1, preprocessing.channels, *preprocessing.size)).shape[1]
    trained = pretrained or checkpoint is not None
    names = class_names(outputs)
    return Source(name, model, {}, names, preprocessing, license=_license(config), trained=trained)


def class_names(outputs: int) -> tuple[str, ...]:
    """ImageNet's names for 1000 outputs, else the numbers."""
    if outputs != 1000:
        return tuple(map(str, range(outputs)))
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(i) for i in range(outputs))


def run_config(folder: Path) -> dict[str, Any]:
    """The ``config.yaml`` of a run folder, or of the run whose ``model/`` the folder is; else empty."""
    file = folder / "config.yaml"
    if not file.is_file() and folder.name == "model":
        file = folder.parent / "config.yaml"
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise StarshiftError(f"{file} cannot be read: {error}") from error
    return config if isinstance(config, dict) else {}


def noise_images(preprocessing: Preprocessing, count: int = CHECK_IMAGES) -> Tensor:
    """Seeded float32 (count, C, H, W) of uniform pixels, normalised as an image would be."""
    shape = (count, preprocessing.channels, *preprocessing.size)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (pixels - mean) / std
