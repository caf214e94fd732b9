# SPDX-License-Identifier: Apache-2.0
"""``starshift bench``: measure on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from starshift.cli._options import Json
from starshift.errors import StarshiftError

HELP = "Measure on this machine, beside a peer in the same run."
PHOTOGRAPHS = ("500x375", "2000x1500")

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False)


@app.callback()
def bench() -> None:
    """Measure on this machine, beside a peer in the same run."""


@app.command()
def loader(
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA]", help="Folder of class folders; without it, photographs are made.")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=8, help="Side of the network's input in pixels.")] = 224,
    make: Annotated[
        list[str] | None, typer.Option("--make", metavar="WxH", help="Size of the photographs made; repeatable.")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Images timed in a round.")] = 128,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Pairs of timings; medians are shown.")] = 9,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Worker processes; 0 measures one core.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.csv", help="Append the rows to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Images per second of the loaders, beside torchvision's ImageFolder with Pillow."""
    import tempfile

    from starshift.bench.loader import bench_loader
    from starshift.bench.photographs import make_photographs
    from starshift.bench.rows import append_row

    def say(text: str) -> None:
        typer.echo(text, err=True)

    options: dict[str, Any] = {
        "size": size,
        "images": images,
        "rounds": rounds,
        "batch_size": batch_size,
        "workers": workers,
    }
    rows = []
    if data is not None:
        rows = bench_loader(data, on_round=say, **options)
    else:
        for text in make or PHOTOGRAPHS:
            width, height = _width_height(text)
            with tempfile.TemporaryDirectory(prefix="starshift-bench-") as folder:
                say(f"making photographs of {text} pixels")
                make_photographs(Path(folder), max(64, 2 * batch_size), width, height)
                label = f"made photographs {text}"
                rows += bench_loader(Path(folder), label=label, on_round=say, **options)
    if out is not None:
        for row in rows:
            append_row(out, row)
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=2))
    else:
        _show(rows)


@app.command()
def accuracy(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Labelled images, as 'starshift eval' takes them.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.csv", help="Append the rows to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Accuracy of a run and of the files exported from it, with the settings, machine, versions and commit."""
    from starshift.bench.accuracy import bench_accuracy
    from starshift.bench.rows import append_row
    from starshift.cli._progress import progress_bar

    with progress_bar("eval") as advance:
        rows = bench_accuracy(run, data, on_progress=advance)
    if out is not None:
        for row in rows:
            append_row(out, row)
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['model']} in {row['evaluated']}: top-1 {row['top1']:.2f}% of {row['n']} images")


def _width_height(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) >= 16 and int(height) >= 16):
        raise StarshiftError(f"--make wants WIDTHxHEIGHT of at least 16x16, such as 500x375, not '{text}'")
    return int(width), int(height)


def _show(rows: list[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("images", "path", "workers", "starshift /s", "torchvision + PIL /s", "ratio", "lowest to highest"):
        table.add_column(title, justify="left" if title in ("images", "path") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["images"]),
            str(row["path"]),
            str(row["workers"]),
            str(row["ours_images_per_s"]),
            str(row["peer_images_per_s"]),
            f"{row['ratio']:.2f}",
            f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
        )
    Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False).print(table)
