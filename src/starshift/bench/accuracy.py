# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a finished run, and of the files exported from it, as rows with all that the numbers depend on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from starshift.bench.rows import provenance
from starshift.deploy import FilePredictor, load_exported
from starshift.errors import StarshiftError
from starshift.infer import evaluate

KEPT = ("best_epoch", "epochs", "images_per_s", "params", "macs")  # of the run's summary


def bench_accuracy(
    run: str | Path,
    data: str | Path,
    *,
    files: list[Path] | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Evaluate a run and files exported from it on the same labelled images; yields a row for each.

    Args:
        run: a run folder.
        data: as :func:`starshift.evaluate` takes it.
        files: exported files; default: every ``*.onnx`` in the run folder.
        on_progress: called with images done and images in all.

    Raises:
        StarshiftError: ``run`` is no finished run folder; or what evaluate raises.
    """
    run = Path(run)
    summary_file, config_file = run / "summary.json", run / "config.yaml"
    if not (summary_file.is_file() and config_file.is_file()):
        raise StarshiftError(f"{run} is not a finished run folder: it has no summary.json and config.yaml")
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    settings = _settings(config_file)
    for file in (None, *(sorted(run.glob("*.onnx")) if files is None else files)):
        exported = None if file is None else load_exported(file)
        result = evaluate(run if exported is None else exported, data, on_progress=on_progress)
        yield {
            "model": settings["model"],
            "evaluated": _what(exported),
            "n": result.n,
            "top1": round(result.top1, 3),
            "top5": round(result.top5, 3),
            "loss": round(result.loss, 5),
            "skipped": len(result.skipped),
            "train_seconds": round(summary["seconds"], 1),
            **{name: summary[name] for name in KEPT if name in summary},
            "settings": json.dumps(settings, sort_keys=True),
            **provenance(),
        }


def _what(exported: FilePredictor | None) -> str:
    """``PyTorch``, or of a file ``ONNX``, ``ONNX int8`` and so on."""
    if exported is None:
        return "PyTorch"
    precision, kind = exported.metadata.precision, exported.path.suffix.lstrip(".").upper()
    return kind if precision == "fp32" else f"{kind} {precision}"


def _settings(config_file: Path) -> dict[str, Any]:
    """The run's settings without where its data lay."""
    import yaml

    settings = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    return {k: v for k, v in settings.items() if k not in ("data", "data_dir")}
