# SPDX-License-Identifier: Apache-2.0
"""Predictions for a stream of image files: decoded ahead in threads, run in batches, bad ones reported in place."""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

from starshift.data import load_image
from starshift.deploy import Predictor
from starshift.errors import StarshiftError
from starshift.infer.load import load
from starshift.infer.paths import Found, expand
from starshift.machine import choose_decoders
from starshift.preprocessing import Preprocessing


@dataclass(frozen=True)
class Prediction:
    """The answer for one file, best class first; or ``error``, and then no labels.

    Attributes:
        path: as it was named or found.
        labels, probabilities: the k most likely classes and their softmax shares.
        error: why the file could not be read; None if it could.
    """

    path: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """``{"path", "predictions": [{"label", "probability"}]}`` or ``{"path", "error"}``."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        pairs = zip(self.labels, self.probabilities, strict=True)
        return {"path": self.path, "predictions": [{"label": a, "probability": round(p, 6)} for a, p in pairs]}


def predict(
    model: str | Path | Predictor,
    paths: str | Path | Iterable[str | Path],
    *,
    topk: int = 5,
    batch_size: int = 32,
    workers: int | None = None,
    device: str = "auto",
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Iterator[Prediction]:
    """Yield a :class:`Prediction` for every file, in order, while later files are being decoded.

    Args:
        model: run or model folder, hub id, exported file, or a :class:`Predictor`.
        paths: files, folders, patterns, ``-`` for names on stdin; see :func:`starshift.infer.paths.expand`.
        topk: classes an image; at most as many as there are.
        batch_size: images a batch. Answers come a batch at a time.
        workers: threads that decode, at least one; default: a core is left to the network, and at most 8.
        device: see :func:`starshift.infer.load`.
        on_progress: called as ``on_progress(done, None)`` after every batch.

    Raises:
        StarshiftError: the model cannot be opened. Bad images raise nothing: they are yielded with their ``error``.
    """
    if topk < 1 or batch_size < 1:
        raise StarshiftError(f"topk and batch_size must be at least 1, not {topk} and {batch_size}")
    predictor = load(model, device=device)
    files = expand([paths] if isinstance(paths, (str, Path)) else paths)
    threads = max(1, choose_decoders() if workers is None else workers)
    return _stream(predictor, files, topk, batch_size, threads, on_progress)


def _stream(
    predictor: Predictor,
    files: Iterator[Found],
    topk: int,
    batch_size: int,
    workers: int,
    on_progress: Callable[[int, int | None], None] | None,
) -> Iterator[Prediction]:
    done = 0
    decoded = _decode_ahead(files, predictor.preprocessing, workers, ahead=2 * batch_size)
    while batch := list(islice(decoded, batch_size)):
        yield from _answer(predictor, batch, topk)
        done += len(batch)
        if on_progress:
            on_progress(done, None)


def _answer(predictor: Predictor, batch: list[tuple[Found, Tensor | None]], topk: int) -> Iterator[Prediction]:
    images = [image for _, image in batch if image is not None]
    if images:
        top = predictor.logits(torch.stack(images)).softmax(dim=1).topk(min(topk, len(predictor.classes)), dim=1)
        rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    for file, image in batch:
        if image is None:
            yield Prediction(file.path, error=file.error)
        else:
            indices, values = next(rows)
            yield Prediction(file.path, tuple(predictor.classes[i] for i in indices), tuple(values))


def _decode_ahead(
    files: Iterator[Found], preprocessing: Preprocessing, workers: int, ahead: int
) -> Iterator[tuple[Found, Tensor | None]]:
    """Decode with ``ahead`` files in flight, in order. Threads do: the decoders release Python's lock."""
    pending: deque[Future[tuple[Found, Tensor | None]]] = deque()
    # A decoder is one thread of many, so that torch's own threads inside each would only get in the way.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for file in files:
                pending.append(pool.submit(_decode, file, preprocessing))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also when the reader stops early: what has not begun need not begin
            pool.shutdown(wait=False, cancel_futures=True)


def _decode(file: Found, preprocessing: Preprocessing) -> tuple[Found, Tensor | None]:
    if file.error is not None:
        return file, None
    try:
        return file, load_image(file.path, preprocessing)
    except (StarshiftError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Found(file.path, reason), None


class Writer(Protocol):
    """Writes predictions one at a time, so that a reader of the output can follow."""

    def __call__(self, prediction: Prediction) -> None: ...


def json_lines_writer(file: TextIO, topk: int) -> Writer:
    """One JSON object a line; see :meth:`Prediction.to_dict`."""

    def write(prediction: Prediction) -> None:
        file.write(json.dumps(prediction.to_dict()) + "\n")

    return write


def csv_writer(file: TextIO, topk: int) -> Writer:
    """Columns path, label_1, probability_1, ... label_k, probability_k, error, with a header."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("path", *(f"{kind}_{i + 1}" for i in range(topk) for kind in ("label", "probability")), "error"))

    def write(prediction: Prediction) -> None:
        cells: list[str] = []
        for label, probability in zip(prediction.labels, prediction.probabilities, strict=True):
            cells += (label, f"{probability:.6f}")
        rows.writerow((prediction.path, *cells, *[""] * (2 * topk - len(cells)), prediction.error or ""))

    return write


WRITERS: dict[str, Callable[[TextIO, int], Writer]] = {"jsonl": json_lines_writer, "csv": csv_writer}
