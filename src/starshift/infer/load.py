# SPDX-License-Identifier: Apache-2.0
"""From whatever a user names (run, model folder, hub id, exported file) to a :class:`Predictor`."""

from __future__ import annotations

from pathlib import Path

import torch

from starshift.deploy import Predictor, TrainedOn, load_exported, run_config, target_of
from starshift.deploy._source import PREFIXES
from starshift.errors import StarshiftError, nearest


def load(source: str | Path | Predictor, *, device: str = "auto") -> Predictor:
    """Open what can answer: a run folder, model folder, ``local-dir:...``, ``hf-hub:...`` or exported file.

    Args:
        source: what to open; a :class:`Predictor` is returned as it is.
        device: ``auto`` (a GPU for PyTorch if there is one; the CPU for files), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        StarshiftError: nothing there, not a run or a known file, or the device does not exist.
    """
    if not isinstance(source, (str, Path)):
        return source
    text = str(source)
    path = Path(text)
    if path.exists() and target_of(path) is not None:  # a file, or a folder as some formats are
        return load_exported(path, device="cpu" if device == "auto" else choose_device(device))
    if not text.startswith(PREFIXES) and not path.exists():
        raise StarshiftError(_nothing_at(path))
    if path.is_file():
        return load_exported(path)  # raises, naming the suffixes it knows
    from starshift.infer.network import TorchPredictor  # late: it takes the models and timm, which a file does without
    from starshift.models import load_model

    folder = Path(text.removeprefix("local-dir:"))
    loaded = load_model(text)
    trained_on = TrainedOn.from_config(run_config(folder), loaded.config)
    return TorchPredictor(loaded, choose_device(device), trained_on)


def choose_device(device: str) -> str:
    """Turn ``auto`` into a device that is here, and refuse one that is not."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise StarshiftError(f"no device '{device}': it is auto, cpu, cuda, cuda:1 (and so on) or mps") from error
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise StarshiftError(f"no device '{device}' here: this machine has {torch.cuda.device_count()} CUDA devices")
    if kind.type == "mps" and not torch.backends.mps.is_available():
        raise StarshiftError("no device 'mps' here: it exists on Apple machines alone")
    return device


def _nothing_at(path: Path) -> str:
    neighbours = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(path.name, neighbours)
    return f"no run at {path}.{hint} A run is a folder that 'starshift train' wrote, or a file from 'starshift export'"
