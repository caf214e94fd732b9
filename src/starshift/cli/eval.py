# SPDX-License-Identifier: Apache-2.0
"""``starshift eval``: accuracy of a run or an exported file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starshift.cli._options import BatchSize, Device, Json, RunArgument, Workers, warn_unless
from starshift.cli._progress import progress_bar
from starshift.errors import StarshiftError

if TYPE_CHECKING:
    from starshift.infer import Evaluation

HELP = "Measure the accuracy of a run or an exported file on labelled images."
LISTED = 5


def command(
    run: RunArgument,
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="A folder with one folder a class, or with val/ or test/; or a name."),
    ],
    batch_size: BatchSize = 64,
    workers: Workers = None,
    device: Device = "auto",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: a row a class and one for the whole.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write to this .json or .csv file.")] = None,
) -> None:
    from starshift.infer import evaluate
    from starshift.infer.evaluate import check_writable

    if as_json and as_csv:
        raise StarshiftError("--json and --csv exclude each other; --out writes the other one to a file")
    if out is not None:
        check_writable(out)
    with progress_bar("eval") as advance:
        result = evaluate(run, data, batch_size=batch_size, workers=workers, device=device, on_progress=advance)
    warn_unless(result.trained, run)
    if hasattr(sys.stdout, "reconfigure"):  # for names that are not valid UTF-8: in CSV the bytes they are
        sys.stdout.reconfigure(errors="surrogateescape" if as_csv else "replace")
    if as_json:
        result.write_json(sys.stdout)
    elif as_csv:
        result.write_csv(sys.stdout)
    else:
        _print(result)
    for name, reason in result.skipped if as_csv else ():
        typer.echo(f"skipped {name}: {reason}", err=True)
    if out is not None:  # last: what was measured is on the screen, whatever becomes of the file
        result.write(out)


def _print(result: Evaluation) -> None:
    typer.echo(
        f"top-1 {result.top1:.2f}%   top-5 {result.top5:.2f}%   loss {result.loss:.4f}   "
        f"{result.n} images in {result.seconds:.1f} s ({result.images_per_s:.0f} images/s)"
    )
    if result.held_out:
        typer.echo("  on the part of these data that training held out")
    if result.note:
        typer.echo(f"  {result.note}")
    scored = [c for c in result.classes if c.top1 is not None]
    for c in sorted(scored, key=lambda c: (c.top1 or 0.0, -c.n))[:LISTED]:
        mistaken = f", most often taken for {c.mistaken_for}" if c.mistaken_for else ""
        typer.echo(f"  {c.name}: {c.correct} of {c.n} right ({c.top1:.1f}%){mistaken}")
    if len(scored) > LISTED:
        typer.echo(f"  ... and {len(scored) - LISTED} more classes; all with --csv or --json")
    if result.skipped:
        typer.echo(f"skipped {len(result.skipped)} images that could not be read:")
        for name, reason in result.skipped[:LISTED]:
            typer.echo(f"  {name}: {reason}")
        if len(result.skipped) > LISTED:
            typer.echo(f"  ... and {len(result.skipped) - LISTED} more; all with --json")
