# SPDX-License-Identifier: Apache-2.0
"""One pass over held-out images: loss, top-1, top-5, and each image's outcome if wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from starshift.data import Batch
from starshift.errors import StarshiftError
from starshift.layers import fold_batchnorm

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
    """Run ``model`` in eval mode over ``batches``; its train or eval mode is put back after. On a CPU a copy runs whose
    batch norms are folded, as ``starshift eval`` folds them.

    Top-5 counts the five best classes, or all where there are fewer. With ``across_processes`` each process brings its
    share of the images and all get the means of the whole. ``after_batch`` may raise to break off.

    Raises:
        StarshiftError: not one image could be read.
    """
    how: dict[str, Any] = {"average": "micro", "validate_args": False, "sync_on_compute": across_processes}
    top1 = MulticlassAccuracy(classes, **how).to(device)
    top5 = MulticlassAccuracy(classes, top_k=min(5, classes), **how).to(device)
    precise = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.zeros(2, dtype=precise, device=device)  # of losses, of images; torchmetrics' mean would drop NaN
    found = Validation(0.0, 0.0, 0.0)
    was_training = model.training
    network = fold_batchnorm(model) if device.type == "cpu" else model.eval()
    try:
        with torch.inference_mode(), autocast(precision, device):
            for batch in batches:
                found.bad.extend(batch.bad)
                if not len(batch.image):
                    continue
                layout = torch.channels_last if channels_last else torch.contiguous_format
                image = batch.image.to(device, non_blocking=True, memory_format=layout)
                target = batch.target.to(device, non_blocking=True)
                logits = network(image).float()
                losses = F.cross_entropy(logits, target, reduction="none")
                top1.update(logits, target)
                top5.update(logits, target)
                sums += torch.stack([losses.sum(dtype=precise), sums.new_tensor(len(losses))])
                if keep_rows:
                    found.rows.extend(_rows(batch.index, target, logits, losses))
                after_batch()
    finally:
        model.train(was_training)
    if across_processes:
        torch.distributed.all_reduce(sums)
    loss, images = sums.tolist()
    if images == 0:
        raise StarshiftError(f"none of the images to validate on could be read; the first: {found.bad[:1]}")
    found.loss, found.top1, found.top5 = loss / images, 100 * float(top1.compute()), 100 * float(top5.compute())
    return found


def _rows(index: Tensor, target: Tensor, logits: Tensor, losses: Tensor) -> list[tuple[int, int, int, float, float]]:
    probability, predicted = logits.softmax(1).max(1)
    return list(
        zip(index.tolist(), target.tolist(), predicted.tolist(), probability.tolist(), losses.tolist(), strict=True)
    )
