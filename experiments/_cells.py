# SPDX-License-Identifier: Apache-2.0
"""The unit of an experiment: one cell of its table, measured once and written as one row."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starshift.training import Run, train

BUDGETS = ("smoke", "small", "gpu", "paper")
"""From the least to the most; an experiment has those that its ``COST`` names, all but ``gpu`` always."""
SMOKE: dict[str, Any] = {"epochs": 1, "img_size": 8, "batch_size": 64, "crop_padding": 0, "hflip": 0.0}
Measure = Callable[["Context"], Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One row to be.

    Attributes:
        key: the columns that name the row.
        measure: what fills the others.
        settings: all else that the numbers depend on; where they change, the row is measured anew.
    """

    key: Mapping[str, Any]
    measure: Measure
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.key.items())


@dataclass(frozen=True)
class Context:
    """Where a cell finds data and leaves networks.

    Attributes:
        data: what the user gave, or ``digits`` in a smoke run.
        budget: one of :data:`BUDGETS`.
        runs: folder of run folders, one for each network, named by model and settings: experiments share them.
    """

    data: str
    budget: str
    runs: Path

    def train(self, model: str, settings: Mapping[str, Any]) -> Run:
        """The finished run of these settings: found, gone on with, or trained now. Cells side by side that want the
        same one wait for the first."""
        from filelock import FileLock

        named = {"recipe": "quick", "workers": 0, **settings, "data": self.data, "model": model}
        named |= SMOKE if self.budget == "smoke" else {}
        digest = hashlib.sha256(as_text(named).encode()).hexdigest()[:12]
        recipe = named.pop("recipe")
        folder = self.runs / f"{model}-{digest}"
        self.runs.mkdir(parents=True, exist_ok=True)
        with FileLock(self.runs / f"{folder.name}.lock"):
            return self._train(folder, recipe, named)

    def _train(self, folder: Path, recipe: str, named: Mapping[str, Any]) -> Run:
        if (folder / "summary.json").is_file():
            return Run.open(folder)
        if (folder / "checkpoints" / "last.ckpt").is_file():
            return train(resume=folder, quiet=True)
        if folder.is_dir():  # cut off before its first checkpoint
            _remove(folder)
        return train(recipe=recipe, out=folder, quiet=True, **named)

    def batches(self, run: Run, part: str, images: int) -> list[tuple[Any, Any]]:
        """The first of each class of a run's ``train`` or ``val`` images, as its network is fed them in evaluation.

        Returns:
            (images, classes) of 500 each.
        """
        from starshift.data import eval_loader, open_data
        from starshift.data.images import Selection
        from starshift.models import load_model

        loaded = load_model(run.path)
        source = open_data(self.data, channels=loaded.preprocessing.channels)
        whole = source.train if part == "train" else source.val
        each, seen, kept = images // len(whole.classes), Counter[int](), []
        for i, target in enumerate(whole.targets):
            seen[target] += 1
            if seen[target] <= each:
                kept.append(i)
        loader = eval_loader(Selection(whole, kept), loaded.preprocessing, batch_size=500, workers=0)
        return [(batch.image, batch.target) for batch in loader]


def training(key: Mapping[str, Any], model: str, **settings: Any) -> Cell:
    """A cell that is a training: the accuracy of its last epoch, and what it cost."""
    return Cell(key, lambda context: trained_row(context.train(model, settings)), {"model": model, **settings})


def trained_row(run: Run) -> dict[str, Any]:
    """What a training's row says. ``top1`` is that of the last epoch, as nothing was chosen by it; ``best_top1`` of the
    best one, which is what some papers give."""
    with (run.path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    kept = (
        "best_top1",
        "best_epoch",
        "epochs",
        "params",
        "macs",
        "seconds",
        "images_per_s",
        "train_images",
        "val_images",
    )
    return {
        "top1": float(last["val_top1"]),
        "train_loss": float(last["train_loss"]),
        **{name: run.summary[name] for name in kept},
        "threads": run.summary["machine"]["threads"],
    }


def seeds(budget: str, repeats: int = 2) -> range:
    return range(1 if budget == "smoke" else repeats)


def as_text(settings: Mapping[str, Any]) -> str:
    """Settings as one column of a row."""
    return json.dumps(settings, sort_keys=True, default=list)


def missing(cells: Iterable[Cell], rows: list[dict[str, str]], budget: str) -> list[int]:
    """Numbers of the cells that have no row of the same key, budget and settings."""
    return [i for i, cell in enumerate(cells) if not any(is_row(row, cell, budget) for row in rows)]


def is_row(row: Mapping[str, str], cell: Cell, budget: str) -> bool:
    same = row["budget"] == budget and row["settings"] == as_text(cell.settings)
    return same and all(row.get(name) == str(value) for name, value in cell.key.items())


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)
