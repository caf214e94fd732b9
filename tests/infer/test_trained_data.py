# SPDX-License-Identifier: Apache-2.0
"""``eval`` knows the data that a network was trained on by their fingerprint, and takes all of any others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from starshift.cli import eval as command
from starshift.data import Fingerprint, open_data
from starshift.deploy import Metadata, TrainedOn, _int8
from starshift.deploy._source import open_source
from starshift.infer import evaluate
from starshift.preprocessing import Preprocessing
from tests.conftest import CLASSES, MakePhotos


class Same:
    """A predictor that says the same of every image."""

    name = "same"
    classes = tuple(CLASSES)
    preprocessing = Preprocessing((8, 8))
    trained = True

    def __init__(self, trained_on: TrainedOn) -> None:
        self.trained_on = trained_on

    def logits(self, batch: Tensor) -> Tensor:
        return torch.zeros(len(batch), 3)


@pytest.fixture
def photos(tmp_path: Path, make_photos: MakePhotos) -> Path:
    """20 photographs a class, which are to be trained on."""
    for name in CLASSES:
        make_photos(tmp_path / "photos" / name, 20)
    return tmp_path / "photos"


def trained_on(photos: Path) -> TrainedOn:
    data = open_data(photos, seed=5)
    return TrainedOn(str(photos), {"val_fraction": 0.2, "seed": 5}, Fingerprint.of(data, 5).to_dict())


def test_the_held_out_part_is_taken_wherever_the_data_lie(photos: Path, tmp_path: Path) -> None:
    network = Same(trained_on(photos))
    copy = shutil.copytree(photos, tmp_path / "copy")
    for folder in (photos, copy):
        found = evaluate(network, folder, workers=0)
        assert found.held_out and found.n == 12 and not found.note


def test_a_fresh_test_set_of_the_same_name_is_measured_whole(
    photos: Path, tmp_path: Path, make_photos: MakePhotos, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Same(trained_on(photos))
    for name in CLASSES:  # at the very same path, even, and with the same file names
        for i, path in enumerate(make_photos(photos / name, 20)):
            path.write_bytes(path.read_bytes() + b"." * (1 + i))
        (photos / name / "000.jpg").unlink()
    monkeypatch.chdir(tmp_path)
    for folder in (photos, "photos"):
        found = evaluate(network, folder, workers=0)
        assert not found.held_out and found.n == 57 and not found.note


def test_of_data_that_changed_it_is_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = Same(trained_on(photos))
    for image in [open_data(photos, seed=5).val.name(i) for i in range(3)]:
        Path(image).unlink()
    found = evaluate(network, photos, workers=0)
    assert not found.held_out and found.n == 9 and found.to_dict()["note"] == found.note
    command._print(found)
    printed = capsys.readouterr().out
    assert "the data have changed since the training" in printed and "that training held out" not in printed


def test_without_a_fingerprint_the_path_decides(photos: Path, tmp_path: Path) -> None:
    network = Same(replace(trained_on(photos), fingerprint={}))
    old = open_data(photos, seed=5).val
    found = evaluate(network, photos, workers=0)
    assert found.held_out and [c.n for c in found.classes] == [old.targets.count(i) for i in range(3)]
    assert evaluate(network, shutil.copytree(photos, tmp_path / "copy"), workers=0).n == 60


def test_a_fingerprint_travels_in_an_exported_file(photos: Path) -> None:
    facts = Metadata("m", tuple(CLASSES), Preprocessing((8, 8)), trained_on=trained_on(photos))
    assert Metadata.from_strings(facts.to_strings(), path=Path("x")).trained_on == facts.trained_on


def test_int8_divides_changed_data_as_training_did(photos: Path, small_model: Path) -> None:
    network = replace(open_source(small_model), trained_on=trained_on(photos))
    before = _int8.open_images(network, None).held_out
    held = {before.key(i) for i in range(len(before))}
    for name in CLASSES:
        for i in range(0, 20, 3):
            (photos / name / f"{i:03d}.jpg").unlink()
    after = _int8.open_images(network, photos).held_out
    assert {after.key(i) for i in range(len(after))} < held
