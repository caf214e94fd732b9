# SPDX-License-Identifier: Apache-2.0
"""Folders of images as people have them, and as they should not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from starshift.data import open_data, open_eval_data
from starshift.deploy._source import class_names
from starshift.errors import StarshiftError
from tests.data.conftest import MakeFolder


def test_digits() -> None:
    data = open_data("digits", channels=1)
    assert data.classes == tuple("0123456789") and data.native_size == (8, 8)
    assert len(data.train) + len(data.val) == 1797 and abs(len(data.val) / 1797 - 0.2) < 0.01
    counts = Counter(data.val.targets)
    assert max(counts.values()) - min(counts.values()) <= 2
    image = data.train.read(0)
    assert image.shape == (1, 8, 8) and data.train.read(700).max() == 255
    names = [[s.name(i) for i in range(len(s))] for s in (data.train, data.val)]
    assert len({*names[0], *names[1]}) == 1797 and names[0][0].startswith("digits/")
    again, other = open_data("digits", channels=1), open_data("digits", channels=1, seed=1)
    assert [again.val.name(i) for i in range(20)] == names[1][:20]
    assert [other.val.name(i) for i in range(20)] != names[1][:20]
    assert open_data("digits").train.read(0).shape == (3, 8, 8)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_train_and_val_folders(make_folder: MakeFolder, val: str) -> None:
    root = make_folder({"train/cat": 3, "train/dog": 1, f"{val}/cat": 2, f"{val}/dog": 2})
    data = open_data(root)
    assert data.classes == ("cat", "dog")
    assert data.train.targets == [0, 0, 0, 1] and data.val.targets == [0, 0, 1, 1]
    assert data.val.name(3) == f"{root}/{val}/dog/001.jpg"
    assert data.native_size is None
    assert any("test" in note for note in data.notes) == (val == "test")


def test_val_is_preferred_to_test(make_folder: MakeFolder) -> None:
    root = make_folder({f"{part}/{name}": 2 for part in ("train", "val", "test") for name in "ab"})
    assert "/val/" in open_data(root).val.name(0)


@pytest.mark.parametrize(
    ("train", "val"), [("Train", "Test"), ("Training", "Testing"), ("TRAIN", "Valid"), ("training", "Validation")]
)
def test_names_of_splits_in_capitals(make_folder: MakeFolder, train: str, val: str) -> None:
    root = make_folder({f"{train}/cat": 3, f"{train}/dog": 1, f"{val}/cat": 2, f"{val}/dog": 2})
    data = open_data(root)
    assert data.classes == ("cat", "dog") and len(data.train) == 4 and data.val.name(3) == f"{root}/{val}/dog/001.jpg"
    assert any("validation uses" in note for note in data.notes) == val.startswith("Test")
    assert open_eval_data(root, ["cat", "dog"]).targets == [0, 0, 1, 1]


@pytest.mark.parametrize("counts", [{"Train": 3, "Test": 3}, {"train": 3, "val": 3}, {"Testing/a": 3, "Testing/b": 3}])
def test_splits_are_no_classes(make_folder: MakeFolder, counts: dict[str, int]) -> None:
    with pytest.raises(StarshiftError, match="but no train/ folder with one folder per class in it"):
        open_data(make_folder(counts))


def test_one_folder_per_class_is_split_by_class(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 10, "dog": 5, "emu": 2})
    data = open_data(str(root), val_fraction=0.2)
    assert Counter(data.val.targets) == {0: 2, 1: 1, 2: 1}
    assert Counter(data.train.targets) == {0: 8, 1: 4, 2: 1}
    names = [{s.name(i) for i in range(len(s))} for s in (data.train, data.val)]
    assert not names[0] & names[1]
    assert any("20% of every class" in note for note in data.notes)
    val = [open_data(root, seed=seed).val for seed in (0, 0, 1, 2, 3)]
    listed = [[v.name(i) for i in range(len(v))] for v in val]
    assert listed[0] == listed[1] and len({tuple(names) for names in listed}) > 1


def test_train_without_val_is_split(make_folder: MakeFolder) -> None:
    data = open_data(make_folder({"train/a": 5, "train/b": 5}))
    assert len(data.train) == 8 and len(data.val) == 2 and "no val/" in data.notes[0]


def test_unlabelled_test_folder_does_not_serve_as_validation(make_folder: MakeFolder) -> None:
    data = open_data(make_folder({"train/a": 5, "train/b": 5, "test": 3}))
    assert len(data.train) == 8 and len(data.val) == 2


def test_a_class_may_be_called_train(make_folder: MakeFolder) -> None:
    assert open_data(make_folder({"train": 3, "car": 3, "bus/night": 3})).classes == ("bus", "car", "train")


def test_nested_images_hidden_files_and_other_files(make_folder: MakeFolder) -> None:
    root = make_folder({"a/2020/may": 2, "a": 2, "b": 3, ".cache": 2, "b/.ipynb_checkpoints": 2})
    (root / "a" / ".DS_Store").write_bytes(b"x")
    (root / "a" / "._001.jpg").write_bytes(b"x")
    (root / "a" / "notes.txt").write_text("hello")
    (root / "labels.csv").write_text("a,b")
    data = open_data(root)
    assert data.classes == ("a", "b") and len(data.train) + len(data.val) == 7
    assert "2 file(s)" in data.notes[0] and "a/notes.txt" in data.notes[0] and "labels.csv" in data.notes[0]


def test_capital_and_unusual_extensions(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 2, "b": 2})
    (root / "a" / "000.jpg").rename(root / "a" / "IMG_1.JPEG")
    (root / "b" / "000.jpg").rename(root / "b" / "x.JPG")
    data = open_data(root)
    assert len(data.train) + len(data.val) == 4


def test_a_link_to_the_folder_above_ends(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 2, "b": 2})
    (root / "a" / "again").symlink_to(root / "a", target_is_directory=True)
    data = open_data(root)
    assert len(data.train) + len(data.val) == 4


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StarshiftError, match="no such folder"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(StarshiftError, match="Did you mean 'digits'"):
        open_data("digit")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(StarshiftError, match="not a folder"):
        open_data(tmp_path / "x.zip")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(StarshiftError, match="is empty"):
        open_data(tmp_path)


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "readme.txt").write_text("hello")
    with pytest.raises(StarshiftError, match="no images in"):
        open_data(tmp_path)


def test_images_side_by_side(make_folder: MakeFolder) -> None:
    with pytest.raises(StarshiftError, match="side by side: starshift wants one folder per class"):
        open_data(make_folder({"": 3}))


def test_a_class_without_images(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 3, "b": 3})
    (root / "c").mkdir()
    with pytest.raises(StarshiftError, match=r"no images in the class folder\(s\) 'c'"):
        open_data(root)


def test_a_class_with_one_image_cannot_be_split(make_folder: MakeFolder) -> None:
    with pytest.raises(StarshiftError, match="'lynx' have a single image"):
        open_data(make_folder({"cat": 3, "lynx": 1}))


def test_one_class(make_folder: MakeFolder) -> None:
    with pytest.raises(StarshiftError, match=r"only one class \('cat'\)"):
        open_data(make_folder({"cat": 3}))


def test_classes_that_differ_are_named(make_folder: MakeFolder) -> None:
    root = make_folder({"train/cat": 2, "train/dog": 2, "train/emu": 2, "val/cat": 2, "val/dogs": 2, "val/emu": 2})
    with pytest.raises(StarshiftError, match=r"only in .*train: 'dog'; only in .*val: 'dogs'\. Did you mean 'dog'\?"):
        open_data(root)


def test_val_alone(make_folder: MakeFolder) -> None:
    with pytest.raises(StarshiftError, match="no train/ folder"):
        open_data(make_folder({"val/a": 2, "val/b": 2}))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_val_fraction_out_of_range(make_folder: MakeFolder, fraction: float) -> None:
    with pytest.raises(StarshiftError, match="val_fraction"):
        open_data(make_folder({"a": 2, "b": 2}), val_fraction=fraction)


def test_eval_matches_classes_by_name(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 2})
    for spec in (root, root / "val"):
        images = open_eval_data(spec, ["b", "x", "a"])
        assert images.targets == [2, 0, 0] and images.classes == ("b", "x", "a")
        assert images.read(0).shape[0] == 3
    assert open_eval_data(root / "val", ["a", "b"]).targets == [0, 1, 1]


def test_eval_of_an_unknown_class(make_folder: MakeFolder) -> None:
    with pytest.raises(StarshiftError, match=r"'dogs'\. Did you mean 'dog'\? It knows 'cat', 'dog'"):
        open_eval_data(make_folder({"cat": 1, "dogs": 1}), ["cat", "dog"])


def test_eval_of_class_folders_takes_all_or_what_was_held_out(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 10, "b": 10})
    assert len(open_eval_data(root, ["a", "b"])) == 20
    held = open_eval_data(root, ["b", "a"], val_fraction=0.3, seed=4)
    wanted = open_data(root, val_fraction=0.3, seed=4).val
    assert [held.name(i) for i in range(6)] == [wanted.name(i) for i in range(6)]
    assert held.targets == [1 - t for t in wanted.targets]


def test_eval_of_digits() -> None:
    wanted = open_data("digits", seed=3)
    found = open_eval_data("digits", [str(d) for d in range(10)], seed=3)
    assert [found.name(i) for i in range(9)] == [wanted.val.name(i) for i in range(9)]
    with pytest.raises(StarshiftError, match="does not know"):
        open_eval_data("digits", ["cat", "dog"])


def test_imagenets_folders_are_known_to_a_model_of_its_descriptions(make_folder: MakeFolder) -> None:
    """Two classes are called crane: the bird, 134, and the machine, 517."""
    classes = class_names(1000)
    root = make_folder({"n01440764": 1, "n02012849": 1, "n03126707": 2})
    assert open_eval_data(root, classes).targets == [0, 134, 517, 517]
    with pytest.raises(StarshiftError, match="does not know: 'walrus'"):
        open_eval_data(make_folder({"n01440764": 1, "walrus": 1}), classes)
