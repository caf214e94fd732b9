# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a network, or of an exported file, on labelled images."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from starshift.data import Fingerprint, ImageSet, eval_loader, open_eval_data
from starshift.data.sources import is_named
from starshift.deploy import Predictor
from starshift.errors import StarshiftError
from starshift.infer.load import load
from starshift.machine import choose_decoders

Advance = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class ClassScore:
    """One class: how many images it has, how many were right, and what its images were most often taken for instead."""

    name: str
    n: int
    correct: int
    mistaken_for: str | None

    @property
    def top1(self) -> float | None:
        """Percent right; None for a class without images."""
        return 100 * self.correct / self.n if self.n else None


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` measured.

    Attributes:
        model, data: what was measured on what.
        n: images that counted; skipped ones did not.
        top1, top5: percent; top5 counts the five highest logits (all of them where there are fewer classes).
        loss: mean cross-entropy in nats.
        classes: a :class:`ClassScore` each, in the network's order.
        confusion: ``confusion[target][predicted]``, number of images.
        skipped: (name, reason) of the images that could not be read.
        seconds, images_per_s: of reading, preprocessing and inference together.
        held_out: of the data that the network was trained on, the part held out then was taken.
        note: what else is to be said of the images that were taken.
        trained: False for a file whose weights are random.
    """

    model: str
    data: str
    n: int
    top1: float
    top5: float
    loss: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    images_per_s: float
    held_out: bool = False
    note: str = ""
    trained: bool = True

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return {
            "model": self.model,
            "data": self.data,
            "n": self.n,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "seconds": self.seconds,
            "images_per_s": self.images_per_s,
            "held_out": self.held_out,
            "note": self.note,
            "trained": self.trained,
            "classes": [
                {"name": c.name, "n": c.n, "correct": c.correct, "top1": c.top1, "mistaken_for": c.mistaken_for}
                for c in self.classes
            ],
            "confusion": [list(row) for row in self.confusion],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
        }

    def write_json(self, file: TextIO) -> None:
        """One JSON object."""
        json.dump(self.to_dict(), file, indent=None)
        file.write("\n")

    def write_csv(self, file: TextIO) -> None:
        """A row a class and a last one, ``(all)``, for the whole: class, n, correct, top1, mistaken_for."""
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("class", "n", "correct", "top1", "mistaken_for"))
        for c in self.classes:
            rows.writerow((c.name, c.n, c.correct, "" if c.top1 is None else f"{c.top1:.4f}", c.mistaken_for or ""))
        rows.writerow(("(all)", self.n, sum(c.correct for c in self.classes), f"{self.top1:.4f}", ""))

    def write(self, path: str | Path) -> None:
        """Write ``.csv`` or ``.json``, by the file's suffix."""
        path = Path(path)
        check_writable(path)
        writers = {".csv": self.write_csv, ".json": self.write_json}
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writers[path.suffix](file)


def check_writable(path: Path) -> None:
    """
    Raises:
        StarshiftError: results cannot be written to this file.
    """
    if path.suffix not in (".csv", ".json"):
        raise StarshiftError(f"{path}: results are written as .csv or .json")
    if path.is_dir() or not path.parent.is_dir():
        raise StarshiftError(f"{path}: {'is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")


@dataclass
class _Tally:
    """Running sums over batches."""

    confusion: Tensor  # int64 (classes, classes): target, predicted
    n: int = 0
    in_top5: int = 0
    loss: float = 0.0

    def add(self, logits: Tensor, target: Tensor) -> None:
        classes = len(self.confusion)
        self.n += len(target)
        self.loss += torch.nn.functional.cross_entropy(logits.double(), target, reduction="sum").item()
        ranked = logits.topk(min(5, classes), dim=1).indices
        self.in_top5 += int((ranked == target[:, None]).any(1).sum())
        self.confusion += torch.bincount(target * classes + ranked[:, 0], minlength=classes**2).view(classes, classes)


def evaluate(
    model: str | Path | Predictor,
    data: str | Path | ImageSet,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    on_progress: Advance | None = None,
) -> Evaluation:
    """Measure accuracy on labelled images.

    Args:
        model: run or model folder, hub id, exported file, or a :class:`Predictor`.
        data: a folder with one folder a class (or with ``val/`` or ``test/`` in it), a data set's name, or an
            ``ImageSet`` whose targets index the network's classes. Classes are matched by name. Of the very data the
            network was trained on, wherever they lie now, the part held out then is taken.
        batch_size: images a batch.
        workers: processes that decode; default: a core is left to the network, at most 8, and none for images kept in
            memory.
        device: see :func:`starshift.infer.load`.
        on_progress: called as ``on_progress(done, total)`` after every batch.

    Raises:
        StarshiftError: the model or data cannot be opened, their classes differ, or no image could be read.
    """
    predictor = load(model, device=device)
    images, held_out, note = _open(predictor, str(data)) if isinstance(data, (str, Path)) else (data, False, "")
    if workers is None:  # a few images are read sooner than a process is started
        workers = 0 if len(images) <= 4 * batch_size or images.load_small() else choose_decoders()
    loader = eval_loader(images, predictor.preprocessing, batch_size=batch_size, workers=workers)
    tally = _Tally(torch.zeros(len(predictor.classes), len(predictor.classes), dtype=torch.int64))
    skipped: list[tuple[str, str]] = []
    start = time.perf_counter()
    for batch in loader:
        skipped += batch.bad
        if len(batch.target):
            tally.add(predictor.logits(batch.image), batch.target)
        if on_progress:
            on_progress(tally.n + len(skipped), len(images))
    seconds = time.perf_counter() - start
    if not tally.n:
        first = f"; the first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise StarshiftError(f"none of the {len(images)} images in {data} could be read{first}")
    return Evaluation(
        model=str(model) if isinstance(model, (str, Path)) else predictor.name,
        data=str(data) if isinstance(data, (str, Path)) else type(data).__name__,
        n=tally.n,
        top1=100 * tally.confusion.diag().sum().item() / tally.n,
        top5=100 * tally.in_top5 / tally.n,
        loss=tally.loss / tally.n,
        classes=_class_scores(predictor.classes, tally.confusion),
        confusion=tuple(tuple(row) for row in tally.confusion.tolist()),
        skipped=tuple((str(name), str(reason)) for name, reason in skipped),
        seconds=seconds,
        images_per_s=tally.n / seconds,
        held_out=held_out,
        note=note,
        trained=predictor.trained,
    )


def _open(predictor: Predictor, data: str) -> tuple[ImageSet, bool, str]:
    """The images, whether they are the part of the training's own data that it held out, and a note.

    A fingerprint tells whether they are; of networks without one, the path does.
    """
    trained_on, channels = predictor.trained_on, predictor.preprocessing.channels
    by_path = trained_on.is_data(data)
    if not trained_on.fingerprint:
        options = dict(trained_on.options) if by_path else {}
        return open_eval_data(data, predictor.classes, channels=channels, **options), by_path, ""
    fingerprint = Fingerprint.from_dict(trained_on.fingerprint)
    options = dict(trained_on.options) if by_path and is_named(data) else {}
    train_too = fingerprint.boundaries is not None
    images = open_eval_data(data, predictor.classes, channels=channels, train_too=train_too, **options)
    part, same = fingerprint.find(images)
    changed = "the data have changed since the training; measured on what its split holds out of them now"
    return part, bool(same), changed if same is False else ""


def _class_scores(names: tuple[str, ...], confusion: Tensor) -> tuple[ClassScore, ...]:
    wrong = confusion - confusion.diag().diag()
    most, worst = wrong.max(dim=1)
    return tuple(
        ClassScore(name, int(confusion[i].sum()), int(confusion[i, i]), names[int(worst[i])] if most[i] else None)
        for i, name in enumerate(names)
    )
