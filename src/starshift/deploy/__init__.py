# SPDX-License-Identifier: Apache-2.0
"""Networks as files for other runtimes. A target is one file of this folder (``onnx.py``) behind one protocol."""

from __future__ import annotations

from pathlib import Path

from starshift.deploy._export import Exported, export, export_checked
from starshift.deploy._file import FilePredictor
from starshift.deploy._metadata import Metadata
from starshift.deploy._predictor import Predictor, TrainedOn
from starshift.deploy._source import run_config
from starshift.deploy._target import Target, get_target, relative_error, require, target_of, targets
from starshift.errors import StarshiftError

__all__ = [
    "Exported",
    "FilePredictor",
    "Metadata",
    "Predictor",
    "Target",
    "TrainedOn",
    "export",
    "export_checked",
    "get_target",
    "load_exported",
    "relative_error",
    "run_config",
    "target_of",
    "targets",
]


def load_exported(path: str | Path, *, device: str = "cpu") -> FilePredictor:
    """Open a file that :func:`export` wrote, whatever its format (told by its suffix).

    Raises:
        StarshiftError: unknown suffix, a package missing, not such a file, or one without labels and preprocessing.
    """
    target = target_of(Path(path))
    if target is None:
        known = ", ".join(t.suffix for t in targets().values())
        raise StarshiftError(f"{path} is no exported file that is known here; their names end in {known}")
    require(target, to_load=True)
    return target.load(Path(path), device=device)
