# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from starshift import machine
from starshift.data import load_image
from starshift.errors import StarshiftError
from starshift.infer import load, predict
from starshift.infer.paths import expand
from starshift.infer.predict import WRITERS, Prediction
from starshift.models import load_model


def test_probabilities_are_the_networks_for_any_batch_size(small_model: Path, make_photos, tmp_path: Path) -> None:
    photos = make_photos(tmp_path, 7)
    loaded = load_model(small_model)
    with torch.inference_mode():
        images = torch.stack([load_image(p, loaded.preprocessing) for p in photos])
        expected = loaded.model.eval()(images).softmax(1)
    for batch_size in (1, 3, 32):
        found = list(predict(small_model, photos, topk=3, batch_size=batch_size, workers=2))
        assert [f.path for f in found] == [str(p) for p in photos]
        for row, prediction in zip(expected, found, strict=True):
            order = row.argsort(descending=True)
            assert prediction.labels == tuple(loaded.classes[i] for i in order)
            assert prediction.probabilities == pytest.approx(row[order].tolist(), abs=1e-5)
            assert sum(prediction.probabilities) == pytest.approx(1)


def test_an_exported_file_stands_in_for_the_run(
    small_model: Path, onnx_file: Path, make_photos, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path, 4)
    for a, b in zip(predict(small_model, photos), predict(onnx_file, photos), strict=True):
        assert a.labels == b.labels
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_bad_images_are_answered_in_their_place(small_model: Path, make_photos, tmp_path: Path) -> None:
    photos = make_photos(tmp_path, 3)
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(photos[0].read_bytes()[:200])
    text = tmp_path / "text.png"
    text.write_text("hello")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    names = [photos[0], truncated, text, photos[1], tmp_path / "missing.jpg", empty, photos[2]]
    found = list(predict(small_model, names, batch_size=2))
    assert [f.path for f in found] == [str(n) for n in names]
    assert [f.error is None for f in found] == [True, False, False, True, False, False, True]
    assert found[4].error == "no such file"
    assert all(bool(f.labels) == (f.error is None) for f in found)


def test_a_batch_of_bad_images_alone_does_not_reach_the_network(small_model: Path, tmp_path: Path) -> None:
    found = list(predict(small_model, [tmp_path / "a.jpg", tmp_path / "b.jpg"]))
    assert [f.error for f in found] == ["no such file"] * 2


def test_topk_is_at_most_the_classes(small_model: Path, make_photos, tmp_path: Path) -> None:
    photos = make_photos(tmp_path, 1)
    (found,) = predict(small_model, photos, topk=50)
    assert len(found.labels) == 3
    with pytest.raises(StarshiftError, match="topk"):
        predict(small_model, photos, topk=0)


def test_decoding_stays_a_bounded_way_ahead(small_model: Path, make_photos, tmp_path: Path) -> None:
    photos = make_photos(tmp_path, 2)
    asked: list[int] = []

    def endless():
        while True:
            asked.append(1)
            yield str(photos[len(asked) % 2])

    stream = predict(small_model, endless(), batch_size=4, workers=2)
    assert len(list(islice(stream, 6))) == 6
    stream.close()
    assert 6 <= len(asked) <= 6 + 3 * 4


@pytest.mark.parametrize(("cores", "workers", "threads"), [(128, None, 8), (1, None, 1), (128, 0, 1), (1, 3, 3)])
def test_threads_that_decode(
    cores: int,
    workers: int | None,
    threads: int,
    small_model: Path,
    make_photos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, number: int, **settings: Any) -> None:
            pools.append(number)
            super().__init__(number, **settings)

    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    monkeypatch.setitem(predict.__globals__, "ThreadPoolExecutor", Pool)
    assert len(list(predict(small_model, make_photos(tmp_path, 2), workers=workers))) == 2
    assert pools == [threads]


def test_folders_patterns_and_files_expand_in_order(make_photos, tmp_path: Path) -> None:
    make_photos(tmp_path / "b" / "deep", 2)
    make_photos(tmp_path / "a", 1)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / ".hidden.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()

    def names(*paths: str) -> list[tuple[str, str | None]]:
        return [(str(Path(f.path).relative_to(tmp_path)), f.error) for f in expand(f"{tmp_path}/{p}" for p in paths)]

    everything = [("a/000.jpg", None), ("b/deep/000.jpg", None), ("b/deep/001.jpg", None)]
    assert names("") == everything
    assert names("**/*.jpg") == everything
    assert names("b", "a/000.jpg") == [*everything[1:], everything[0]]
    assert names("a/notes.txt") == [("a/notes.txt", None)]  # named outright: tried, and then reported
    assert names("*.gif") == [("*.gif", "nothing matches")]
    assert names("empty") == [("empty", "no images in this folder")]


def test_linked_folders_are_entered_once_as_in_training(make_photos, tmp_path: Path) -> None:
    make_photos(tmp_path / "elsewhere", 1)
    (tmp_path / "all").mkdir()
    for link in ("a", "b", "c"):
        (tmp_path / "all" / link).symlink_to(tmp_path / ("all" if link == "c" else "elsewhere"))
    assert [Path(f.path).relative_to(tmp_path).as_posix() for f in expand([tmp_path / "all"])] == ["all/a/000.jpg"]


def test_a_name_with_brackets_that_exists_is_no_pattern(make_photos, tmp_path: Path) -> None:
    (photo,) = make_photos(tmp_path, 1)
    odd = photo.rename(tmp_path / "holiday [1].jpg")
    assert [f.path for f in expand([odd])] == [str(odd)]


def test_names_come_from_stdin(make_photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_photos(tmp_path, 2)
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{p}\n\n" for p in photos)))
    assert [f.path for f in expand(["-"])] == [str(p) for p in photos]


def test_rows_of_both_formats() -> None:
    good = Prediction("a.jpg", ("x, y", "z"), (0.75, 0.25))
    bad = Prediction("b\udcff.jpg", error="truncated")
    text = io.StringIO()
    write = WRITERS["jsonl"](text, 2)
    for prediction in (good, bad):
        write(prediction)
    first, second = map(json.loads, text.getvalue().splitlines())
    assert first["predictions"] == [{"label": "x, y", "probability": 0.75}, {"label": "z", "probability": 0.25}]
    assert second == {"path": "b\udcff.jpg", "error": "truncated"}
    text = io.StringIO()
    write = WRITERS["csv"](text, 2)
    for prediction in (good, bad):
        write(prediction)
    first, second = csv.DictReader(io.StringIO(text.getvalue()))
    assert first["label_1"] == "x, y" and float(first["probability_2"]) == 0.25 and first["error"] == ""
    assert second["label_1"] == "" and second["error"] == "truncated"


def test_a_predictor_is_used_as_it_is(small_model: Path, make_photos, tmp_path: Path) -> None:
    photos = make_photos(tmp_path, 1)
    assert list(predict(load(small_model), photos[0])) == list(predict(small_model, [str(photos[0])]))
