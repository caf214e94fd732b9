# SPDX-License-Identifier: Apache-2.0
"""Models kept in folders of timm's Hugging Face layout: ``config.json`` and ``model.safetensors``.

timm alone loads the folder of a network that it has too (``timm.create_model("local-dir:<folder>",
pretrained=True)``); the rest of ours it loads once ``starshift.models`` is imported. A StarNet with options that
timm's does not know is saved under the architecture ``starshift_<name>``, which timm alone refuses, so that it never
builds another network from it.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from timm.data import ImageNetInfo
from torch import nn

import starshift
from starshift.errors import StarshiftError
from starshift.models._build import create_plain
from starshift.models._registry import Variant, get_variant
from starshift.models._weights import load_weights
from starshift.preprocessing import Preprocessing

_SECTION = "starshift"


@dataclass(frozen=True)
class LoadedModel:
    """A model from a folder or the Hub, in eval mode, with what is needed to feed it and to name its answers."""

    model: nn.Module
    name: str
    model_args: dict[str, Any]
    classes: list[str]
    preprocessing: Preprocessing
    config: dict[str, Any]


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    name: str,
    model_args: Mapping[str, Any],
    classes: Sequence[str],
    preprocessing: Preprocessing,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``model`` to ``folder``; each file appears whole or not at all.

    Args:
        name: the model's name, as for :func:`create_model`.
        model_args: the keywords it was made with (``num_classes`` and ``in_chans`` are taken from the model).
        classes: label names, one for each output.
        preprocessing: how its images are made.
        extra: further facts for ``config.json`` under ``starshift``, such as the accuracy.

    Returns:
        The folder.

    Raises:
        StarshiftError: classes or channels that do not fit the model, arguments that JSON cannot hold, or a folder that
            cannot be written.
    """
    folder = Path(folder)
    config = _config(model, name, dict(model_args), list(classes), preprocessing, dict(extra or {}))
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    try:
        text = json.dumps(config, indent=2)
    except TypeError as error:
        raise StarshiftError(f"cannot save {name}: {error}; model_args and extra must be plain values") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _Whole(folder / "model.safetensors") as path:
            safetensors.torch.save_file(state, path, metadata={"format": "pt"})
        with _Whole(folder / "config.json") as path:
            path.write_text(text, encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise StarshiftError(f"cannot write the model to {folder}: {error}") from error
    return folder


def load_model(path: str | Path) -> LoadedModel:
    """Load a model with its classes and preprocessing.

    Args:
        path: a run folder (its ``model/`` is taken), a model folder (ours or timm's), ``local-dir:<folder>``, or
            ``hf-hub:<repository>``.

    Raises:
        StarshiftError: no model there, an unknown architecture, or weights that do not fit.
    """
    source, config, name, args = _read(path)
    model = create_plain(name, pretrained=False, **args)
    load_weights(model, source)
    data = config.get("pretrained_cfg", config)
    size = data.get("input_size", (3, 224, 224))[1:]
    preprocessing = Preprocessing.from_config({**data, "input_size": (args["in_chans"], *size)})
    variant = get_variant(name)
    public = variant.name if variant else name
    return LoadedModel(model.eval(), public, args, _class_names(source, config, data, args), preprocessing, config)


def create_from(path: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """The network that a folder or a Hub repository describes, with other keywords if given; ``pretrained`` loads it
    too.

    Raises:
        StarshiftError: as :func:`load_model`. A classifier of another size is left fresh.
    """
    source, _, name, args = _read(path)
    model = create_plain(name, pretrained=False, **{**args, **kwargs})
    if pretrained:
        load_weights(model, source, new_head="num_classes" in kwargs)
    return model


def _read(path: str | Path) -> tuple[str | Path, dict[str, Any], str, dict[str, Any]]:
    """Where the weights are, the configuration, and the name and keywords that make the model."""
    source: str | Path = str(path)
    if str(path).startswith("hf-hub:"):
        config = _hub_config(str(path))
    else:
        source = _model_folder(Path(str(path).removeprefix("local-dir:")))
        config = _read_config(source / "config.json")
    section = config.get(_SECTION) or {}
    data = config.get("pretrained_cfg", config)
    name = section.get("name") or config.get("architecture")
    if not name:
        raise StarshiftError(f"{source}/config.json names no architecture")
    args = dict(section.get("model_args") or config.get("model_args") or {})
    args["num_classes"] = config.get("num_classes", data.get("num_classes", 1000))
    args.setdefault("in_chans", data.get("input_size", (3,))[0])
    return source, config, name, args


def _class_names(
    source: str | Path, config: Mapping[str, Any], data: Mapping[str, Any], args: Mapping[str, Any]
) -> list[str]:
    """As configured; ImageNet's identifiers for timm's own repositories of 1000 classes; else numbers."""
    names = config.get("label_names") or data.get("label_names")
    if isinstance(names, Mapping):
        names = names.values()
    if not names and str(source).startswith("hf-hub:timm/") and args["num_classes"] == 1000:
        names = ImageNetInfo("imagenet-1k").label_names()
    return [str(name) for name in names or range(args["num_classes"])]


def architecture(name: str, model_args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments to write for timm.

    A network that timm has too keeps timm's name if every option that matters is one that timm understands; otherwise
    it gets a name of ours. Options at their default, and those that only concern initialisation, don't matter.
    """
    variant = get_variant(name)
    if variant is None or variant.timm_args is None:
        return (variant.name if variant else name), dict(model_args)
    changed = {key for key, value in model_args.items() if not _is_default(variant, key, value)}
    if changed - variant.cls.initial_only <= variant.timm_args:
        return variant.name, {key: model_args[key] for key in model_args if key in variant.timm_args}
    return variant.timm_name, dict(model_args)


def _is_default(variant: Variant, key: str, value: Any) -> bool:
    default = variant.args.get(key, inspect.signature(variant.cls).parameters[key].default)
    return _plain(value) == _plain(default)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _config(
    model: nn.Module,
    name: str,
    model_args: dict[str, Any],
    classes: list[str],
    preprocessing: Preprocessing,
    extra: dict[str, Any],
) -> dict[str, Any]:
    outputs, channels = getattr(model, "num_classes", len(classes)), getattr(model, "in_chans", preprocessing.channels)
    if outputs != len(classes):
        raise StarshiftError(f"{name} has {outputs} outputs, but {len(classes)} classes were given")
    if channels != preprocessing.channels:
        raise StarshiftError(f"{name} takes {channels} channels, the preprocessing makes {preprocessing.channels}")
    model_args = {k: v for k, v in model_args.items() if k not in ("num_classes", "in_chans") and v is not None}
    written_name, written_args = architecture(name, model_args)
    own = dict(getattr(model, "pretrained_cfg", None) or {})
    pretrained = {
        **{key: own[key] for key in ("first_conv", "classifier", "license", "paper_name", "paper_ids") if key in own},
        **preprocessing.to_config(),
        "num_classes": outputs,
        "crop_mode": "center",
        "fixed_input_size": bool(own.get("fixed_input_size", False)),
        "pool_size": None,
    }
    variant = get_variant(name)
    return {
        "architecture": written_name,
        "num_classes": outputs,
        "num_features": getattr(model, "num_features", None),
        "label_names": classes,
        "model_args": {**written_args, "in_chans": channels},
        "pretrained_cfg": pretrained,
        _SECTION: {
            **extra,
            "version": starshift.__version__,
            "name": variant.name if variant else name,
            "model_args": model_args,
        },
    }


def _model_folder(path: Path) -> Path:
    if not path.exists():
        raise StarshiftError(f"no model at {path}: give a run folder, a model folder, or hf-hub:<owner>/<name>")
    for folder in (path / "model", path):
        if (folder / "config.json").is_file():
            return folder
    raise StarshiftError(
        f"no model in {path}: a run folder holds model/config.json (written after the first epoch), "
        "a model folder config.json"
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StarshiftError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise StarshiftError(f"{path} is not a model's configuration")
    return config


def _hub_config(name: str) -> dict[str, Any]:
    from timm.models import load_model_config_from_hf

    try:
        pretrained, architecture_name, args = load_model_config_from_hf(name.removeprefix("hf-hub:"))
    except Exception as error:  # the Hub's client has many ways to fail: offline, unknown, forbidden
        raise StarshiftError(f"cannot load {name}: {type(error).__name__}: {error}") from error
    return {
        "architecture": architecture_name,
        "num_classes": pretrained.get("num_classes", 1000),
        "label_names": pretrained.get("label_names"),
        "model_args": args or {},
        "pretrained_cfg": pretrained,
    }


class _Whole:
    """A path beside ``target`` to write to; on success it takes the target's place, otherwise it is removed."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.partial = target.with_name(f".{target.name}.partial")

    def __enter__(self) -> Path:
        return self.partial

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            os.replace(self.partial, self.target)
        else:
            self.partial.unlink(missing_ok=True)
