# SPDX-License-Identifier: Apache-2.0
"""Files and folders whose names are not valid UTF-8: a run on them ends, and its tables lead back to them."""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from starshift.cli.main import app
from starshift.infer import paths
from starshift.models import load_model
from starshift.training import Run, train
from tests.training.conftest import TINY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
RED, BROKEN = os.fsdecode(b"r\xe9d"), os.fsdecode(b"\xff.png")


@pytest.fixture
def odd_data(tiny_data: Path, tmp_path: Path) -> Path:
    """The tiny data with a class and two images, one of them broken, that are called by other bytes."""
    data = tmp_path / os.fsdecode(b"d\xe4ta")
    for image in tiny_data.rglob("*.png"):
        name = RED if image.parent.name == "red" else image.parent.name
        copy = data / name / (os.fsdecode(b"\xe9.png") if image.stem == "07" else image.name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(image.read_bytes())
    (data / "green" / BROKEN).write_bytes(b"no image")
    return data


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8", errors="surrogateescape", newline="")))


def test_a_run_ends(odd_data: Path, tmp_path: Path) -> None:
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
    run = train(odd_data, **{**TINY, "epochs": 1, "quiet": False, "stream": printed, "out": tmp_path / "run"}).path
    assert {row["target"] for row in table(run / "validation.csv")} == {"blue", "green", RED}
    assert all(Path(row["name"]).is_file() for row in table(run / "validation.csv"))
    assert [Path(row["name"]).name for row in table(run / "skipped.csv")] == [BROKEN]
    assert RED in Run.open(run).summary["classes"] and RED in load_model(run).classes
    assert (run / "report.html").is_file() and train(resume=run, epochs=2, quiet=True).status == "finished"
    for option in ([], ["--csv"], ["--json"]):
        result = CliRunner().invoke(app, ["eval", str(run), str(odd_data), "--workers=0", *option])
        assert result.exit_code == 0, result.output


def test_stdin_names_files_by_their_bytes(odd_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = odd_data / RED / "00.png"
    stdin = io.TextIOWrapper(io.BytesIO(os.fsencode(file) + b"\n"), "utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert list(paths.expand(["-"])) == [paths.Found(str(file))]
    assert list(paths.expand(["-"])) == [], "read to its end"
