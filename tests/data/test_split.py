# SPDX-License-Identifier: Apache-2.0
"""Which images are held out, and how that is known again when images come and go."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from starshift.data import Fingerprint, ImageSet, open_data, open_eval_data
from starshift.data.images import FileImages
from starshift.data.split import split, split_by_name
from starshift.errors import StarshiftError
from tests.data.conftest import MakeFolder


def numbered(count: int, classes: str = "ab", skip: int = 0) -> FileImages:
    """``count`` names a class, without the first ``skip``; there are no files."""
    files = [(f"{name}/{i:04d}.jpg", t) for t, name in enumerate(classes) for i in range(skip, count)]
    return FileImages(Path("nowhere"), [f for f, _ in files], [t for _, t in files], list(classes))


def keys(images: ImageSet) -> set[str]:
    return {images.key(i) for i in range(len(images))}


def moved(before: tuple, after: tuple) -> int:
    """How many images of both splits, (train, val), are on another side."""
    (train, val), (train_after, val_after) = map(keys, before[:2]), map(keys, after[:2])
    return len(train & val_after) + len(val & train_after)


def test_a_split_by_position_is_as_it_has_always_been() -> None:
    images = numbered(0)
    images.targets = [1, 1, 0, 1, 2, 1, 1, 1, 1, 1, 2, 0, 2, 0, 1, 0, 0, 2, 1, 2]
    images.classes, images.files = ("a", "b", "c"), [str(i) for i in range(20)]
    train, val = split(images, 0.3, 5)
    assert train.indices == [2, 13, 16, 0, 1, 6, 7, 9, 14, 18, 10, 17, 19]
    assert val.indices == [11, 15, 3, 5, 8, 4, 12]


@pytest.mark.parametrize(("count", "held"), [(2, 1), (5, 1), (10, 2), (1000, 200)])
def test_by_name_holds_out_the_share_of_each_class(count: int, held: int) -> None:
    train, val, boundaries = split_by_name(numbered(count, "abc"), 0.2, seed=1)
    assert [val.targets.count(t) for t in range(3)] == [held] * 3 and len(train) == 3 * (count - held)
    assert not keys(train) & keys(val) and set(boundaries) == set("abc")


def test_by_name_depends_on_the_seed_and_not_on_the_order() -> None:
    images = numbered(100)
    backwards = FileImages(images.root, images.files[::-1], images.targets[::-1], images.classes)
    assert keys(split_by_name(images, 0.2, 3)[1]) == keys(split_by_name(backwards, 0.2, 3)[1])
    assert keys(split_by_name(images, 0.2, 3)[1]) != keys(split_by_name(images, 0.2, 4)[1])


def test_few_images_change_sides_in_a_new_split_and_none_by_its_boundaries() -> None:
    before = split_by_name(numbered(500), 0.2, 0)
    for other in (numbered(510), numbered(500, skip=10), numbered(500, "Zab")):  # come, gone, a class before them
        assert moved(before, split_by_name(other, 0.2, 0)) <= 8
        assert moved(before, split_by_name(other, 0.2, 0, before[2])) == 0
    assert len(split_by_name(numbered(1000), 0.2, 0, before[2])[1]) == pytest.approx(400, abs=60)


def test_a_folder_is_split_by_name(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 40, "b": 40})
    before = open_data(root)
    held = keys(before.val)
    (root / next(k for k in sorted(keys(before.train)))).unlink()
    after = open_data(root, boundaries=before.boundaries)
    assert keys(after.val) == held and after.root == root.resolve()
    assert len(held ^ keys(open_data(root).val)) <= 2


def fingerprint(root: Path, **options: object) -> Fingerprint:
    return Fingerprint.of(open_data(root, **options), seed=0)  # type: ignore[arg-type]


def test_a_fingerprint_survives_json_and_checkpoints(make_folder: MakeFolder, tmp_path: Path) -> None:
    for counts in ({"a": 4, "b": 3}, {"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1}):
        known = fingerprint(make_folder(counts))
        assert Fingerprint.from_dict(json.loads(json.dumps(known.to_dict()))) == known
        torch.save(known.state(), tmp_path / "state")
        loaded = Fingerprint.from_dict(torch.load(tmp_path / "state", weights_only=True))
        assert loaded == known and all(map(np.array_equal, loaded.places, known.places))
        (tmp_path / "images").rename(tmp_path / f"{len(counts)}")


def test_what_was_held_out_is_found_again_wherever_it_lies(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 20, "b": 20})
    data = open_data(root)
    known, held = Fingerprint.of(data, seed=0), keys(data.val)
    root = root.rename(tmp_path / "elsewhere")
    part, same = known.find(open_eval_data(root, ["a", "b"]))
    assert same and keys(part) == held
    (root / min(keys(data.train))).unlink()
    part, same = known.find(open_eval_data(root, ["a", "b"]))
    assert same and keys(part) == held, "what was held out is all there"
    (root / min(held)).unlink()
    part, same = known.find(open_eval_data(root, ["a", "b"]))
    assert same is False and keys(part) == held - {min(held)}


def test_other_images_of_the_same_names_are_taken_whole(make_folder: MakeFolder, tmp_path: Path) -> None:
    known = fingerprint(make_folder({"a": 20, "b": 20}))
    (tmp_path / "images").rename(tmp_path / "before")
    make_folder({"b": 10, "a": 15})  # other crops of the photograph
    assert known.find(images := open_eval_data(tmp_path / "images", ["a", "b"])) == (images, None)
    make_folder({"b": 20, "a": 20})  # all names alike: the same data, stored anew
    part, same = known.find(open_eval_data(tmp_path / "images", ["a", "b"]))
    assert same and len(part) == 8


def test_validation_images_of_their_own_are_known_again(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 5, "train/b": 5, "val/a": 4, "val/b": 4})
    known = fingerprint(root)
    for part in (root, root / "val"):
        images = open_eval_data(part, ["a", "b"])
        assert known.find(images) == (images, True)
    assert known.find(train := open_eval_data(root / "train", ["a", "b"])) == (train, None)
    (root / "val" / "a" / "000.jpg").unlink()
    assert known.find(images := open_eval_data(root, ["a", "b"])) == (images, False)


def test_a_folder_that_holds_train_alone_is_found_again(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 10, "train/b": 10})
    part, same = fingerprint(root).find(open_eval_data(root, ["a", "b"], train_too=True))
    assert same and len(part) == 4
    with pytest.raises(StarshiftError, match="does not know: 'train'"):
        open_eval_data(root, ["a", "b"])
