# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, so that they are named and explained once, and a warning."""

from __future__ import annotations

from typing import Annotated

import typer

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, a model folder, hf-hub:OWNER/NAME, or an exported file.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images a batch.")]
Workers = Annotated[int | None, typer.Option("--workers", "-j", min=0, help="Image decoders; default: by the cores.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def warn_unless(trained: bool, run: str) -> None:
    """Say on stderr that a file's answers mean nothing."""
    if not trained:
        typer.echo(f"warning: {run} was exported with random weights and names nothing right", err=True)
