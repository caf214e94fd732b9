# SPDX-License-Identifier: Apache-2.0
"""The commands through Typer's runner, which has no terminal: no bars, plain lines."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from starshift.cli.main import app
from starshift.deploy import get_target
from starshift.models import list_models, model_info


def run(*args: object, code: int = 0, stdin: str | None = None) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in args], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_eval_prints_lines_json_and_csv(small_model: Path, labelled: Path, tmp_path: Path) -> None:
    text = run("eval", small_model, labelled, "--workers", 0).stdout
    result = json.loads(run("eval", small_model, labelled, "--workers", 0, "--json").stdout)
    assert f"top-1 {result['top1']:.2f}%" in text and "15 images" in text
    assert "skipped 1 images" in text and "broken.jpg" in text
    table = run("eval", small_model, labelled, "--workers", 0, "--csv", "--out", tmp_path / "r.json")
    assert [r["class"] for r in csv.DictReader(io.StringIO(table.stdout))] == ["cat", "dog", "eel", "(all)"]
    assert "broken.jpg" in table.stderr
    assert json.loads((tmp_path / "r.json").read_text())["confusion"] == result["confusion"]


def test_eval_takes_an_exported_file(small_model: Path, onnx_file: Path, labelled: Path) -> None:
    of_run, of_file = (json.loads(run("eval", m, labelled, "-j", 0, "--json").stdout) for m in (small_model, onnx_file))
    assert of_file["confusion"] == of_run["confusion"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "--csv"], "exclude each other"),
        (["--out", "r.txt"], "written as .csv or .json"),
        (["--out", "none/r.csv"], "there is no folder none"),
    ],
)
def test_eval_refuses_before_it_works(small_model: Path, labelled: Path, options: list[str], message: str) -> None:
    assert message in run("eval", small_model, labelled, *options, code=2).stderr


def test_predict_writes_json_lines(small_model: Path, make_photos, tmp_path: Path) -> None:
    photos = make_photos(tmp_path, 3)
    result = run("predict", small_model, tmp_path, "--topk", 2)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [r["path"] for r in rows] == [str(p) for p in photos]
    assert all(len(r["predictions"]) == 2 for r in rows)
    assert result.stderr == ""


def test_predict_counts_the_bad_and_says_so_by_its_exit_code(small_model: Path, make_photos, tmp_path: Path) -> None:
    (good,) = make_photos(tmp_path, 1)
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    result = run("predict", small_model, good, bad, tmp_path / "no*.jpg", "--format", "csv", code=1)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [bool(r["error"]) for r in rows] == [False, True, True]
    assert rows[0]["label_1"] in ("cat", "dog", "eel") and "label_3" in rows[0] and "label_4" not in rows[0]
    assert "2 of 3 could not be read" in result.stderr


def test_predict_reads_stdin_and_writes_a_file(small_model: Path, make_photos, tmp_path: Path) -> None:
    photos = make_photos(tmp_path, 2)
    out = tmp_path / "answers.jsonl"
    result = run("predict", small_model, "-", "--out", out, stdin="".join(f"{p}\n" for p in photos))
    assert result.stdout == ""
    assert [json.loads(line)["path"] for line in out.read_text().splitlines()] == [str(p) for p in photos]


def test_predict_refuses_an_unknown_format(small_model: Path) -> None:
    message = run("predict", small_model, "x.jpg", "--format", "cvs", code=2).stderr
    assert "jsonl or csv, not 'cvs'. Did you mean 'csv'?" in message


def test_predict_that_cannot_write_says_where(small_model: Path, make_photos, tmp_path: Path) -> None:
    make_photos(tmp_path, 1)
    message = run("predict", small_model, tmp_path, "--out", tmp_path / "none" / "a.csv", code=2).stderr
    assert message == f"error: No such file or directory: {tmp_path / 'none' / 'a.csv'}\n"


def test_export_tells_the_error_it_measured(small_model: Path, labelled: Path, tmp_path: Path) -> None:
    text = run("export", small_model, "--out", tmp_path / "a.onnx", "--data", labelled).stdout
    assert str(tmp_path / "a.onnx") in text and f"on 5 images of {labelled}" in text
    assert "relative error of the logits against PyTorch" in text
    shown = run("predict", tmp_path / "a.onnx", labelled / "cat").stdout
    assert len(shown.splitlines()) == 5


def test_a_file_with_random_weights_says_so(onnx_file: Path, labelled: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(onnx_file)
    next(fact for fact in model.metadata_props if fact.key == "trained").value = "false"
    path = tmp_path / "random.onnx"
    onnx.save(model, path)
    warning = f"warning: {path} was exported with random weights and names nothing right\n"
    shown = run("predict", path, labelled / "cat")
    assert shown.stderr == warning and len(shown.stdout.splitlines()) == 5
    result = run("eval", path, labelled, "-j", 0, "--json")
    assert result.stderr == warning and json.loads(result.stdout)["trained"] is False
    assert run("predict", onnx_file, labelled / "cat").stderr == ""


def test_export_of_a_name_warns_and_takes_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = get_target("onnx")
    monkeypatch.setattr(target, "export", lambda model, example, metadata, path: path.write_bytes(b""))
    monkeypatch.setattr(target, "check", lambda model, path, images: 0.0)
    words = ("export", "shiftresnet20", "--out", tmp_path / "a.onnx")
    result = run(*words, "--json")
    assert [line for line in result.stderr.splitlines() if "random weights" in line] == result.stderr.splitlines()
    assert json.loads(result.stdout)["model"] == "shiftresnet20" and result.stderr.startswith("warning: ")
    assert "no pretrained weights for shiftresnet20" in run(*words, "--pretrained", code=2).stderr


def test_export_lists_the_formats_there_are(small_model: Path) -> None:
    assert "no export format 'flax'. There are: " in run("export", small_model, "--format", "flax", code=2).stderr


def test_models_prints_a_table_and_json() -> None:
    rows = json.loads(run("models", "starnet", "--json").stdout)
    assert [r["name"] for r in rows] == list_models("*starnet*")
    s1 = next(r for r in rows if r["name"] == "starnet_s1")
    assert s1["params"] == model_info("starnet_s1").params
    table = run("models", "starnet_s?").stdout
    assert table.count("starnet_s") == 4 and "MACs" in table and "224x224" in table
    assert "2.87M" in table  # parameters of StarNet-S1
    assert "no model matches 'alexnet'" in run("models", "alexnet", code=2).stderr


def test_info_prints_lines_and_json() -> None:
    facts = json.loads(run("info", "--json").stdout)
    text = run("info").stdout
    for operator in facts["kernels"]:
        assert operator in text
    assert facts["versions"]["torch"] in text and "onnxruntime" in text
