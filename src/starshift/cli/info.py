# SPDX-License-Identifier: Apache-2.0
"""``starshift info``: what runs here, and why something does not."""

from __future__ import annotations

import typer

from starshift.cli._options import Json

HELP = "Show versions, devices, active kernels (and why others are not) and optional packages."


def command(as_json: Json = False) -> None:
    from starshift.infer import info

    facts = info()
    if as_json:
        import json

        typer.echo(json.dumps(facts, indent=2))
        return
    for title, entries in facts.items():
        typer.echo(title)
        for key, value in entries.items():
            if isinstance(value, dict):
                value = ", ".join(f"{k}: {v}" for k, v in value.items())
            typer.echo(f"  {key:<25} {value}")
