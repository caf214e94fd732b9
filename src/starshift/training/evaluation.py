# SPDX-License-Identifier: Apache-2.0
"""One pass over held-out images: loss, top-1, top-5, and each image's outcome if wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from starshift.data import Batch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Validation:
    """Means over all images, top-1 and top-5 in per cent; ``rows``: (index, target, predicted, probability, loss)."""

    loss: float
    top1: float
    top5: float
    bad: list[tuple[str, str]] = field(default_factory=list)
    rows: list[tuple[int, int, int, float, float]] = field(default_factory=list)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The autocast context of ``fp32`` (none), ``bf16`` or ``fp16``."""
    return torch.autocast(device.type, DTYPES[precision]) if precision in DTYPES else nullcontext()


def validate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    classes: int,
    device: torch.device,
    precision: str = "fp32",
    channels_last: bool = True,
    keep_rows: bool = False,
    across_processes: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> Validation:
    """Run ``model`` in eval mode over ``batches``; its train or eval mode is put back after.

    Top-5 counts the five best classes, or all where there are fewer. With ``across_processes`` each process brings its
    share of the images and all get the means of the whole. ``after_batch`` may raise to break off.
    """
    accuracy = {
        f"top{k}": MulticlassAccuracy(classes, top_k=min(k, classes), average="micro", validate_args=False)
        for k in (1, 5)
    }
    metrics = MetricCollection({**accuracy}, compute_groups=False).to(device)
    total = torch.zeros(
        2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
    )  # loss, images
    for metric in metrics.values():
        metric.sync_on_compute = across_processes
    found = Validation(0.0, 0.0, 0.0)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(precision, device):
            for batch in batches:
                found.bad.extend(batch.bad)
                if not len(batch.image):
                    continue
                layout = torch.channels_last if channels_last else torch.contiguous_format
                image = batch.image.to(device, non_blocking=True, memory_format=layout)
                target = batch.target.to(device, non_blocking=True)
                logits = model(image).float()
                losses = F.cross_entropy(logits, target, reduction="none")
                metrics.update(logits, target)
                total += torch.stack([losses.sum(dtype=total.dtype), total.new_tensor(len(losses))])
                if keep_rows:
                    found.rows.extend(_rows(batch.index, target, logits, losses))
                after_batch()
    finally:
        model.train(was_training)
    if across_processes:
        torch.distributed.all_reduce(total)
    found.loss = float(total[0] / total[1])
    values = metrics.compute()
    found.top1, found.top5 = (100 * float(values[name]) for name in ("top1", "top5"))
    return found


def _rows(index: Tensor, target: Tensor, logits: Tensor, losses: Tensor) -> list[tuple[int, int, int, float, float]]:
    probability, predicted = logits.softmax(1).max(1)
    return list(
        zip(index.tolist(), target.tolist(), predicted.tolist(), probability.tolist(), losses.tolist(), strict=True)
    )
