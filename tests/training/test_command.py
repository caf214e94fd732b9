# SPDX-License-Identifier: Apache-2.0
"""``starshift train`` as typed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from starshift.cli.main import app
from starshift.ops import _native, kernel_status
from starshift.training import Run

QUICK = ["--model=shiftresnet20", "--epochs=1", "--batch-size=8", "--set", "model_args.expansion=1", "--workers=0"]


def test_json_is_all_there_is_on_stdout(tiny_data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", str(tiny_data), *QUICK, "--out", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["run"] == str(tmp_path / "run") and summary["status"] == "finished" and summary["epochs"] == 1


def test_options_reach_the_config(tiny_data: Path, tmp_path: Path) -> None:
    options = ["--lr=0.02", "--img-size=16", "--precision=bf16", "--devices=cpu", "--seed=7", "--set", "smoothing=0"]
    result = CliRunner().invoke(app, ["train", str(tiny_data), *QUICK, *options, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "1/1" in result.stdout and "report.html" in result.stdout
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    given = {
        "lr": 0.02,
        "img_size": 16,
        "precision": "bf16",
        "devices": "cpu",
        "seed": 7,
        "smoothing": 0.0,
        "workers": 0,
    }
    assert {name: config[name] for name in given} == given
    assert config["model_args"] == {"expansion": 1}


def test_kernels_are_named_and_can_be_turned_off(tiny_data: Path, tmp_path: Path) -> None:
    ran = []
    for option in ([], ["--no-kernels"]):
        run = tmp_path / f"run{len(option)}"
        result = CliRunner().invoke(app, ["train", str(tiny_data), *QUICK, *option, "--out", str(run)])
        assert result.exit_code == 0, result.output
        ran += [line for line in result.stdout.splitlines() if line.startswith("kernels ")]
        assert yaml.safe_load((run / "config.yaml").read_text())["kernels"] == (not option)
    expected = _native.instruction_set() or f"none, plain PyTorch: {_native.why_not()}"
    assert ran[0].startswith(f"kernels {expected}") and ran[1] == "kernels none, as asked: plain PyTorch"
    assert "switched off" not in kernel_status()["shift2d"]["cpu"], "only for the run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the data"),
        (["digits", "--set", "epoch=3"], "Did you mean 'epochs'"),
        (["digits", "--set", "epochs"], "key=value"),
        (["digits", "--recipe=quick", "--config=x.yaml"], "give one of them"),
        (["digits", "--resume=x", "--out=y"], "leave out"),
        (["digits", "--model=starnet_s9"], "starnet_s"),
        (["digits", "--set", "out=x"], "--out x"),
        (["digits", "--set", "resume=x"], "--resume x"),
        (["digits", "--set", "quiet=true"], "unknown setting 'quiet'"),
        (["digits", "--set", "stream=1"], "unknown setting 'stream'"),
        (["digits", "--set", "recipe=quik"], "Did you mean 'quick'"),
        (["digits", "--set", "recipe=quick", "--config=x.yaml"], "give one of them"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_recipe_is_a_setting_too() -> None:
    shown = [
        CliRunner().invoke(app, ["train", "digits", *option, "--show-settings"]).stdout
        for option in (["--recipe=finetune"], ["--set", "recipe=finetune"])
    ]
    assert shown[0] == shown[1] and "recipe: finetune" in shown[0]


def test_only_the_first_process_prints_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starshift.training.train", lambda **_: Run(Path("runs/a"), {}))
    printed = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        printed.append(CliRunner().invoke(app, ["train", "digits", "--json"]).stdout)
    assert json.loads(printed[0]) == {"run": "runs/a"} and printed[1] == ""


def starshift(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "starshift.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_nothing_but_its_own_words(tiny_data: Path, tmp_path: Path) -> None:
    result = starshift("train", str(tiny_data), *QUICK, f"--out={tmp_path / 'run'}")
    assert result.returncode == 0 and result.stderr == ""
    words = [line.split()[0] for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert words == ["model", "data", "how", "kernels", "run", "epoch", "writing", "best"]


def test_two_processes_share_the_images_and_write_one_run(tiny_data: Path, tmp_path: Path) -> None:
    result = starshift("train", str(tiny_data), *QUICK, "--devices=cpu:2", f"--out={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    assert sum(line.startswith("epoch ") for line in result.stdout.splitlines()) == 1
    row = next(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert row["step"] == "3"  # 48 images in batches of 8, two at a time
    with (tmp_path / "run" / "validation.csv").open() as table:
        assert len(list(csv.DictReader(table))) == 12
