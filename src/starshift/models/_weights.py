# SPDX-License-Identifier: Apache-2.0
"""Weights of many origins read into a model: what a file holds is found, what does not fit is listed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.models._base import ImageModel
from starshift.models._unpickle import Inert, load_inert, module_state_dict

_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "net")
_PREFIXES = ("ema.module.", "module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
"""What wrappers put before the names; a run's checkpoint holds averaged weights under the first, as its model/ does."""
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_SHOWN = 5


class WeightsError(StarshiftError):
    """Weights that cannot be read, or do not fit the model."""


def load_weights(
    model: nn.Module, path_or_hub_id: str | Path, *, strict: bool = True, new_head: bool = False
) -> tuple[str, ...]:
    """Read weights into ``model``, in place.

    Understood are files by safetensors or ``torch.save`` (state dicts, alone or in a checkpoint under ``state_dict``,
    ``model``, ``net`` and the like; timm's, Lightning's, the official StarNet's; whole pickled modules such as the
    official ShiftResNet ``.t7`` files, whose channels are put into the order of the model's shifts), our run and
    model folders, and ``local-dir:<folder>`` or ``hf-hub:<repository>``. No code of a file is run.

    Args:
        model: one of ours or of timm's.
        path_or_hub_id: the weights.
        strict: False lets names be missing in or unknown to the model; shapes must agree all the same.
        new_head: keep the model's fresh classifier where the file's has another shape (fine-tuning).

    Returns:
        Names of the model's parameters and buffers that were not in the file and keep their values.

    Raises:
        WeightsError: the file cannot be read, or does not fit; the message lists what is missing, unexpected or of
            another shape.
    """
    state = adapt_names(read_state_dict(path_or_hub_id), model)
    own = model.state_dict()
    shapes = [key for key in own if key in state and state[key].shape != own[key].shape]
    head = classifier_keys(model)
    if new_head:
        theirs = [key for key in state if key.startswith(_classifiers(model))]
        if any(key not in own or key in shapes for key in theirs):
            for key in theirs:
                del state[key]
        shapes = [key for key in shapes if key in state]
    optional = {key for key in own if key.endswith("num_batches_tracked")} | (head if new_head else set())
    missing = [key for key in own if key not in state and key not in optional]
    unexpected = [key for key in state if key not in own]
    nothing = len(missing) == len(set(own) - optional)
    if shapes or nothing or (strict and (missing or unexpected)):
        raise WeightsError(_misfit(path_or_hub_id, model, state, missing, unexpected, shapes))
    kept = tuple(key for key in own if key not in state)
    model.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)
    return kept


def read_state_dict(path_or_hub_id: str | Path) -> dict[str, Tensor]:
    """The named tensors that a file, a folder or a Hub repository holds, names as they stand there.

    Raises:
        WeightsError: nothing there, not readable, or no named tensors in it.
    """
    text = str(path_or_hub_id)
    if text.startswith("hf-hub:"):
        return _read_hub(text)
    path = Path(text.removeprefix("local-dir:"))
    if path.is_dir():
        path = _weights_file(path)
    elif not path.exists():
        raise WeightsError(f"no weights at {path}: give a file, a folder, or hf-hub:<owner>/<name>")
    found = _named_tensors(_read_file(path))
    if not found:
        raise WeightsError(f"{path} holds no named tensors")
    return found


def adapt_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Wrappers' prefixes taken off (``module.``, ``model.``, ...) and published names turned into the model's."""
    own = set(model.state_dict())
    best = _convert(dict(state), model)
    while not own & set(best):
        prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        best = _convert(dict(state), model)
    return best


def classifier_keys(model: nn.Module) -> set[str]:
    """Names of the classifier's parameters."""
    return {key for key in model.state_dict() if key.startswith(_classifiers(model))}


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """What the names of a classifier's parameters begin with, whether the model has one or not."""
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or "head"
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _convert(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return model.convert_state_dict(state, model) if isinstance(model, ImageModel) else state


def _read_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, device="cpu")
        return torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is damaged or no safetensors file ({error})") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError):
        try:
            return load_inert(path)
        except StarshiftError as error:
            raise WeightsError(str(error)) from error


def _read_hub(name: str) -> dict[str, Tensor]:
    from timm.models import load_state_dict_from_hf

    try:
        return _named_tensors(load_state_dict_from_hf(name.removeprefix("hf-hub:"), weights_only=True))
    except Exception as error:  # the Hub's client has many ways to fail: offline, unknown, forbidden, half a download
        raise WeightsError(f"cannot load {name}: {type(error).__name__}: {error}") from error


def _weights_file(folder: Path) -> Path:
    for place in (folder / "model", folder):
        for name in _FOLDER_FILES:
            if (place / name).is_file():
                return place / name
    raise WeightsError(f"no weights in {folder}: a model folder holds model.safetensors, a run folder holds model/")


def _named_tensors(value: Any) -> dict[str, Tensor]:
    if isinstance(value, Inert):
        return module_state_dict(value)
    if not isinstance(value, Mapping):
        return {}
    for key in _CONTAINERS:
        if isinstance(value.get(key), (Mapping, Inert)):
            found = _named_tensors(value[key])
            if found:
                return found
    return {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}


def _misfit(
    path: str | Path,
    model: nn.Module,
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
) -> str:
    own = model.state_dict()
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_shorten(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({_shorten(unexpected)})")
    if shapes:
        lines = [f"{k}: file {tuple(state[k].shape)}, model {tuple(own[k].shape)}" for k in shapes]
        parts.append(f"{len(shapes)} of another shape ({_shorten(lines)})")
    message = f"{path} does not fit this {type(model).__name__}: {', '.join(parts)}."
    if shapes and not missing and not unexpected and set(shapes) <= classifier_keys(model):
        message += " Only the classifier differs: load with new_head=True to keep the model's own."
    return message


def _shorten(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f", and {rest} more" if rest > 0 else "")
