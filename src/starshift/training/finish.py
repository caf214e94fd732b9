# SPDX-License-Identifier: Apache-2.0
"""The end of a run: the best network saved, each held-out image judged by it, the summary and the report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from starshift.data import eval_loader
from starshift.machine import machine_facts, versions
from starshift.models import count_macs
from starshift.training.display import Display
from starshift.training.epochs import EpochKeeper
from starshift.training.evaluation import validate
from starshift.training.folder import Run, write_csv, write_json
from starshift.training.report import write_report
from starshift.training.setup import Setup
from starshift.training.task import ClassificationTask


def write_results(
    folder: Path,
    setup: Setup,
    task: ClassificationTask,
    keeper: EpochKeeper,
    *,
    display: Display,
) -> Run:
    """Write ``model/``, ``validation.csv``, ``summary.json`` and ``report.html`` from ``best.ckpt``."""
    config, source = setup.config, setup.source
    display.say("writing the model, its validation and the report")
    state = torch.load(folder / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    prefix = "ema.module." if task.ema is not None else "model."
    network = task.best_model
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    network.to(setup.device).eval()

    loader = keeper.val_loader
    if setup.processes > 1:  # that one holds only this process's share
        loader = eval_loader(source.val, setup.preprocessing, batch_size=config.batch_size, workers=loader.num_workers)
    found = validate(
        network,
        loader,
        classes=len(source.classes),
        device=setup.device,
        precision=config.precision,
        channels_last=config.channels_last,
        keep_rows=True,
    )
    network.to("cpu").to(memory_format=torch.contiguous_format)
    rows = (
        (i, source.val.name(i), source.classes[t], source.classes[p], round(q, 6), round(x, 6))
        for i, t, p, q, x in sorted(found.rows)
    )
    write_csv(folder / "validation.csv", ("index", "name", "target", "predicted", "probability", "loss"), rows)
    setup.save(network, folder)
    keeper.write_tables()
    seconds = keeper.elapsed()
    training = sum(row["seconds"] for row in keeper.rows)
    images = sum(row["images_per_s"] * row["seconds"] for row in keeper.rows)
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
        "images_per_s": round(images / max(training, 1e-9), 2),
        "params": sum(p.numel() for p in network.parameters()),
        "macs": count_macs(network, setup.preprocessing.size),
        "lr": setup.lr,
        "precision": config.precision,
        "img_size": list(setup.preprocessing.size),
        "ended": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": {**machine_facts(), "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    write_json(folder / "summary.json", summary)
    write_report(folder, source.val)
    if keeper.bad:
        display.say(f"{len(keeper.bad)} image(s) could not be read and were left out: {folder / 'skipped.csv'}")
    best = f"best top-1 {summary['best_top1']:.2f}% in epoch {summary['best_epoch']}"
    display.say(f"{best}; {seconds:.0f} s; report {folder / 'report.html'}")
    return Run(folder, summary)
