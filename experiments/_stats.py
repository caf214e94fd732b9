# SPDX-License-Identifier: Apache-2.0
"""Repeats of a measurement put together: mean and range, differences, and tables of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Row = Mapping[str, str]


@dataclass(frozen=True)
class Spread:
    """Mean and range of repeats."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def text(self, digits: int = 1) -> str:
        """``63.1 (62.8 to 63.4)``."""
        mean = f"{self.mean:.{digits}f}"
        return mean if len(self.values) == 1 else f"{mean} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(rows: Iterable[Row], column: str = "top1", **where: object) -> Spread | None:
    """Of the rows that have these values; None where there are none."""
    values = tuple(float(row[column]) for row in rows if row.get(column) and _matches(row, where))
    return Spread(values) if values else None


def difference(rows: Sequence[Row], ours: Mapping[str, object], other: Mapping[str, object]) -> Spread | None:
    """``top1`` of one kind of row less that of another, seed by seed: the repeats share the order of the images."""
    paired = []
    for seed in sorted({row["seed"] for row in rows}):
        a, b = spread(rows, seed=seed, **ours), spread(rows, seed=seed, **other)
        if a is not None and b is not None:
            paired.append(a.mean - b.mean)
    return Spread(tuple(paired)) if paired else None


def above(gap: Spread | None, bound: float = 0.0) -> bool | None:
    """Whether all repeats lie above the bound (True), all below (False), or on both sides (None); one run tells
    nothing."""
    if gap is None or len(gap.values) < 2:
        return None
    return True if gap.low > bound else False if gap.high < bound else None


def below(gap: Spread | None, bound: float = 0.0) -> bool | None:
    """The contrary of :func:`above`."""
    return None if (up := above(gap, bound)) is None else not up


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """Of all of several: False where one is, True where all are, else None."""
    found = set(verdicts)
    return False if False in found else True if found == {True} else None


def error_bars(found: Sequence[Spread]) -> list[list[float]]:
    """From each mean down to the lowest repeat, and up to the highest, as matplotlib takes them."""
    return [[f.mean - f.low for f in found], [f.high - f.mean for f in found]]


def values(rows: Iterable[Row], column: str) -> list[str]:
    """What stands in a column, each once, in order."""
    return list(dict.fromkeys(row[column] for row in rows))


def text(found: Spread | None, digits: int = 1) -> str:
    return "-" if found is None else found.text(digits)


def signed(found: Spread | None, digits: int = 1) -> str:
    """A difference: ``+2.3 (+2.1 to +2.5)``."""
    if found is None:
        return "-"
    mean = f"{found.mean:+.{digits}f}"
    return mean if len(found.values) == 1 else f"{mean} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


def as_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [[str(cell) for cell in header]]
    lines += [["---"] * len(lines[0]), *([str(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _matches(row: Row, where: Mapping[str, object]) -> bool:
    return all(row.get(name) == str(value) for name, value in where.items())
