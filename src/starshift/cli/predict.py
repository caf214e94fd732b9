# SPDX-License-Identifier: Apache-2.0
"""``starshift predict``: what is on these images."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TextIO

import typer

from starshift.cli._options import BatchSize, Device, RunArgument, Workers, warn_unless
from starshift.cli._progress import progress_bar
from starshift.errors import StarshiftError, nearest

HELP = "Name what is on images: files, folders, patterns, or names on stdin (-)."


def command(
    run: RunArgument,
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Files, folders, patterns, - for stdin.")],
    topk: Annotated[int, typer.Option("--topk", "-k", min=1, help="Classes an image.")] = 5,
    format: Annotated[str, typer.Option("--format", "-f", help="jsonl (one JSON object a line) or csv.")] = "jsonl",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file; default: stdout.")] = None,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    device: Device = "auto",
) -> None:
    from starshift.infer import load, predict
    from starshift.infer.predict import WRITERS

    if format not in WRITERS:
        raise StarshiftError(f"--format is {' or '.join(WRITERS)}, not '{format}'.{nearest(format, WRITERS)}")
    model = load(run, device=device)
    warn_unless(model.trained, run)
    done = failed = 0
    with _output(out) as file, progress_bar("predict") as advance:
        # A bar between lines of output on the same terminal would only disturb.
        show = advance if out is not None or not sys.stdout.isatty() else None
        write = WRITERS[format](file, min(topk, len(model.classes)))
        for prediction in predict(model, paths, topk=topk, batch_size=batch_size, workers=workers, on_progress=show):
            write(prediction)
            done += 1
            failed += prediction.error is not None
    if failed:
        typer.echo(f"{failed} of {done} could not be read; their rows have the reason", err=True)
        raise typer.Exit(1)


@contextlib.contextmanager
def _output(out: Path | None) -> Iterator[TextIO]:
    """The file, or stdout; either writes names that are not valid UTF-8 as the bytes they are."""
    if out is not None:
        with out.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        return
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")
    yield sys.stdout
    sys.stdout.flush()  # here, so that a closed pipe is noticed inside the command
