# SPDX-License-Identifier: Apache-2.0
"""The end of the memory is answered with what to do, and leaves the last checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from starshift.errors import StarshiftError
from starshift.training import epochs
from starshift.training.task import ClassificationTask
from tests.training.conftest import Train

CPU = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(CPU),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("epoch", [0, 1])
def test_out_of_memory(
    error: Exception, epoch: int, tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ClassificationTask.training_step

    def step(self: ClassificationTask, *args: Any) -> torch.Tensor:
        if self.current_epoch == epoch:
            raise error
        return original(self, *args)

    monkeypatch.setattr(ClassificationTask, "training_step", step)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(
        StarshiftError, match=r"out of memory: .*--batch-size \(now 8\).*grad_accum_steps.*--workers"
    ) as found:
        tiny_train()
    assert last.is_file() == (str(last) in str(found.value)) == (epoch == 1)


def test_a_killed_worker(tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = epochs.EpochKeeper.on_train_batch_end

    def hook(self: Any, trainer: Any, task: Any, *args: Any) -> None:
        original(self, trainer, task, *args)
        if trainer.current_epoch == 1:
            loader = trainer.train_dataloader.loader
            os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)

    monkeypatch.setattr(epochs.EpochKeeper, "on_train_batch_end", hook)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(StarshiftError, match=r"killed.*fewer --workers .*last.ckpt"):
        tiny_train(workers=1, color_jitter=0.1, epochs=9)
    assert torch.load(last, weights_only=True)["global_step"] == 6


def test_other_errors_stay_what_they_are(tiny_train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> torch.Tensor:
        raise RuntimeError("a mistake in the program")

    monkeypatch.setattr(ClassificationTask, "training_step", step)
    with pytest.raises(RuntimeError, match="a mistake in the program"):
        tiny_train()
