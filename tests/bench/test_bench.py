# SPDX-License-Identifier: Apache-2.0
"""Measuring: rows, paired timings, made photographs and the suite of the loaders."""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from starshift import machine
from starshift.bench import append_row, provenance, read_rows
from starshift.bench.accuracy import bench_accuracy
from starshift.bench.clock import Paired, paired
from starshift.bench.photographs import make_photographs
from starshift.bench.predict import bench_predict
from starshift.bench.rows import check_appendable
from starshift.cli._bench import report
from starshift.cli.bench import app as suites
from starshift.cli.main import app
from starshift.deploy import export
from starshift.errors import StarshiftError
from starshift.machine import checkout, cpu_name, machine_facts, source_commit, versions
from starshift.training import train


def test_machine_and_versions() -> None:
    facts = machine_facts()
    assert facts["cpu"] and facts["cores"] >= 1 and facts["memory_gb"] > 0 and facts["os"]
    found = versions()
    assert {"python", "torch", "torchvision", "timm", "starshift"} <= set(found) and all(found.values())
    row = provenance()
    assert {*facts, *found, "date", "commit"} == set(row)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("AMD EPYC", "AMD EPYC (family 25, model 17)"), ("AMD EPYC 9J14", "AMD EPYC 9J14")],
)
def test_a_processor_without_a_number_is_named_by_family_and_model(
    name: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = f"processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {name}\n\n"
    (tmp_path / "cpuinfo").write_text(facts * 2)
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    assert cpu_name() == shown


def test_rows_are_appended_and_columns_kept(tmp_path: Path) -> None:
    path = tmp_path / "results" / "x.csv"
    append_row(path, {"a": 1, "b": "two, with a comma"})
    append_row(path, {"b": 3, "c": 'a "quote"\nand a line'})
    append_row(path, {"a": 4})
    columns, rows = read_rows(path)
    assert columns == ["a", "b", "c"]
    assert rows == [
        {"a": "1", "b": "two, with a comma", "c": ""},
        {"a": "", "b": "3", "c": 'a "quote"\nand a line'},
        {"a": "4", "b": "", "c": ""},
    ]
    assert [p.name for p in path.parent.iterdir()] == ["x.csv"]


def _append_some(path: Path, writer: int) -> None:
    for i in range(20):
        append_row(path, {"row": f"{writer}.{i}"})


def test_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    path, spawn = tmp_path / "x.csv", multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_append_some, args=(path, i)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {row["row"] for row in read_rows(path)[1]} == {f"{w}.{i}" for w in range(4) for i in range(20)}


def test_what_is_no_table_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2,3\n")
    with pytest.raises(StarshiftError, match="not a table"):
        append_row(path, {"a": 1})
    assert path.read_text() == "a,b\n1,2,3\n"
    with pytest.raises(StarshiftError, match="cannot write"):
        append_row(path / "below.csv", {"a": 1})


ENCODED = "größe,b\n1,2\n"


def test_a_table_in_another_encoding_is_one_message_and_a_spreadsheets_mark_is_none(tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-16"):
        path = tmp_path / f"{encoding}.csv"
        path.write_text(ENCODED, encoding=encoding)
        with pytest.raises(StarshiftError, match="not a CSV file in UTF-8: save it as one"):
            append_row(path, {"b": 3})
        assert path.read_text(encoding=encoding) == ENCODED
    path = tmp_path / "marked.csv"
    path.write_text(ENCODED, encoding="utf-8-sig")
    append_row(path, {"größe": 3})
    assert read_rows(path) == (["größe", "b"], [{"größe": "1", "b": "2"}, {"größe": "3", "b": ""}])


def test_whether_rows_can_be_appended_is_found_out_without_a_trace(tmp_path: Path) -> None:
    check_appendable(tmp_path / "a" / "b" / "x.csv")
    assert not list(tmp_path.iterdir())
    file = tmp_path / "x.csv"
    append_row(file, {"a": 1})
    check_appendable(file)
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"] and len(read_rows(file)[1]) == 1
    for wrong in (file / "below.csv", tmp_path):
        with pytest.raises(StarshiftError, match="cannot write"):
            check_appendable(wrong)


@pytest.mark.parametrize("suite", [command.callback.__name__ for command in suites.registered_commands])
def test_every_suite_looks_at_out_before_it_measures(suite: str, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    out.write_text(ENCODED, encoding="latin-1")
    words = {"accuracy": ["RUN", "DATA"], "int8": ["RUN", "DATA"], "deploy": ["starnet_s9"]}.get(suite, [])
    result = CliRunner().invoke(app, ["bench", suite, *words, "--out", str(out)])
    assert result.exit_code == 2 and "not a CSV file in UTF-8" in result.output, result.output


def test_what_was_measured_is_shown_even_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, row: object) -> None:
        raise StarshiftError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("starshift.bench.rows.append_row", full)
    with pytest.raises(StarshiftError, match="No space"):
        report([{"a": 12.5}], {"a": "how many"}, tmp_path / "x.csv", False)
    assert "12.50" in capsys.readouterr().out
    columns = "model target precision batch threads latency_ms p5_ms p95_ms images_per_s first_ms load_ms memory_mb"
    row = dict.fromkeys([*columns.split(), "file_mb", "top1", "note"], "") | {"model": "mine", "latency_ms": 12.5}
    monkeypatch.setattr("starshift.bench.deploy.bench_deploy", lambda *_, **__: iter([[row]]))
    result = CliRunner().invoke(app, ["bench", "deploy", "mine", "--out", str(tmp_path / "x.csv")])
    assert result.exit_code == 2 and "No space left" in result.stderr and "12.50" in result.stdout


def test_commit_is_marked_where_sources_are_changed(tmp_path: Path) -> None:
    def git(*args: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *args], capture_output=True, text=True, check=True
        ).stdout

    assert source_commit(tmp_path) == ""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1")
    (tmp_path / "b.txt").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")[:12]
    (tmp_path / "b.txt").write_text("2")
    assert source_commit(tmp_path / "src") == commit
    (tmp_path / "src" / "a.py").write_text("2")
    assert source_commit(tmp_path / "src") == source_commit(tmp_path) == commit + "+"


def test_paired_timings_alternate_and_compare() -> None:
    calls: list[str] = []
    result = paired(lambda: (calls.append("o"), time.sleep(0.002)), lambda: (calls.append("p"), time.sleep(0.012)), 4)
    pairs = ["".join(calls[i : i + 2]) for i in range(0, 10, 2)]
    assert pairs in (["op", "po", "op", "po", "op"], ["po", "op", "po", "op", "po"])
    assert len(result.ours) == len(result.peer) == 4 and 2 < result.ratio < 8
    fixed = Paired((1.0, 2.0, 4.0), (3.0, 4.0, 20.0))
    assert fixed.ratio == 3.0 and fixed.ours_s == 2.0 and fixed.peer_s == 4.0


def test_made_photographs_look_like_photographs(tmp_path: Path) -> None:
    make_photographs(tmp_path, 4, 400, 300)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert [f.parent.name for f in files] == ["class0", "class0", "class1", "class1"]
    for file in files:
        image = Image.open(file)
        assert image.size == (400, 300) and image.mode == "RGB"
        assert 1.0 < 8 * file.stat().st_size / (400 * 300) < 4.0, "bits per pixel of a photograph"
        pixels = np.asarray(image, np.float32).mean(2)
        neighbours = np.corrcoef(pixels[:, 1:].ravel(), pixels[:, :-1].ravel())[0, 1]
        assert 0.7 < neighbours < 0.999


def test_bench_loader_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "loader.csv"
    small = ["--size", "32", "--images", "8", "--batch-size", "8", "--rounds", "1", "--out", str(out)]
    result = CliRunner().invoke(app, ["bench", "loader", "--make", "64x48", "--json", *small])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [r["path"] for r in rows] == ["train", "eval"]
    for row in rows:
        assert row["ours_images_per_s"] > 0 and row["peer_images_per_s"] > 0 and row["ratio"] > 0
        assert row["images"] == "made photographs 64x48" and row["torch"] and row["cpu"]
    make_photographs(tmp_path / "mine", 16, 64, 48)
    result = CliRunner().invoke(app, ["bench", "loader", str(tmp_path / "mine"), *small])
    assert result.exit_code == 0 and "torchvision + PIL /s" in result.stdout
    assert len(read_rows(out)[1]) == 4


def test_rows_before_a_failure_are_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measure() -> Iterator[dict[str, Any]]:
        yield {"model": "a", "ms": 1.25}
        assert len(read_rows(out)[1]) == 1, "written as it comes"
        yield {"model": "b", "ms": 2.5}
        raise KeyboardInterrupt

    out = tmp_path / "speed.csv"
    with pytest.raises(KeyboardInterrupt):
        report(measure(), {"model": "model", "ms": "ms"}, out, as_json=False)
    shown = capsys.readouterr().out
    assert "1.25" in shown and "2.50" in shown
    assert [row["model"] for row in read_rows(out)[1]] == ["a", "b"]
    result = CliRunner().invoke(app, ["bench", "starnet_s050", "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 2 and "ends in .csv, not 'page.html'" in result.output, result.output


def test_accuracy_of_a_run_and_of_its_files(tmp_path: Path) -> None:
    few = {"model_args": {"expansion": 1}, "epochs": 1, "workers": 0, "quiet": True}
    run = train("digits", "shiftresnet20", out=tmp_path / "run", **few).path
    export(run, "onnx")
    pytorch, onnx = bench_accuracy(run, "digits")
    assert (pytorch["evaluated"], onnx["evaluated"]) == ("PyTorch", "ONNX")
    assert pytorch["n"] == onnx["n"] > 100 and pytorch["top1"] == onnx["top1"] > 10
    assert pytorch["epochs"] == 1 and "data" not in json.loads(pytorch["settings"])
    with pytest.raises(StarshiftError, match="is not a finished run folder"):
        list(bench_accuracy(tmp_path, "digits"))


def test_bench_loader_mistakes(tmp_path: Path) -> None:
    for args, message in (
        (["--make", "huge"], "WIDTHxHEIGHT"),
        ([str(tmp_path / "no")], "no such folder"),
        (["--workers", "2"], "No such option"),  # they would read ahead while the other side is timed
    ):
        result = CliRunner().invoke(app, ["bench", "loader", *args])
        assert result.exit_code == 2 and message in result.output


def test_bench_predict_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "predict.csv"
    small = ["--images", "3", "--make", "64x48", "--rounds", "1", "--model", "starnet_s050", "--out", str(out)]
    result = CliRunner().invoke(app, ["bench", "predict", "--json", *small])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row["count"] == 3 and row["ours_images_per_s"] > 0 and row["peer_images_per_s"] > 0
    assert row["ratio"] == row["ratio_low"] == row["ratio_high"] > 0 and row["format"] == "onnx" and row["torch"]
    assert len(read_rows(out)[1]) == 1


def test_bench_predict_mistakes(tmp_path: Path) -> None:
    for args, message in (
        (["--model", "starnet_s9"], "Did you mean 'starnet_s"),
        ([str(tmp_path)], "no images below"),
    ):
        result = CliRunner().invoke(app, ["bench", "predict", "--images", "1", "--make", "64x48", *args])
        assert result.exit_code == 2 and message in re.sub(r"\s*│?\n│?\s*", " ", result.output), result.output
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(StarshiftError, match="a process that was to predict failed: 1 of 1 could not be read"):
        list(bench_predict(tmp_path, model="starnet_s050", rounds=1))


def test_an_installed_package_names_no_commit_of_the_repository_it_lies_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(source_commit().removesuffix("+")) >= 12 or checkout() is None
    monkeypatch.setattr("starshift.machine.checkout", lambda: None)
    assert source_commit() == ""
