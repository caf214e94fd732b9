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
from experiments._stats import as_table
from starshift.errors import StarshiftError, nearest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "experiments"
FIGURES = ROOT / "docs" / "images" / "experiments"
Row = dict[str, str]
OWN = ("open", "future work", "-")
"""In place of a published number: the paper asks this itself, or only we do."""
READ = "small"
"""The budget that an experiment's SETTING and READING speak of."""
VERDICTS = {True: "holds", False: "does not hold", None: "cannot tell"}


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper, or a question of our own, and what came of it.

    Attributes:
        text: the claim.
        published: the paper's number; one of :data:`OWN` where the question is not the papers'.
        ours: our number, with its spread.
        holds: True, False, or None where the runs cannot tell (spreads overlap).
    """

    text: str
    published: str
    ours: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        return VERDICTS[self.holds]


def expectation(experiment: Any) -> str:
    """What its docstring says to expect."""
    return " ".join(experiment.__doc__.partition("Expected:")[2].split()).rstrip(".")


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


def measured(name: str, results: Path = RESULTS) -> dict[str, list[Row]]:
    """The budgets that have rows of today's settings, the largest first, and for each of their cells the last such
    row."""
    rows, experiment, found = read(name, results), load(name), {}
    for budget in (name for name in reversed(BUDGETS[1:]) if name in experiment.COST):
        cells: Sequence[Cell] = experiment.cells(budget)
        last = (next((r for r in reversed(rows) if is_row(r, cell, budget)), None) for cell in cells)
        if kept := [row for row in last if row is not None]:
            found[budget] = kept
    return found


def current(name: str, results: Path = RESULTS) -> tuple[str, list[Row]]:
    """What claims and figures are made of: the largest budget that is whole, or where none is, the largest begun."""
    found, experiment = measured(name, results), load(name)
    whole = [budget for budget, rows in found.items() if len(rows) == len(experiment.cells(budget))]
    budget = next(iter([*whole, *found]), "")
    return budget, found.get(budget, [])


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


def claims_table(own: bool = False) -> str:
    """Every claim of the papers that some rows speak to, or every question of our own, by verdict."""
    found: list[tuple[str, Claim]] = []
    for name in names():
        experiment, (_, rows) = load(name), current(name)
        found += [(name, claim) for claim in (experiment.claims(rows) if rows else [])]
    found = [(name, claim) for name, claim in found if (claim.published in OWN) == own]
    if not found:
        return "Not measured yet.\n"
    lines = []
    for verdict in VERDICTS.values():
        for name, claim in found:
            if claim.verdict == verdict:
                lines.append((claim.text, claim.published, claim.ours, f"**{verdict}**", f"[{name}](#{name})"))
    counts = [f"{sum(claim.verdict == verdict for _, claim in found)} {verdict}" for verdict in VERDICTS.values()]
    header = ("claim", "paper", "here", f"verdict ({', '.join(counts)})", "experiment")
    return as_table(header, lines)


def sections() -> str:
    """A section for each experiment: the question, what differs from the paper, a table for each budget that has rows,
    the figure, the command."""
    return "".join(_section(name) for name in names())


def _section(name: str) -> str:
    experiment, found = load(name), measured(name)
    parts = [f"### {name}\n**{experiment.TITLE}** ({experiment.SOURCE}). {experiment.SETTING}.\n\n"]
    for budget, rows in found.items():
        cells = experiment.cells(budget)
        left = (
            "" if len(rows) == len(cells) else f" {len(cells) - len(rows)} of {len(cells)} cells are not measured yet."
        )
        parts.append(f"{experiment.table(rows)}\n{_where(rows, budget)}{left}\n")
        if budget == READ and hasattr(experiment, "READING"):
            parts.append(f"\n{experiment.READING}.\n")
    if not found:
        parts.append("Not measured yet.\n")
    elif (FIGURES / f"{name}.png").is_file():
        parts.append(f"\n![{experiment.TITLE}](images/experiments/{name}.png)\n")
    takes = "" if experiment.NEEDS_DATA is False else " --data cifar10"
    parts.append(f"\n```bash\npython -m experiments run {name}{takes}\n```\n\n")
    return "".join(parts)


def _where(rows: list[Row], budget: str) -> str:
    def of(column: str) -> str:
        return ", ".join(sorted({row[column] for row in rows if row.get(column)}))

    machine = ", ".join(filter(None, (of("cpu"), of("gpu") if budget != READ else "")))
    setting = " (the authors' setting, not the one above)" if budget == "paper" else ""
    return f"Budget {budget}{setting}; {machine}, torch {of('torch')}, commit {of('commit')}."
