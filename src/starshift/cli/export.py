# SPDX-License-Identifier: Apache-2.0
"""``starshift export``: a checked file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from starshift.cli._options import Json

HELP = "Write a run or a model as one file for another runtime, checked against PyTorch."


def command(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN|MODEL", help="A run or model folder, or one of 'starshift models'."),
    ],
    format: Annotated[str, typer.Option("--format", "-f", help="Kind of file; see 'starshift info'.")] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Default: model.onnx or model-int8.onnx in the run's folder, or here."),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Images to check on; default: the run's.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="Weights for a model's name; else random.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="The published weights for a model's name.")] = False,
    img_size: Annotated[int | None, typer.Option("--img-size", min=1, help="Side of the input, pixels.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, fp16 or bf16, as the format has them.")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option("--quantize", help="int8: calibrated on the run's images, or on those of --data.")
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0, help="Points of top-1 that int8 may lose; else layers stay float.")
    ] = 0.5,
    as_json: Json = False,
) -> None:
    from starshift.deploy import export_checked

    if not as_json:
        typer.echo(f"exporting {run} to {format} ...", err=True)
    done = export_checked(
        run,
        format,
        out,
        data=data,
        checkpoint=checkpoint,
        pretrained=pretrained,
        img_size=img_size,
        precision=precision,
        quantize=quantize,
        max_drop=max_drop,
        on_step=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({**asdict(done), "path": str(done.path)}))
        return
    checked = "not compared with PyTorch: no such file can answer on this machine"
    if done.relative_error is not None:
        checked = f"relative error of the logits against PyTorch {done.relative_error:.1e}"
        checked += f" on {done.checked_on}, batches of 1 and 5"
    typer.echo(f"{done.path} ({done.size / 1e6:.2f} MB, {done.precision}, {done.seconds:.0f} s): {checked}")
    if done.int8 is not None:
        kept, q = done.int8.kept_float, done.int8
        typer.echo(
            f"top-1 {q.top1:.2f}% after {q.top1_float:.2f}% in float, on {q.n} held-out images; of {q.layers} layers"
            f" {len(kept)} stayed in float{': ' + ', '.join(kept) if kept else ''}"
        )
