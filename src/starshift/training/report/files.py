# SPDX-License-Identifier: Apache-2.0
"""Reads a run folder for the report: what is absent is empty, and what is broken is said."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from starshift.errors import StarshiftError


@dataclass(frozen=True)
class Outcome:
    """One validation image: target and predicted as class indices (the file has names), the latter's probability."""

    index: int
    name: str
    target: int
    predicted: int
    probability: float
    loss: float


@dataclass(frozen=True)
class RunFiles:
    """The tables of a run folder, parsed.

    Attributes:
        path: the folder.
        summary: of summary.json.
        config: of config.yaml.
        metrics: a row an epoch; numbers are NaN where a cell is empty.
        outcomes: of validation.csv.
        skipped: (name, reason).
    """

    path: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    metrics: list[dict[str, float]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return [str(c) for c in self.summary.get("classes") or []]


def read_run(run: Path) -> RunFiles:
    """Parse the run's files; of these only summary.json has to be there.

    Raises:
        StarshiftError: no summary.json, or a file that cannot be parsed.
    """
    summary_file = run / "summary.json"
    if not summary_file.is_file():
        raise StarshiftError(f"{run} has no summary.json: it is not a run, or its training has not ended")
    try:
        summary = json.loads(summary_file.read_text(encoding="utf-8"))
        config = yaml.safe_load(_text(run / "config.yaml")) or {}
        number = {str(c): i for i, c in enumerate(summary.get("classes") or [])}
        return RunFiles(
            path=run,
            summary=summary,
            config=config,
            metrics=[{k: _number(v) for k, v in row.items() if k} for row in _rows(run / "metrics.csv")],
            outcomes=[_outcome(row, number) for row in _rows(run / "validation.csv")],
            skipped=[(row.get("name", ""), row.get("reason", "")) for row in _rows(run / "skipped.csv")],
        )
    except (ValueError, KeyError, IndexError, yaml.YAMLError) as error:
        raise StarshiftError(f"a file of the run {run} cannot be read: {error!r}") from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_text(path), newline="")))


def _number(cell: str | None) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        return math.nan


def _outcome(row: dict[str, str], number: dict[str, int]) -> Outcome:
    return Outcome(
        index=int(row["index"]),
        name=row["name"],
        target=number[row["target"]],
        predicted=number[row["predicted"]],
        probability=_number(row["probability"]),
        loss=_number(row["loss"]),
    )
