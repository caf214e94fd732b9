# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped and resumed ends bit-equal on the CPU to one that never stopped, wherever it was stopped."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from starshift.errors import StarshiftError
from starshift.models import load_model
from starshift.training import Run, TrainingInterrupted, epochs, resolve, train
from tests.training.conftest import TINY, Train

# Everything random in a step, averaged weights, and two batches an update: 6 batches, 3 updates an epoch.
SETTINGS: dict[str, Any] = {
    "drop": 0.1,
    "mixup": 0.2,
    "cutmix": 0.5,
    "reprob": 0.3,
    "model_ema": True,
    "model_ema_decay": 0.9,
    "grad_accum_steps": 2,
    "epochs": 3,
}
CLOCKED = ("seconds", "images_per_s", "earlier")


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - set(CLOCKED):
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, averaged weights, optimiser, rows and the model that is kept."""
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (a, b)]
    for part in ("state_dict", "optimizer_states", "global_step", "callbacks", "epoch_so_far"):
        assert_equal(states[0][part], states[1][part], part)
    rows = [list(csv.DictReader((run / "metrics.csv").open())) for run in (a, b)]
    assert_equal(rows[0], rows[1], "metrics.csv")
    for name in ("validation.csv", "model/model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.fixture(scope="module")
def unbroken(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(**{**TINY, **SETTINGS, "data": str(tiny_data), "out": tmp_path_factory.mktemp("unbroken") / "run"})


def signal_after(monkeypatch: pytest.MonkeyPatch, batch: int, signum: int = signal.SIGINT) -> None:
    """Send this process a signal once, when ``batch`` batches of the run are done."""
    seen = []
    original = epochs.EpochKeeper.on_train_batch_end

    def hook(self: Any, *args: Any) -> None:
        seen.append(1)
        if len(seen) == batch:
            signal.raise_signal(signum)
        original(self, *args)

    monkeypatch.setattr(epochs.EpochKeeper, "on_train_batch_end", hook)


def stopped(
    monkeypatch: pytest.MonkeyPatch, batch: int, start: Train, signum: int = signal.SIGINT, **settings: Any
) -> TrainingInterrupted:
    """What ``start(**settings)`` ends with when it gets a signal after ``batch`` batches."""
    signal_after(monkeypatch, batch, signum)
    with pytest.raises(TrainingInterrupted) as stop:
        start(**settings)
    return stop.value


# 1 and 7 fall inside an update, 2 and 10 on its end, 5 just before the end of an epoch, 12 on one, 17 before the last.
@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (2, 2), (5, 0), (7, 2), (10, 0), (12, 2), (17, 0)])
def test_resumed_equals_unbroken(
    batch: int, workers: int, tiny_train: Train, unbroken: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_after(monkeypatch, batch)
    with pytest.raises(TrainingInterrupted, match="starshift train --resume") as stop:
        tiny_train(workers=workers, **SETTINGS)
    assert stop.value.exit_code == 130
    resumed = train(resume=stop.value.run, quiet=True)
    assert_same_run(unbroken.path, resumed.path)


@pytest.mark.parametrize("epoch", [1, 3])
def test_stopped_in_validation(epoch: int, tiny_train: Train, unbroken: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = epochs.validate

    def validate(*args: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == epoch:
            signal.raise_signal(signal.SIGTERM)
        return original(*args, **settings)

    monkeypatch.setattr(epochs, "validate", validate)
    with pytest.raises(TrainingInterrupted) as stop:
        tiny_train(**SETTINGS)
    assert stop.value.exit_code == 143
    assert_same_run(unbroken.path, train(resume=stop.value.run, quiet=True).path)


@pytest.mark.usefixtures("with_a_terminal")
def test_a_closed_terminal_stops_like_sigterm_unless_it_is_ignored(
    tiny_train: Train, unbroken: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = stopped(monkeypatch, 4, tiny_train, signal.SIGHUP, **SETTINGS)
    assert stop.exit_code == 129
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        signal_after(monkeypatch, 4, signal.SIGHUP)
        assert_same_run(unbroken.path, train(resume=stop.run, quiet=True).path)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Killed(Exception):
    """What ends a run without asking."""


@pytest.mark.parametrize(("minutes", "kept"), [(1e-9, 4), (10, 3), (0, 3)])
def test_a_killed_run_goes_on_from_the_checkpoint_of_the_last_minutes(
    minutes: float, kept: int, tiny_train: Train, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = epochs.EpochKeeper.on_train_batch_end

    def hook(self: Any, *args: Any) -> None:
        original(self, *args)
        seen.append(1)
        if len(seen) == 9:  # 6 batches an epoch, 2 an update: in the middle of the fifth update
            raise Killed

    monkeypatch.setattr(epochs.EpochKeeper, "on_train_batch_end", hook)
    with pytest.raises(Killed):
        tiny_train(checkpoint_minutes=minutes, **SETTINGS)
    monkeypatch.undo()
    run = tmp_path / "run"
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == kept
    assert_same_run(unbroken.path, train(resume=run, quiet=True, checkpoint_minutes=0).path)


def test_more_devices_keep_to_the_schedule(tiny_train: Train) -> None:
    schedule = {"lr": 0.01, "sched": "cosine", "warmup_epochs": 0}
    rates = [
        row["lr"]
        for row in csv.DictReader((tiny_train("two", batch_size=16, epochs=3, **schedule).path / "metrics.csv").open())
    ]
    run = tiny_train("one", epochs=1, **schedule).path
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        config.replace("batch_size: 8\n", "batch_size: 16\n")
    )  # an epoch in half the updates
    rows = list(csv.DictReader((train(resume=run, epochs=3, quiet=True).path / "metrics.csv").open()))
    assert [row["lr"] for row in rows[1:]] == rates[1:]
    assert [row["step"] for row in rows] == ["6", "9", "12"]


def test_an_epoch_broken_off_wants_as_many_devices_as_before(
    tiny_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(monkeypatch, 2, tiny_train, **SETTINGS).run
    with pytest.raises(StarshiftError, match=r"within an epoch, on 1 device.* not 2: resume with --devices 1"):
        train(resume=run, devices="cpu:2", quiet=True)
    assert resolve(run / "config.yaml").devices == "auto"


def test_resuming_needs_no_first_weights(
    tiny_train: Train, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.ckpt"
    weights.write_bytes((unbroken.path / "checkpoints" / "best.ckpt").read_bytes())
    stop = stopped(monkeypatch, 2, tiny_train, checkpoint=str(weights), epochs=1, recipe="quick")
    weights.unlink()
    assert train(resume=stop.run, quiet=True).status == "finished"


def test_a_stopped_run_can_be_used_with_the_best_weights_so_far(
    tiny_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(monkeypatch, 9, tiny_train, **SETTINGS).run
    kept = load_model(run)
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert kept.classes == ["blue", "green", "red"]
    assert all(torch.equal(value, best[f"ema.module.{name}"]) for name, value in kept.model.state_dict().items())


def test_stopped_twice(tiny_train: Train, unbroken: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped(monkeypatch, 3, tiny_train, **SETTINGS).run
    stopped(monkeypatch, 5, train, resume=run, quiet=True)
    resumed = train(resume=run / "checkpoints" / "last.ckpt", quiet=True)
    assert_same_run(unbroken.path, resumed.path)


def test_the_command_answers_sigterm_with_a_checkpoint_and_how_to_go_on(
    tiny_data: Path, tmp_path: Path, tiny_train: Train
) -> None:
    settings = {"epochs": 16, "batch_size": 8, "workers": 2, "model": TINY["model"]}
    out = tmp_path / "stopped"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "starshift.cli.main", "train", str(tiny_data), f"--out={out}", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command += ["--set", "model_args.expansion=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "best.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert f"starshift train --resume {out}" in errors
    assert "Traceback" not in errors and "epoch  1/16" in printed
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = train(resume=out, quiet=True)
        assert_same_run(tiny_train("unbroken", **{**settings, "workers": 0}).path, resumed.path)
    finally:
        torch.set_num_threads(threads)


def test_what_cannot_be_resumed(
    tiny_train: Train, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StarshiftError, match="no such run folder"):
        train(resume=tmp_path / "nowhere", quiet=True)
    with pytest.raises(StarshiftError, match="nothing to go on with"):
        train(resume=tmp_path, quiet=True)
    with pytest.raises(StarshiftError, match="is finished"):
        train(resume=unbroken.path, quiet=True)
    with pytest.raises(StarshiftError, match=r"last.ckpt alone.*--checkpoint .*best.ckpt"):
        train(resume=unbroken.path / "checkpoints" / "best.ckpt", epochs=9, quiet=True)
    with pytest.raises(StarshiftError, match="no such checkpoint"):
        train(resume=unbroken.path / "checkpoints" / "third.ckpt", epochs=9, quiet=True)
    run = stopped(monkeypatch, 9, tiny_train, **SETTINGS).run
    with pytest.raises(StarshiftError, match=r"1 epoch\(s\) and a part.*go on to --epochs 1"):
        train(resume=run, epochs=1, quiet=True)
    assert resolve(run / "config.yaml").epochs == SETTINGS["epochs"]
    with pytest.raises(StarshiftError, match="keeps its settings: lr was None"):
        train(resume=run, lr=0.5, quiet=True)
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(StarshiftError, match="damaged"):
        train(resume=run, quiet=True)


def test_a_finished_run_goes_on_with_more_epochs(tiny_train: Train) -> None:
    run = tiny_train(epochs=1)
    longer = train(resume=run.path, epochs=2, quiet=True)
    assert longer.summary["epochs"] == 2
    assert [row["epoch"] for row in csv.DictReader((run.path / "metrics.csv").open())] == ["1", "2"]
