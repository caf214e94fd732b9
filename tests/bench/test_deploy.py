# SPDX-License-Identifier: Apache-2.0
"""Which file to ship: rows for every form, notes for what fails, and the recommendation drawn from them."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import starshift.bench.deploy as deploy
from starshift.bench import append_row, read_rows
from starshift.bench.deploy import bench_deploy
from starshift.bench.forms import Form, all_forms, choose_forms, whole_numbers
from starshift.bench.pareto import draw, html, latest
from starshift.bench.recommend import pareto_front, recommend
from starshift.bench.remote import Remote, RemoteError, _apart
from starshift.bench.subjects import PEERS, PUBLISHED, Facts, Subject, facts_of, published_top1, subject_of
from starshift.bench.timed import Workshop
from starshift.cli.main import app
from starshift.deploy import export, targets
from starshift.errors import StarshiftError
from tests.bench.room import Room


def test_an_object_in_another_process_answers_fails_and_dies(capfd: pytest.CaptureFixture[str]) -> None:
    room = Remote(Room)
    assert room.call("twice", 21) == 42
    with pytest.raises(StarshiftError, match="mend it"):
        room.call("fail", "mistake")
    with pytest.raises(RemoteError, match=r"^ValueError: first line$"):
        room.call("fail", "else")
    os.kill(room._process.pid or 0, signal.SIGINT)
    assert room.call("twice", 4) == 8, "Ctrl-C is for the one that measures"
    with pytest.raises(RemoteError, match=r"SIGKILL \(out of memory\?\): last words"):
        room.call("die", signal.SIGKILL)
    assert not room.running
    room.end()
    hanging = Remote(Room)
    assert hanging.call("twice", 1) == 2
    with pytest.raises(RemoteError, match="no answer within 0 s"):
        hanging.call("hang", limit_s=0.3)
    assert not hanging.running and capfd.readouterr().out == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps no process to its processors")
def test_a_timed_process_has_as_many_processors_as_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    assert sorted(_apart(before)) == sorted(before)
    for cores, expected in ((1, 1), (10**6, len(before)), (None, len(before))):
        room = Remote(Room, cores=cores)
        assert room.call("processors", limit_s=None) == expected and os.sched_getaffinity(0) == before
        room.end()
    asked: list[Any] = []

    class Asked(Here):
        def __init__(self, *_: Any, **options: Any) -> None:
            asked.append(options)

        def call(self, method: str, *_: Any, **__: Any) -> Any:
            raise RemoteError("enough")

    monkeypatch.setattr(deploy, "Remote", Asked)
    facts = Facts(None, None, None, 32, False)
    deploy.Side(deploy.Plan(Subject("starnet_s1"), Form("eager"), facts), 1, 3).start(None)
    assert asked == [{"cores": 3}]


def test_every_form_of_a_network_is_a_row(small_model: Path, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "deploy.csv"
    few = ["--targets=kernels,onnx", "--rounds=2", "--threads=1", "--batch=3", f"--data={labelled}"]
    result = CliRunner().invoke(app, ["bench", str(small_model), *few, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    fp32 = [row for row in rows if row["precision"] == "fp32"]
    assert [row["target"] for row in fp32] == ["kernels", "onnx"]
    for row in fp32:
        assert 0 < row["p5_ms"] <= row["latency_ms"] <= row["p95_ms"] and row["calls"] >= 2, row
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / row["latency_ms"], rel=0.01)
        assert row["first_ms"] > 0 and row["load_ms"] > 0 and row["note"] == "" and 0 < row["cores_used"] < 1.3
        assert row["params"] > 400_000 and row["macs"] > 1e6 and row["size"] == 32 and row["torch"] and row["cpu"]
        assert row["top1_images"] == 15
        if row["target"] == "onnx":
            assert 1.5 < row["file_mb"] < 3 and float(row["relative_error"]) < 1e-5
    assert len({row["top1"] for row in fp32}) == 1, "the same network answers the same"
    assert len(read_rows(out)[1]) == len(rows)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"ship: .*, batch 3, 1 thread: onnx", result.stderr)


class Here:
    """A remote object that is in this process, for tests of what goes on around it."""

    running = True

    def __init__(self, factory: Any, *arguments: Any, cores: int | None = None) -> None:
        self.made = factory(*arguments)

    def call(self, method: str, *arguments: Any, limit_s: float | None = 0) -> Any:
        assert (limit_s is None) == (method in ("export", "evaluate")), "these take as long as they take"
        return getattr(self.made, method)(*arguments)

    def end(self) -> None:
        self.running = False


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "Remote", Here)


def test_a_file_is_measured_as_it_is(onnx_file: Path, here: None) -> None:
    (row,) = next(bench_deploy([str(onnx_file)], rounds=1))
    assert (row["target"], row["precision"], row["model"]) == ("onnx", "fp32", str(onnx_file))
    assert row["latency_ms"] > 0 and row["params"] > 400_000 and row["macs"] > 1e6 and row["export_s"] == ""
    assert row["file_mb"] == round(onnx_file.stat().st_size / 1e6, 3)


def test_without_trained_weights_int8_is_calibrated_with_any_classes(
    labelled: Path, here: None, tmp_path: Path
) -> None:
    name, wanted = "starnet_s050_32px", ["onnx-int8"]
    (row,) = next(bench_deploy([name], targets=wanted, rounds=1, data=str(labelled)))
    assert (row["target"], row["precision"], row["note"]) == ("onnx", "int8", "")
    assert row["latency_ms"] > 0 and row["file_mb"] < 0.6 and row["top1"] == ""
    for i in range(1001):
        (tmp_path / f"class{i:04d}").mkdir()
        for part in "ab":
            (tmp_path / f"class{i:04d}" / f"{part}.jpg").symlink_to(labelled / "cat" / "0.jpg")
    (row,) = next(bench_deploy([name], targets=wanted, rounds=1, data=str(tmp_path)))
    assert "1001 classes" in row["note"]


def test_timms_network_by_its_own_export_and_what_fails_is_a_note(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "missing", lambda form: "not here" if form.target == "eager" else None)
    wanted = ["eager", "onnx-by-timm"]
    failed, rows = bench_deploy(["timm:mobileone_s0"], targets=wanted, size=32, rounds=1, batches=[2])
    assert [(row["target"], row["note"], row["latency_ms"]) for row in failed] == [("eager", "not here", "")]
    (row,) = rows
    assert row["target"] == "onnx-by-timm" and row["latency_ms"] > 0 and row["file_mb"] > 5 and not row["note"]
    assert row["published_top1"] == "" and row["params"] < 2.2e6, "its branches are merged"


@pytest.mark.parametrize("ends_by", [KeyboardInterrupt(), RemoteError("its process ended with SIGKILL")])
def test_what_was_measured_is_kept(
    ends_by: BaseException, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(Here):
        """The file's side ends in its third turn; the first is to see how many calls fill one."""

        turns = 0

        def __init__(self, factory: Any, *arguments: Any, cores: int | None = None) -> None:
            super().__init__(factory, *arguments)
            self.file = len(arguments) > 1 and arguments[1].is_file

        def call(self, method: str, *arguments: Any, limit_s: float | None = 0) -> Any:
            self.turns += method == "turn"
            if self.turns == 3 and self.file:
                raise ends_by
            return super().call(method, *arguments, limit_s=limit_s)

    monkeypatch.setattr(deploy, "Remote", Ending)
    out = tmp_path / "deploy.csv"
    command = ["bench", str(small_model), "--targets=eager,onnx", "--rounds=3", "--json", "--out", str(out)]
    result = CliRunner().invoke(app, command)
    rows = {row["target"]: row for row in read_rows(out)[1] if row["precision"] == "fp32"}
    assert float(rows["onnx"]["latency_ms"]) > 0 and float(rows["eager"]["latency_ms"]) > 0
    if isinstance(ends_by, KeyboardInterrupt):
        assert result.exit_code == 130 and "interrupted in round 2 of 3" in rows["onnx"]["note"]
    else:
        assert result.exit_code == 0 and "SIGKILL" in rows["onnx"]["note"]
        assert not rows["eager"]["note"] and int(rows["eager"]["calls"]) % 3 == 0, "it took all its turns"
    assert out.with_suffix(".html").exists()


def test_accuracy_is_that_of_the_size_that_was_timed(
    small_model: Path, labelled: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[tuple[str, tuple[int, int]]] = []

    def evaluate(predictor: Any, data: str, workers: int) -> Any:
        evaluated.append((type(predictor).__name__, predictor.preprocessing.size))
        return type("Result", (), {"top1": 50.0, "n": 15})

    monkeypatch.setattr("starshift.infer.evaluate", evaluate)
    wanted = ["eager", "kernels", "onnx-fp32"]
    rows = next(bench_deploy([str(small_model)], targets=wanted, size=40, rounds=1, data=str(labelled)))
    assert evaluated == [("TorchPredictor", (40, 40)), ("OnnxPredictor", (40, 40))]
    assert [(row["size"], row["top1"], row["note"]) for row in rows] == 3 * [(40, 50.0, "")]


def test_a_network_whose_accuracy_cannot_be_measured_is_timed(
    small_model: Path, here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = next(bench_deploy([str(small_model)], targets=["eager", "kernels"], rounds=1, data=str(tmp_path / "no")))
    for found in rows:
        assert found["latency_ms"] > 0 and found["top1"] == "" and found["note"].startswith("accuracy not measured: ")


def test_many_photographs_are_evaluated(small_model: Path, make_photos: Any, tmp_path: Path) -> None:
    """So many that whoever evaluates would like to have processes of its own."""
    photos = make_photos(tmp_path / "photos", 5)
    for number in range(300):
        folder = tmp_path / "data" / ("cat", "dog", "eel")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").symlink_to(photos[number % 5])
    shop = Remote(Workshop)
    try:
        assert shop.call("evaluate", str(small_model), None, str(tmp_path / "data"))[1] == 300
    finally:
        shop.end()


@pytest.mark.parametrize("target", ["compile", "torch", "executorch"])
def test_imports_are_in_no_time_to_load(target: str, tmp_path: Path) -> None:
    source = "starnet_s050_32px"
    if target != "compile":
        if not targets()[target].available():
            pytest.skip(str(targets()[target].missing()))
        source = str(export(source, target, tmp_path / f"model{targets()[target].suffix}"))
    room = Remote(Room)
    try:
        late = room.call("imported_in_loading", target, source)
    finally:
        room.end()
    assert len([name for name in late if name.split(".")[0] in ("torch", "executorch")]) <= 10, late


def test_every_target_that_is_found_is_a_form() -> None:
    assert set(targets()) | {"eager", "compile", "kernels", "onnx-by-timm"} == {form.target for form in all_forms()}
    assert choose_forms(["onnx-fp32", "openvino-int8"]) == [Form("onnx"), Form("openvino", "int8")]
    assert choose_forms(["onnx", "eager"])[0] == Form("eager") and Form("onnx") in choose_forms(["onnx"])
    assert choose_forms([]) == all_forms()
    assert Form("onnx", "int8").name == "onnx-int8" and Form("onnx").name == "onnx"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["starnet_s9"], "Did you mean 'starnet_s"),
        (["timm:starnet_s9"], "Did you mean 'starnet_s"),
        (["trainng"], "Did you mean 'training'?"),
        (["starnet_s1", "--targets=onx"], "Did you mean 'onnx'?"),
        (["starnet_s1", "--threads=0"], "--threads wants whole numbers"),
        (["starnet_s1", "--batch=a"], "--batch wants whole numbers"),
        (["--targets=onnx"], "nothing to measure"),
        (["README.md"], "no exported file"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("no model")
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2 and message in re.sub(r"\s*│?\n│?\s*", " ", result.output), result.output
    assert not (tmp_path / "results").exists()


def test_lists_of_numbers() -> None:
    assert whole_numbers("1, 2,2,32", "--batch") == [1, 2, 32]
    with pytest.raises(StarshiftError, match="--threads"):
        whole_numbers("", "--threads")


def test_published_accuracies_are_those_of_the_models_and_have_a_source() -> None:
    from timm.models import is_model

    from starshift.models import list_models, model_info

    known = published_top1()
    for name in list_models("star*") + list_models("shiftnet*"):
        stated = model_info(name).published_top1.get("imagenet-1k")
        assert known.get(name) == stated, name
    with PUBLISHED.open(newline="") as file:
        assert all(len(row["source"]) > 20 and 50 < float(row["top1"]) < 85 for row in csv.DictReader(file))
    assert all(is_model(name) for name in (*PEERS, *(n for n in known if not n.startswith("shiftnet"))))
    assert subject_of("timm:starnet_s1").timms


def test_a_published_accuracy_is_of_random_weights_in_float32_at_their_own_size(small_model: Path) -> None:
    for text, size, expected in (
        ("starnet_s1", None, 73.5),
        ("starnet_s1", 192, None),
        ("timm:mobileone_s0", 224, 71.4),
        (str(small_model), None, None),
        (f"local-dir:{small_model}", None, None),
    ):
        assert facts_of(Subject(text), size).published == expected, text
    common = {"suite": "deploy", "run": "now"}
    for precision, stated in (("fp32", 73.5), ("bf16", ""), ("int8", "")):
        plan = deploy.Plan(Subject("starnet_s1"), Form("openvino", precision), Facts(73.5, 1, 1, 224, False))
        assert deploy._row(deploy.Side(plan, 1, 1), common, 1)["published_top1"] == stated


def row(target: str, latency: float, precision: str = "fp32", **more: Any) -> dict[str, Any]:
    common = {"model": "a", "batch": 1, "threads": 1, "size": 32, "top1": "", "published_top1": "", "cpu": "one"}
    return {**common, "target": target, "precision": precision, "latency_ms": latency, **more}


def test_the_fastest_file_that_answers_as_well_is_recommended() -> None:
    rows = [row("eager", 50.0), row("compile", 1.0), row("onnx", 10.0), row("openvino", 8.0), row("onnx", 4.0, "int8")]
    (found,) = recommend(rows)
    assert found.row["target"] == "openvino" and found.unknown == ("onnx-int8",)
    assert found.faster == {"onnx": 1.25, "eager": 6.25} and "openvino, 8.00 ms, 1.25 times as fast" in str(found)
    for top1, expected in ((74.6, "int8"), (74.4, "fp32")):
        measured = [{**r, "top1": top1 if r["precision"] == "int8" else 75.0} for r in rows]
        (found,) = recommend(measured)
        assert found.row["precision"] == expected and not found.unknown
    assert recommend([row("onnx", 3.0, latency_ms=""), row("eager", 2.0)]) == []
    assert len(recommend([*rows, row("onnx", 3.0, threads=2)])) == 2
    (found,) = recommend([*rows, row("executorch", 2.0, note="used 1.95 cores, though told 1")])
    assert found.row["target"] == "openvino", "it had more cores than the others"


def test_the_front_has_what_nothing_betters() -> None:
    points = [(5.0, 70.0), (1.0, 60.0), (2.0, 59.0), (5.0, 71.0), (9.0, 80.0), (10.0, 80.0)]
    assert pareto_front(points) == [1, 3, 4]
    assert pareto_front([]) == []


def test_figures_are_drawn_of_the_last_rows_and_hold_no_markup_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    assert not draw_if(path)
    for r in (row("onnx", 10.0), row("onnx", 9.0), row("eager", 30.0, top1=70.0), row("onnx", 7.0, threads=2)):
        append_row(path, {**r, "note": "</script><b>"})
    append_row(path, row("onnx", "", note="failed"))
    picture, page = draw(path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert len(latest(read_rows(path)[1])) == 3 and text.count("</script>") == 1
    data = json.loads(re.search(r"const rows = (\[.*\]);", text).group(1))  # type: ignore[union-attr]
    assert [(d["latency_ms"], d["accuracy"]) for d in data] == [("9.0", None), ("30.0", 70.0), ("7.0", None)]
    assert not re.search(r"""(src|href)\s*=\s*["']|https?://(?!www\.w3\.org)""", html([])), "nothing is fetched"


def test_measured_and_published_accuracies_share_no_axis(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    append_row(path, row("onnx", 10.0, model="mine", top1=93.0, published_top1=73.5))  # its architecture's, on ImageNet
    append_row(path, row("onnx", 9.0, model="timm:starnet_s1", published_top1=73.5))
    append_row(path, row("onnx", 9.0, model="runs/photos", published_top1=73.5))
    append_row(path, row("onnx", 5.0, "int8", model="starnet_s2", published_top1=74.8))

    def accuracies() -> dict[str, Any]:
        data = re.search(r"const rows = (\[.*\]);", draw(path)[1].read_text())
        return {point["model"]: point["accuracy"] for point in json.loads(data.group(1))}  # type: ignore[union-attr]

    without = {"mine": None, "runs/photos": None, "starnet_s2": None}
    assert accuracies() == {**without, "timm:starnet_s1": 73.5}
    append_row(path, row("eager", 30.0, model="mine", top1=93.0, published_top1=""))
    assert accuracies() == {**without, "mine": 93.0, "timm:starnet_s1": None}


def draw_if(path: Path) -> list[Path]:
    append_row(path, row("onnx", "", note="failed"))
    return draw(path)
