# SPDX-License-Identifier: Apache-2.0
"""Rows of results/*.csv, and tables made of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_MEASURED = "Not measured.\n"
Row = dict[str, str]


def latest(rows: list[Row], *columns: str) -> list[Row]:
    """Of rows that agree in these columns, the last; in the order of the first."""
    return list({tuple(row.get(column) for column in columns): row for row in rows}.values())


def spread(values: list[float]) -> str:
    ends = dict.fromkeys(f"{value:.2f}" for value in (min(values), max(values))) if values else ["-"]
    return " to ".join(ends)


def machine(row: Row) -> str:
    return f"cuda, {row.get('gpu')}" if row.get("device") == "cuda" else f"{row['cpu']}, {row['cores']} cores"


def rates(row: Row) -> tuple[str, ...]:
    """The peer's images per second, ours, their ratio, and the ratio from the lowest round to the highest."""
    found = (row[f"{name}_images_per_s"] for name in ("peer", "ours"))
    between = f"{float(row['ratio_low']):.2f} to {float(row['ratio_high']):.2f}"
    return (*(f"{float(rate):.0f}" for rate in found), f"{float(row['ratio']):.2f}", between)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read(name: str) -> list[Row]:
    if not (ROOT / "results" / name).exists():
        return []
    with (ROOT / "results" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
