# SPDX-License-Identifier: Apache-2.0
"""``starshift models``: what can be trained."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from starshift.cli._options import Json
from starshift.errors import StarshiftError

HELP = "List the models: parameters, MACs, input size, published accuracy."


def command(
    filter: Annotated[str, typer.Argument(metavar="[FILTER]", help="Part of a name, or a pattern.")] = "",
    as_json: Json = False,
) -> None:
    from starshift.models import list_models, model_info

    names = list_models(filter if set(filter) & set("*?[") else f"*{filter}*")
    if not names:
        raise StarshiftError(f"no model matches '{filter}'; 'starshift models' lists all")
    infos = [model_info(name) for name in names]
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(i) for i in infos], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "params", "MACs", "MACs folded", "input", "published top-1", "paper"):
        table.add_column(title, justify="left" if title in ("model", "paper") else "right", no_wrap=title != "paper")
    for i in infos:
        top1 = _top1(i.published_top1)
        size = f"{i.size[0]}x{i.size[1]}"
        table.add_row(i.name, _count(i.params), _count(i.macs), _count(i.macs_folded), size, top1, i.paper)
    # Without a terminal nothing is cut: a long line is better than a lost column.
    Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False, highlight=False, markup=False).print(table)


def _top1(published: dict[str, float]) -> str:
    """By data set, the first word of a key; where a model has several options, from the worst to the best."""
    values: dict[str, list[float]] = {}
    for key, value in published.items():
        values.setdefault(key.split()[0], []).append(value)
    ranges = ((data, sorted({min(v), max(v)})) for data, v in values.items())
    return ", ".join(f"{data} {'-'.join(f'{v:.1f}' for v in ends)}" for data, ends in ranges)


def _count(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.2f}{name}"
    return str(value)
