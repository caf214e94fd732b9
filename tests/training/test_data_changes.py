# SPDX-License-Identifier: Apache-2.0
"""A resumed run and its data: the same, moved, with images that came or went, or with other classes."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from starshift.data import Fingerprint, open_data
from starshift.errors import StarshiftError
from starshift.infer import evaluate
from starshift.training import Run, TrainingInterrupted, train
from tests.data.test_named import write_shard
from tests.training.conftest import Train
from tests.training.test_resume import signal_after


@pytest.fixture
def photos(tiny_data: Path, tmp_path: Path) -> Path:
    """The tiny data, to be changed."""
    return Path(shutil.copytree(tiny_data, tmp_path / "photos"))


@pytest.fixture
def begun(photos: Path, tiny_train: Train) -> Run:
    """A run of one epoch on ``photos``."""
    return tiny_train(data=str(photos), epochs=1)


def held_out(run: Path) -> set[str]:
    with (run / "validation.csv").open() as table:
        return {"/".join(Path(row["name"]).parts[-2:]) for row in csv.DictReader(table)}


def go_on(run: Run, **settings: object) -> tuple[Run, str]:
    printed = io.StringIO()
    return train(resume=run.path, epochs=2, stream=printed, **settings), printed.getvalue()  # type: ignore[arg-type]


def test_what_was_held_out_stays_held_out(photos: Path, begun: Run) -> None:
    before = held_out(begun.path)
    training = sorted(f"{p.parent.name}/{p.name}" for p in photos.glob("*/*.png"))
    gone = [name for name in training if name not in before][:5] + sorted(before)[:1]
    for name in gone:
        (photos / name).unlink()
    for i in range(5):
        shutil.copy(photos / "red" / "19.png", photos / "blue" / f"0{i}-new.png")
    resumed, printed = go_on(begun)
    after = held_out(resumed.path)
    assert after - {name for name in after if "new" in name} == before - set(gone)
    entered = len(after) - len(before) + 1
    assert f"{5 - entered} new and 5 gone of the images to train on, {entered} new and 1 gone" in printed
    assert "what was held out stays held out" in printed
    evaluated = evaluate(resumed.path, photos)
    assert evaluated.held_out and evaluated.n == len(after)


def test_nothing_is_said_of_data_that_are_the_same(begun: Run) -> None:
    assert "changed since" not in go_on(begun)[1]


def test_in_the_middle_of_an_epoch_fewer_images_may_be_left(
    photos: Path, tiny_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_after(monkeypatch, 5)
    with pytest.raises(TrainingInterrupted) as stop:
        tiny_train(data=str(photos))
    for path in sorted(photos.glob("*/1*.png"))[:24]:
        path.unlink()
    resumed = train(resume=stop.value.run, quiet=True)
    assert resumed.summary["epochs"] == 2


def rename(photos: Path) -> None:
    (photos / "red").rename(photos / "amber")


def add(photos: Path) -> None:
    (photos / "grey").mkdir()
    shutil.copy(photos / "red" / "00.png", photos / "grey")


@pytest.mark.parametrize(
    ("change", "what"),
    [(rename, r"new: 'amber'; gone: 'red'"), (add, "new: 'grey'"), (lambda p: shutil.rmtree(p / "red"), "gone: 'red'")],
)
def test_other_classes_are_refused(change: Callable[[Path], None], what: str, photos: Path, begun: Run) -> None:
    change(photos)
    with pytest.raises(StarshiftError, match=rf"other classes than this run began with \({what}\)"):
        go_on(begun)


def test_other_data_of_as_many_classes_are_refused(photos: Path, begun: Run) -> None:
    other = photos.rename(photos.with_name("other"))
    for name in ("red", "green", "blue"):
        (other / name).rename(other / f"{name}-2")
    with pytest.raises(StarshiftError, match="other has other classes"):
        go_on(begun, data=str(other))


def test_one_side_of_the_data_may_not_be_empty(photos: Path, begun: Run) -> None:
    for name in held_out(begun.path):
        (photos / name).unlink()
    with pytest.raises(StarshiftError, match="none to validate on are left"):
        go_on(begun)


def test_the_data_are_found_from_another_folder(
    photos: Path, tiny_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    run = tiny_train(data="photos", epochs=1)
    assert yaml.safe_load((run.path / "config.yaml").read_text())["data"] == str(photos.resolve())
    monkeypatch.chdir("/")
    assert go_on(run)[0].summary["epochs"] == 2


def test_shards_are_found_from_another_folder(
    tmp_path: Path, tiny_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "shards" / "x-train-0000.tar", [(f"a/{i:03}", i % 2) for i in range(12)])
    write_shard(tmp_path / "shards" / "x-validation-0000.tar", [(f"v/{i:03}", i % 2) for i in range(4)])
    monkeypatch.chdir(tmp_path)
    run = tiny_train(data="wds/shards", epochs=1, img_size=16)
    monkeypatch.chdir("/")
    assert go_on(run)[0].summary["epochs"] == 2


def test_where_it_cannot_be_told_what_was_held_out(photos: Path) -> None:
    source = open_data(photos)
    began = Fingerprint.of(source, 0)
    assert began.changes(Fingerprint.of(replace(source, name="elsewhere"), 0), source) == ""
    other = replace(source, train=source.val)
    for found in (replace(other, root=None), replace(other, boundaries=None)):  # no folder; now with val/
        with pytest.raises(StarshiftError, match="whether images that were held out would be trained on"):
            began.changes(Fingerprint.of(found, 0), found)
