# SPDX-License-Identifier: Apache-2.0
"""``starshift bench``: measure on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from starshift.cli._bench import Row, Suites, appendable, report, show
from starshift.cli._options import Json
from starshift.errors import StarshiftError

HELP = "Measure on this machine, beside a peer in the same run."
PHOTOGRAPHS = ("500x375", "2000x1500")
RATIO = {"ratio": "ratio", "ratio_low": "lowest", "ratio_high": "highest"}

Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.csv", callback=appendable, help="Append the rows to this file.")
]
DrawnOut = Annotated[
    Path,
    typer.Option(
        "--out", metavar="FILE.csv", callback=appendable, help="Append the rows; figures are drawn beside it."
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Of torch and of the kernels, on both sides.")]

app = typer.Typer(cls=Suites, help=HELP, no_args_is_help=True, add_completion=False)


@app.callback()
def bench(
    web: Annotated[
        bool, typer.Option("--web", help="A page that measures in the browser of a phone or laptop.")
    ] = False,
) -> None:
    """Measure on this machine, beside a peer in the same run.

    `starshift bench MODEL...` means `starshift bench deploy MODEL...`, and `--web` means `starshift bench web`.
    """


@app.command()
def deploy(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODELS...", help="Names, run folders, exported files, timm:NAME."),
    ] = None,
    targets: Annotated[
        str, typer.Option("--targets", metavar="TARGET,...", help="Such as eager,onnx,openvino-int8; default: all.")
    ] = "",
    threads: Annotated[str, typer.Option("--threads", metavar="N,...", help="Of each runtime; default: 1.")] = "1",
    batch: Annotated[str, typer.Option("--batch", metavar="N,...", help="Images a call.")] = "1",
    size: Annotated[int | None, typer.Option("--size", min=8, help="Side in pixels; default: the network's.")] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Beside them, networks of timm's.")] = False,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of each side.")] = 15,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FOLDER", help="Labelled images: accuracy, and calibration of int8.")
    ] = None,
    out: DrawnOut = Path("results/deploy.csv"),
    as_json: Json = False,
) -> None:
    """Which file to ship: latency, memory, size and accuracy over every way to run a network."""
    from starshift.bench.deploy import bench_deploy
    from starshift.bench.forms import whole_numbers
    from starshift.bench.pareto import draw
    from starshift.bench.recommend import recommend
    from starshift.bench.rows import append_row

    measured = bench_deploy(
        models or (),
        targets=_names(targets),
        threads=whole_numbers(threads, "--threads"),
        batches=whole_numbers(batch, "--batch"),
        size=size,
        peers=peers,
        rounds=rounds,
        data=data,
        say=_say,
    )
    rows: list[Row] = []
    try:
        for group in measured:
            rows += group
            for row in group:
                append_row(out, row)
    finally:  # Ctrl-C keeps what was measured, and so does a full disk
        if rows:
            titles = {"model": "model", "target": "target", "precision": "precision", "batch": "batch"}
            titles |= {"threads": "threads", "latency_ms": "median ms", "p5_ms": "p5", "p95_ms": "p95"}
            titles |= {"images_per_s": "images/s", "first_ms": "first ms", "load_ms": "load ms"}
            titles |= {"memory_mb": "memory MB", "file_mb": "file MB", "top1": "top-1 %"}
            show([row for row in rows if as_json or row["latency_ms"]], titles, as_json)
            for row in rows:  # beside the numbers a sentence would leave them no room
                if row["note"]:
                    _say(f"{row['model']}, {row['target']} {row['precision']}: {row['note']}")
            for figure in draw(out) if out.exists() else ():
                _say(f"wrote {figure}")
    for line in recommend(rows):
        _say(f"ship: {line}")


@app.command()
def web(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN|MODEL|FILE]...", help="What to offer; default: starnet_s1.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Listen there: 0.0.0.0 opens it to the local network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 0,
    size: Annotated[int | None, typer.Option("--size", min=8, help="Side in pixels; default: the network's.")] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.csv", callback=appendable, help="Append the rows to this file.")
    ] = Path("results/deploy.csv"),
) -> None:
    """A page that runs and measures the models in the browser of a phone or laptop; the same as `--web`."""
    import tempfile

    from starshift.bench.web import Server, web_models

    with tempfile.TemporaryDirectory(prefix="starshift-web-") as folder:
        _say("exporting ...")
        offered = web_models(models or ["starnet_s1"], Path(folder), size)
        server = Server(offered, out, host=host, port=port, on_row=_say_posted)
        with server:
            typer.echo(server.url)
            _say(server.advice())
            server.wait()


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
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Images per second of the loaders on one core, beside torchvision's ImageFolder with Pillow."""
    import tempfile

    from starshift.bench.loader import bench_loader
    from starshift.bench.photographs import make_photographs

    options: dict[str, Any] = {"size": size, "images": images, "rounds": rounds, "batch_size": batch_size}
    sizes = [] if data else [(text, *_width_height(text)) for text in make or PHOTOGRAPHS]

    def rows() -> Iterator[Row]:
        if data is not None:
            yield from bench_loader(data, on_round=_say, **options)
        for text, width, height in sizes:
            with tempfile.TemporaryDirectory(prefix="starshift-bench-") as folder:
                _say(f"making photographs of {text} pixels")
                make_photographs(Path(folder), max(64, 2 * batch_size), width, height)
                yield from bench_loader(Path(folder), label=f"made photographs {text}", on_round=_say, **options)

    titles = {"images": "images", "path": "path", "ours_images_per_s": "starshift /s"}
    report(rows(), titles | {"peer_images_per_s": "torchvision + PIL /s", **RATIO}, out, as_json)


@app.command()
def predict(
    data: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Images; without it, photographs are made.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="A network that timm has too.")] = "starnet_s1",
    formats: Annotated[str, typer.Option("--formats", metavar="FORMAT,...", help="Of the exported files.")] = "onnx",
    make: Annotated[str, typer.Option("--make", metavar="WxH", help="Size of the photographs made.")] = "500x375",
    images: Annotated[int, typer.Option("--images", min=1, help="Photographs made.")] = 1000,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Pairs of timings; medians are shown.")] = 3,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Images per second of 'starshift predict' with an exported file, beside timm's script; whole processes."""
    import tempfile

    from starshift.bench.photographs import make_photographs
    from starshift.bench.predict import bench_predict

    with tempfile.TemporaryDirectory(prefix="starshift-bench-") as made:
        label = ""
        if data is None:
            data, label = Path(made), f"made photographs {make}"
            _say(f"making {images} photographs of {make} pixels")
            make_photographs(data, images, *_width_height(make))
        rows = bench_predict(data, model=model, formats=_names(formats), rounds=rounds, label=label, say=_say)
        titles = {"model": "model", "format": "format", "count": "images", "ours_images_per_s": "starshift /s"}
        report(rows, titles | {"peer_images_per_s": "timm /s", **RATIO}, out, as_json)


@app.command()
def operators(
    only: Annotated[
        str,
        typer.Option("--operators", metavar="NAME,...", help="Which operators; default: all, with all their cases."),
    ] = "",
    cases: Annotated[
        str, typer.Option("--cases", metavar="PATTERN,...", help="Which cases, such as 'starnet-s1-*'.")
    ] = "",
    dtypes: Annotated[str, typer.Option("--dtypes", metavar="DTYPE,...", help="Of fp32 and bf16.")] = "fp32,bf16",
    threads: Threads = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Pairs of timings; medians are shown.")] = 15,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Forward and backward of every operator's kernels, beside plain PyTorch, and the machine's ceilings."""
    from starshift.bench.operators import bench_operators

    shared: dict[str, Any] = {"dtypes": _names(dtypes), "threads": threads, "rounds": rounds, "device": device}

    def rows() -> Iterator[Row]:
        for row in bench_operators(_names(only), _names(cases), **shared):
            _say(f"{row['operator']} {row['case']} {row['dtype']}: {row['ratio']:.2f}")
            yield row

    titles = {"operator": "operator", "case": "case", "dtype": "dtype", "kernel": "kernel", "ours_ms": "starshift ms"}
    titles |= {"peer": "peer", "peer_ms": "peer ms", **RATIO, "gflops": "GFLOP/s", "gbs": "GB/s"}
    first = report(rows(), titles, out, as_json)[0]
    if not as_json:
        typer.echo(
            f"ceilings on {first['threads']} thread(s): {first['peak_gflops']} GFLOP/s, {first['peak_gbs']} GB/s"
        )


@app.command()
def training(
    models: Annotated[
        list[str] | None, typer.Argument(help="Ours or timm's; default: starnet_s1, s4, shiftresnet20.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Images a step.")] = None,
    size: Annotated[int | None, typer.Option("--size", min=8, help="Their side in pixels.")] = None,
    threads: Threads = None,
    amp: Annotated[str, typer.Option("--amp", help="none, or bf16: autocast on both sides.")] = "none",
    modes: Annotated[str, typer.Option("--modes", metavar="MODE,...", help="Which peers; default: all.")] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Steps of each side; medians are shown.")] = 7,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    inference: Annotated[bool, typer.Option("--inference", help="One image's answer instead of training.")] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """A training step of whole networks, beside timm's own and torch.compile, each in a process of its own."""
    from starshift.bench.training import bench_inference, bench_training

    if inference and (amp != "none" or device != "cpu"):
        raise StarshiftError("--inference measures float32 on the CPU: leave out --amp and --device")
    shared: dict[str, Any] = {"size": size, "threads": threads, "modes": _names(modes), "rounds": rounds, "say": _say}
    titles = {"model": "model", "batch": "batch", "size": "pixels", "mode": "mode"}
    if inference:
        rows = bench_inference(models or (), batch=batch or 1, **shared)
        titles |= {"latency_ms": "ms", **RATIO, "note": "note"}
    else:
        rows = bench_training(models or (), batch=batch, amp=amp, device=device, **shared)
        titles |= {"amp": "amp", "images_per_s": "images/s", **RATIO, "memory_mb": "memory MB"}
        titles |= {"model_gflops": "GFLOP/s", "peak_gflops": "of", "note": "note"}
    report(rows, titles, out, as_json)


@app.command()
def accuracy(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Labelled images, as 'starshift eval' takes them.")],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Accuracy of a run and of the files exported from it, with the settings, machine, versions and commit."""
    from starshift.bench.accuracy import bench_accuracy
    from starshift.cli._progress import progress_bar

    def rows() -> Iterator[Row]:
        with progress_bar("eval") as advance:
            yield from bench_accuracy(run, data, on_progress=advance)

    report(rows(), {"model": "model", "evaluated": "evaluated", "top1": "top-1 %", "n": "images"}, out, as_json)


@app.command()
def int8(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder; its data calibrate.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Labelled images, as 'starshift eval' takes them.")],
    formats: Annotated[
        str, typer.Option("--formats", metavar="FORMAT,...", help="Default: all here that have int8.")
    ] = "",
    max_drop: Annotated[float, typer.Option("--max-drop", min=0, help="As of 'starshift export'.")] = 0.5,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Accuracy and size of a run's int8 files beside its float32 files, format by format."""
    from starshift.bench.int8 import bench_int8

    rows = bench_int8(run, data, _names(formats), max_drop=max_drop, say=_say)
    titles = {"model": "model", "format": "format", "top1_fp32": "fp32 %", "top1_int8": "int8 %", "n": "images"}
    report(rows, titles | {"bytes_int8": "bytes", "size_ratio": "of fp32", "kept_float": "in float"}, out, as_json)


@app.command()
def lowerings(
    formats: Annotated[str, typer.Option("--formats", metavar="FORMAT,...", help="Default: all that run here.")] = "",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the runtimes.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Of every way, in turns; medians are shown.")] = 25,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """How a shift and a star's branches are best written for each export format."""
    from starshift.bench.lowerings import bench_lowerings

    rows = bench_lowerings(_names(formats), threads=threads, rounds=rounds, say=_say)
    titles = {"layers": "layers", "format": "format", "written": "written", "ms": "ms", "ratio": "times as fast"}
    report(rows, titles, out, as_json)


def _width_height(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) >= 16 and int(height) >= 16):
        raise StarshiftError(f"--make wants WIDTHxHEIGHT of at least 16x16, such as 500x375, not '{text}'")
    return int(width), int(height)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _say_posted(row: dict[str, Any]) -> None:
    _say(f"{row['model']}, {row['backend']}, {row['threads']} thread(s): {row['latency_ms']} ms on {row['user_agent']}")


def _say(text: str) -> None:
    typer.echo(text, err=True)
