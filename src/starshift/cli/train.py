# SPDX-License-Identifier: Apache-2.0
"""``starshift train``: from a folder of images to a run folder with a trained network."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from starshift.cli._options import Json

HELP = "Train a network on a folder of images (or fine-tune one with --pretrained or --checkpoint)."

Data = Annotated[
    str | None,
    typer.Argument(metavar="DATA", help="A folder of images, 'digits', or timm's torch/..., hfds/..., wds/... ."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; --show-settings lists all."),
]


def command(
    data: Data = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A name that 'starshift models' lists, or one of timm's.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="A recipe's name or a YAML file; default: quick; with first weights, finetune."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The config.yaml of another run: do the same again.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run folder; default: runs/MODEL-DATA-N.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with this run folder.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="Start from these weights: a file, a run folder, hf-hub:OWNER/NAME."),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from the weights published for the model; downloads them.")
    ] = False,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Times through the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", "-b", help="Images a step and device.")] = None,
    img_size: Annotated[
        int | None, typer.Option("--img-size", help="Pixels; default: the data's own if small, else the model's.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Learning rate at its peak; default: the recipe's, scaled to the batch."),
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, bf16 or fp16.")] = None,
    devices: Annotated[str | None, typer.Option("--devices", help="auto, cpu, cuda, mps, or a number of GPUs.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", help="Processes that decode images; default: chosen.")
    ] = None,
    kernels: Annotated[
        bool | None, typer.Option("--kernels/--no-kernels", help="Our kernels (default), or plain PyTorch alone.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the split, the order and all else that is random.")
    ] = None,
    settings: Set = None,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print every setting with the value it would have, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    from starshift.errors import StarshiftError
    from starshift.training import TrainingInterrupted, train
    from starshift.training.config import default_recipe, parse_assignments, resolve
    from starshift.training.machine import process_rank

    options: dict[str, Any] = {
        "checkpoint": checkpoint,
        "pretrained": pretrained or None,
        "epochs": epochs,
        "batch_size": batch_size,
        "img_size": img_size,
        "lr": lr,
        "precision": precision,
        "devices": devices,
        "workers": workers,
        "kernels": kernels,
        "seed": seed,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    chosen.update(parse_assignments(settings or []))
    recipe = chosen.pop("recipe", recipe)
    if recipe is not None and config is not None:
        raise StarshiftError("--recipe and --config both name where the settings start: give one of them")
    named = {"data": data, "model": model}
    if show_settings:
        given = {name: value for name, value in named.items() if value is not None}
        start = config or recipe or resume or default_recipe(chosen)
        typer.echo(resolve(start, {**given, **chosen}).to_yaml(), nl=False)
        return
    try:
        run = train(
            **{**{name: value for name, value in named.items() if value is not None}, **chosen},
            recipe=config or recipe,
            out=out,
            resume=resume,
            stream=sys.stderr if as_json else sys.stdout,
        )
    except TrainingInterrupted as stop:
        if process_rank() == 0:
            with suppress(OSError):  # of a terminal that was closed
                typer.echo(str(stop), err=True)
        raise typer.Exit(stop.exit_code) from None
    if as_json and process_rank() == 0:
        import json

        typer.echo(json.dumps({"run": str(run.path), **run.summary}, indent=2))
