# SPDX-License-Identifier: Apache-2.0
"""Of measured rows, the file to ship: the fastest that answers as well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starshift.bench.forms import EAGER, FLOAT32, TIMM_ONNX, TORCH, Form

MAX_DROP = 0.5  # points of top-1 that the fastest file may lose
TOLD = "though told"  # in the note of a row whose runtime took more cores than it was to
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Recommendation:
    """The file to ship for a network at a batch and a number of threads.

    Attributes:
        row: its row.
        faster: how many times it is faster than other rows of the same network, by the name of their form.
        unknown: faster forms whose accuracy was not measured.
    """

    row: Row
    faster: Mapping[str, float]
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        row = self.row
        threads = "1 thread" if int(row["threads"]) == 1 else f"{row['threads']} threads"
        text = f"{row['model']}, batch {row['batch']}, {threads}: {form_name(row)}, {float(row['latency_ms']):.2f} ms"
        text += "".join(f", {ratio:.2f} times as fast as {name}" for name, ratio in self.faster.items())
        if self.unknown:
            text += f" (faster, of unknown accuracy: {', '.join(self.unknown)}; --data FOLDER measures it)"
        return text


def form_name(row: Row) -> str:
    return Form(str(row["target"]), str(row["precision"])).name


def recommend(rows: Iterable[Row], max_drop: float = MAX_DROP) -> list[Recommendation]:
    """The fastest file of each network, batch and number of threads.

    A file in float32 counts as accurate, since it was compared with PyTorch as it was exported. One of lower precision
    counts where its top-1 was measured and is at most ``max_drop`` points below the best of the network's. A row whose
    runtime took more cores than it was told compares with nothing.
    """
    timed = [row for row in rows if row["latency_ms"] not in ("", None) and row["threads"] not in ("", None)]
    measured = [row for row in timed if TOLD not in str(row.get("note"))]
    cases: dict[tuple[Any, ...], list[Row]] = {}
    for row in measured:
        cases.setdefault((row["model"], str(row["batch"]), str(row["threads"])), []).append(row)
    found = []
    for case in cases.values():
        files = [row for row in case if row["target"] not in (*TORCH, TIMM_ONNX)]
        best = max((float(row["top1"]) for row in case if row["top1"] not in ("", None)), default=None)
        good = [row for row in files if _accurate(row, best, max_drop)]
        if not good:
            continue
        fastest = min(good, key=_latency)
        unknown = [row for row in files if _unknown(row) and _latency(row) < _latency(fastest)]
        others = {form_name(row): _latency(row) / _latency(fastest) for row in case if row is not fastest}
        kept = {name: others[name] for name in ("onnx", EAGER) if name in others}
        found.append(Recommendation(fastest, kept, tuple(form_name(row) for row in unknown)))
    return found


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of (latency, accuracy) that no other point betters in both, from the fastest on."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def accuracy_of(row: Row) -> float | None:
    """Measured where it was, else the published one; None where neither is known."""
    for name in ("top1", "published_top1"):
        if row.get(name) not in ("", None):
            return float(row[name])
    return None


def _latency(row: Row) -> float:
    return float(row["latency_ms"])


def _unknown(row: Row) -> bool:
    return row["precision"] != FLOAT32 and row["top1"] in ("", None)


def _accurate(row: Row, best: float | None, max_drop: float) -> bool:
    if row["top1"] in ("", None) or best is None:
        return row["precision"] == FLOAT32
    return best - float(row["top1"]) <= max_drop
