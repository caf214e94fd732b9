# SPDX-License-Identifier: Apache-2.0
"""What experiments there are, their rows, and the page that is rendered from them."""

from __future__ import annotations

import csv
import hashlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments._cells import BUDGETS, Cell, is_row
from starshift.errors import StarshiftError, nearest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "experiments"
FIGURES = ROOT / "docs" / "images" / "experiments"
Row = dict[str, str]


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper, and what came of it.

    Attributes:
        text: the claim.
        published: the paper's number.
        ours: our number, with its spread.
        holds: True, False, or None where the runs cannot tell (spreads overlap).
    """

    text: str
    published: str
    ours: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "does not hold", None: "cannot tell"}[self.holds]


def names() -> list[str]:
    """Every experiment: the files of this folder without a leading underscore."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_"))


def load(name: str) -> Any:
    """The experiment of this name.

    Raises:
        StarshiftError: there is none.
    """
    if name not in names():
        raise StarshiftError(f"no experiment '{name}'.{nearest(name, names())} There are: {', '.join(names())}")
    return import_module(f"experiments.{name}")


def read(name: str, results: Path = RESULTS) -> list[Row]:
    """All rows of an experiment, in the order in which they were measured."""
    path = results / f"{name}.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def current(name: str, results: Path = RESULTS) -> tuple[str, list[Row]]:
    """The largest budget that has rows of today's settings, and for each of its cells the last such row."""
    rows, experiment = read(name, results), load(name)
    for budget in (name for name in reversed(BUDGETS[1:]) if name in experiment.COST):
        cells: Sequence[Cell] = experiment.cells(budget)
        found = [next((r for r in reversed(rows) if is_row(r, cell, budget)), None) for cell in cells]
        if any(found):
            return budget, [row for row in found if row is not None]
    return "", []


def digest(rows: list[Row]) -> str:
    """Names the rows that a figure was drawn from."""
    return hashlib.sha256(repr([sorted(row.items()) for row in rows]).encode()).hexdigest()[:16]


def draw(name: str, results: Path = RESULTS, figures: Path = FIGURES) -> Path | None:
    """Draw an experiment's figure from its rows, and note in it which they were. None where it has none, or no rows."""
    experiment, (_, rows) = load(name), current(name, results)
    if not hasattr(experiment, "figure") or not rows:
        return None
    import matplotlib

    matplotlib.use("Agg")
    figures.mkdir(parents=True, exist_ok=True)
    path = figures / f"{name}.png"
    figure = experiment.figure(rows)
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Description": digest(rows)})
    return path


def drawn_from(path: Path) -> str:
    """The digest that a figure carries."""
    from PIL import Image

    with Image.open(path) as image:
        return str(image.info.get("Description", ""))


def claims_table() -> str:
    """Every claim that some rows speak to, with its verdict."""
    lines = ["| claim | paper | here | verdict | experiment |\n", "| --- | --- | --- | --- | --- |\n"]
    for name in names():
        experiment, (_, rows) = load(name), current(name)
        for claim in experiment.claims(rows) if rows else []:
            cells = (claim.text, claim.published, claim.ours, f"**{claim.verdict}**", f"[{name}](#{name})")
            lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines) if len(lines) > 2 else "Not measured yet.\n"


def sections() -> str:
    """A section for each experiment: the question, what differs from the paper, the table, the figure, the command."""
    return "".join(_section(name) for name in names())


def _section(name: str) -> str:
    experiment = load(name)
    budget, rows = current(name)
    parts = [f"### {name}\n**{experiment.TITLE}** ({experiment.SOURCE}). {experiment.SETTING}.\n\n"]
    if rows:
        cells = experiment.cells(budget)
        left = (
            "" if len(rows) == len(cells) else f" {len(cells) - len(rows)} of {len(cells)} cells are not measured yet."
        )
        parts.append(f"{experiment.table(rows)}\n{_where(rows, budget)}{left}\n")
        if hasattr(experiment, "READING"):
            parts.append(f"\n{experiment.READING}.\n")
        if (FIGURES / f"{name}.png").is_file():
            parts.append(f"\n![{experiment.TITLE}](images/experiments/{name}.png)\n")
    else:
        parts.append("Not measured yet.\n")
    takes = "" if experiment.NEEDS_DATA is False else " --data cifar10"
    parts.append(f"\n```bash\npython -m experiments run {name}{takes}\n```\n\n")
    return "".join(parts)


def _where(rows: list[Row], budget: str) -> str:
    def of(column: str) -> str:
        return ", ".join(sorted({row[column] for row in rows if row.get(column)}))

    machine = f"{of('cpu')}, {of('gpu')}" if budget == "gpu" else of("cpu")
    return f"Budget {budget}; {machine}, torch {of('torch')}, commit {of('commit')}."
