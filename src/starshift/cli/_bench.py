# SPDX-License-Identifier: Apache-2.0
"""What the suites of ``starshift bench`` share: which one a call means, and how rows are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from starshift.errors import StarshiftError, nearest

DEFAULT, WEB = "deploy", "web"
Row = dict[str, Any]


class Suites(TyperGroup):
    """A group whose first word may be left out: a network or an option in its place means :data:`DEFAULT`, and
    ``--web`` anywhere means :data:`WEB`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--web" in args:
            args = [WEB, *(arg for arg in args if arg not in ("--web", WEB))]
        elif args and args[0] not in (*self.commands, *ctx.help_option_names):
            self._refuse_misspelt(ctx, args[0])
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def _refuse_misspelt(self, ctx: Any, word: str) -> None:
        """A word like a suite's name that names nothing else; what is like none is left to the suite, which knows the
        networks."""
        hint = nearest(word, self.commands)
        if not hint or word.startswith("-") or Path(word).exists():
            return
        from starshift.models import is_model

        if not is_model(word):
            ctx.fail(f"No such suite, network, run or file: '{word}'.{hint} Suites are: {', '.join(self.commands)}.")


def appendable(path: Path | None) -> Path | None:
    """``--out`` as it is, refused before anything is measured where no row could be appended to it, or where a figure
    drawn beside it could take its place."""
    if path is not None:
        if path.suffix.lower() != ".csv":
            raise StarshiftError(f"--out is a table: give a name that ends in .csv, not '{path.name}'")
        from starshift.bench.rows import check_appendable

        check_appendable(path)
    return path


def report(rows: Iterable[Row], titles: dict[str, str], out: Path | None, as_json: bool) -> list[Row]:
    """Append each row to ``out`` as it comes, then print all, as :func:`show` does: also those before a failure or
    Ctrl-C."""
    from starshift.bench.rows import append_row

    measured: list[Row] = []
    try:
        for row in rows:
            measured.append(row)
            if out is not None:
                append_row(out, row)
    finally:
        if measured:
            show(measured, titles, as_json)
    return measured


def show(rows: list[Row], titles: dict[str, str], as_json: bool) -> None:
    """Print the rows: the columns that ``titles`` names, or all as JSON."""
    if as_json:
        import json

        import typer

        typer.echo(json.dumps(rows, indent=2))
    else:
        _print_table(rows, titles)


def _print_table(rows: list[Row], titles: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, title in titles.items():
        text = all(isinstance(row[name], str) for row in rows)
        table.add_column(title, justify="left" if text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{row[n]:.2f}" if isinstance(row[n], float) else str(row[n]) for n in titles))
    Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False).print(table)
