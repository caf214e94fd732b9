# SPDX-License-Identifier: Apache-2.0
"""The end of a run: the best network saved, each held-out image judged by it, the summary and the report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from starshift.data import DataSource, eval_loader
from starshift.models import count_macs, save_model
from starshift.preprocessing import Preprocessing
from starshift.training.config import TrainConfig
from starshift.training.display import Display
from starshift.training.epochs import EpochKeeper
from starshift.training.evaluation import validate
from starshift.training.folder import Run, write_csv, write_json
from starshift.training.machine import choose_devices, machine_facts, package_versions
from starshift.training.report import write_report
from starshift.training.task import ClassificationTask


def write_results(
    folder: Path,
    config: TrainConfig,
    task: ClassificationTask,
    keeper: EpochKeeper,
    source: DataSource,
    preprocessing: Preprocessing,
    *,
    seconds: float,
    display: Display,
) -> Run:
    """Write ``model/``, ``validation.csv``, ``summary.json`` and ``report.html`` from ``best.ckpt``."""
    state = torch.load(folder / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    prefix = "ema.module." if task.ema is not None else "model."
    network = task.best_model
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    accelerator, _ = choose_devices(config.devices)
    device = torch.device(accelerator)
    network.to(device).eval()

    loader = eval_loader(source.val, preprocessing, batch_size=config.batch_size, workers=0)
    found = validate(
        network, loader, classes=len(source.classes), device=device, precision=config.precision, channels_last=config.channels_last, keep_rows=True
    )
    network.to("cpu", memory_format=torch.contiguous_format)
    rows = ((i, source.val.name(i), source.classes[t], source.classes[p], round(q, 6), round(x, 6)) for i, t, p, q, x in sorted(found.rows))
    write_csv(folder / "validation.csv", ("index", "name", "target", "predicted", "probability", "loss"), rows)
    size = (preprocessing.channels, *preprocessing.size)
    save_model(
        network, folder / "model", name=config.model, model_args=dict(config.model_args), classes=list(source.classes), preprocessing=preprocessing
    )
    keeper.write_tables()
    timed = [row for row in keeper.rows if row["seconds"] > 0]
    summary: dict[str, Any] = {
        "status": "finished",
        "model": config.model,
        "data": config.data,
        "classes": list(source.classes),
        "train_images": len(source.train),
        "val_images": len(source.val),
        "skipped_images": len(keeper.bad),
        "best_top1": keeper.best["val_top1"],
        "best_top5": keeper.best["val_top5"],
        "best_epoch": keeper.best["epoch"],
        "epochs": len(keeper.rows),
        "seconds": round(seconds, 2),
        "images_per_s": round(sum(r["images_per_s"] * r["seconds"] for r in timed) / sum(r["seconds"] for r in timed), 2),
        "params": sum(p.numel() for p in network.parameters()),
        "macs": count_macs(network, size),
        "img_size": list(preprocessing.size),
        "ended": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": machine_facts(),
        "versions": package_versions(),
    }
    write_json(folder / "summary.json", summary)
    write_report(folder, source.val)
    if keeper.bad:
        display.say(f"{len(keeper.bad)} image(s) could not be read and were left out: {folder / 'skipped.csv'}")
    display.say(f"best top-1 {summary['best_top1']:.2f}% in epoch {summary['best_epoch']}, {seconds:.0f} s, report {folder / 'report.html'}")
    return Run(folder, summary)
