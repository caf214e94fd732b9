# SPDX-License-Identifier: Apache-2.0
"""Data sets by timm's names, on small ones made in the formats that they have on disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from starshift.data import Augment, DataSource, eval_loader, open_data, train_loader
from starshift.errors import StarshiftError
from starshift.preprocessing import Preprocessing
from tests.data.conftest import MakeFolder


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """CIFAR-10's python version with two images a batch; torchvision is given the MD5 sums of these files."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 32, 32), dtype=np.uint8)
    sums = {}
    for number, (name, _) in enumerate([*CIFAR10.train_list, *CIFAR10.test_list]):
        content = {"data": pixels[number].reshape(2, -1), "labels": [number, 9 - number]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    sums = {f.name: hashlib.md5(f.read_bytes()).hexdigest() for f in folder.iterdir()}
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, attribute, [[n, sums[n]] for n, _ in getattr(CIFAR10, attribute)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return pixels


def test_torch_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar10(tmp_path, monkeypatch)
    data = open_data("torch/cifar10", data_dir=tmp_path)
    assert data.classes[:2] == ("airplane", "automobile") and data.native_size == (32, 32)
    assert data.train.targets == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5] and data.val.targets == [5, 4]
    assert np.array_equal(data.train.read(3).numpy(), pixels[1, 1])
    assert data.val.name(1) == "cifar10/validation/00001"
    assert open_data("torch/cifar10", data_dir=tmp_path, channels=1).train.read(0).shape == (1, 32, 32)
    loader = train_loader(data.train, Preprocessing((32, 32)), Augment(), batch_size=5, workers=0, seed=0)
    assert sum(len(b.target) for b in loader) == 10


def test_torch_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 4, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 4) + bytes([3, 1, 4, 1]))
        for file in raw.glob(f"{part}-*ubyte"):
            (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    data = open_data("torch/mnist", data_dir=tmp_path, channels=1)
    assert data.train.targets == [3, 1, 4, 1] and data.classes[0] == "0 - zero"
    assert np.array_equal(data.val.read(2).numpy()[0], pixels[2])


def test_torch_image_folder(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 2, "train/b": 3, "validation/a": 1, "validation/b": 1})
    data = open_data("torch/image_folder", data_dir=root)
    assert data.classes == ("a", "b") and data.train.targets == [0, 0, 1, 1, 1]
    assert data.val.name(1) == f"{root}/validation/b/000.jpg"
    assert torch.equal(data.train.read(0), open_data(root).train.read(0))


def test_torch_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StarshiftError, match=r"cannot open torch/cifar10 .*fetches it"):
        open_data("torch/cifar10", data_dir=tmp_path)
    with pytest.raises(StarshiftError, match="Did you mean 'cifar10'"):
        open_data("torch/cifar11", data_dir=tmp_path)
    with pytest.raises(StarshiftError, match="lacks a name"):
        open_data("torch/")


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40 + shade, 30), (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_shard(path: Path, samples: list[tuple[str, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (key, label) in enumerate(samples):
            for name, content in (
                (f"{key}.jpg", jpeg(number)),
                (f"{key}.cls", str(label).encode()),
                (f"{key}.json", b"{}"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_wds_shards_on_disk(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    write_shard(root / "x-train-0000.tar", [("a/000", 0), ("a/001", 2), ("b/000", 1)])
    write_shard(root / "x-train-0001.tar", [("c/000", 1), ("c/001", 2)])
    write_shard(root / "x-validation-0000.tar", [("v/000", 0), ("v/001", 1)])
    data = open_data(f"wds/{root}")
    assert data.classes == ("0", "1", "2") and data.train.targets == [0, 2, 1, 1, 2] and data.val.targets == [0, 1]
    assert data.train.name(4) == f"{root}/x-train-0001.tar/c/001"
    assert data.train.read(4).shape == (3, 30, 41) and (data.train.read(4) == 1).all()
    (root / "classes.txt").write_text("cat\ndog\nemu\n")
    data = open_data("wds/shards", data_dir=tmp_path)
    assert data.classes == ("cat", "dog", "emu")
    batches = [list(eval_loader(data.train, Preprocessing((16, 16)), batch_size=2, workers=w)) for w in (0, 2)]
    assert all(torch.equal(a.image, b.image) for a, b in zip(*batches, strict=True))
    assert [b.target.tolist() for b in batches[1]] == [[0, 2], [1, 1], [2]]


def test_wds_shards_are_what_webdataset_reads(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write_shard(tmp_path / "train.tar", [(f"{i:03}", i % 2) for i in range(6)])
    theirs = list(
        webdataset.WebDataset(str(tmp_path / "train.tar"), shardshuffle=False).to_tuple("__key__", "jpg", "cls")
    )
    data = open_data(f"wds/{tmp_path}", val_fraction=0.4)
    images = data.train.images  # type: ignore[attr-defined]
    assert [
        (images.name(i).split("/")[-1], images.source(i), str(images.targets[i]).encode()) for i in range(6)
    ] == theirs
    assert len(data.val) == 2 and "40% of every class" in data.notes[0]


def test_wds_info_names_the_classes(tmp_path: Path) -> None:
    write_shard(tmp_path / "train" / "0.tar", [("a", 0), ("b", 1)])
    write_shard(tmp_path / "val" / "0.tar", [("a", 0)])
    (tmp_path / "_info.json").write_text(json.dumps({"class_names": ["cat", "dog"]}))
    data = open_data(f"wds/{tmp_path}")
    assert data.classes == data.val.classes == ("cat", "dog") and len(data.val) == 1
    (tmp_path / "_info.json").write_text(json.dumps({"class_names": ["cat"]}))
    with pytest.raises(StarshiftError, match="names 1 classes"):
        open_data(f"wds/{tmp_path}")


def test_wds_mistakes(tmp_path: Path) -> None:
    with pytest.raises(StarshiftError, match="no such folder"):
        open_data("wds/nowhere", data_dir=tmp_path)
    with pytest.raises(StarshiftError, match="no shards"):
        open_data(f"wds/{tmp_path}")
    with pytest.raises(StarshiftError, match="copy them"):
        open_data("wds/https://example.org/x.tar")
    write_shard(tmp_path / "x.tar", [("a", 1), ("b", 1)])
    with pytest.raises(StarshiftError, match="only one class"):
        open_data(f"wds/{tmp_path}")
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(StarshiftError, match=r"cannot read the shard .*x\.tar"):
        open_data(f"wds/{tmp_path}")


def test_hfds_folder(make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    root = make_folder({"train/a": 5, "train/b": 5, "validation/a": 2, "validation/b": 2})
    data = open_data(f"hfds/{root}", data_dir=tmp_path / "cache")
    assert data.classes == ("a", "b") and sorted(data.train.targets) == [0] * 5 + [1] * 5 and len(data.val) == 4
    names = [data.train.name(i) for i in range(10)]
    first = next(i for i, name in enumerate(names) if name.endswith("train/b/000.jpg"))
    assert torch.equal(data.train.read(first), open_data(root).train.read(5))
    batches = [list(eval_loader(data.val, Preprocessing((16, 16)), batch_size=3, workers=w)) for w in (0, 2)]
    assert all(torch.equal(a.image, b.image) for a, b in zip(*batches, strict=True))
    with pytest.raises(StarshiftError, match=r"cannot open hfds/nobody/nothing.*Let it be fetched"):
        open_data("hfds/nobody/nothing", data_dir=tmp_path / "cache")


def write_parquet(root: Path, split: str, labels: list, names: list[str] | None = None) -> None:
    """A split with a column of labels, plain or, with ``names``, of classes; image i is 40 + i pixels wide."""
    datasets = pytest.importorskip("datasets")
    kind = datasets.ClassLabel(names=names) if names else None
    data = datasets.Dataset.from_dict({"image": [{"bytes": jpeg(i)} for i in range(len(labels))], "label": labels})
    data = data.cast_column("image", datasets.Image())
    data = data.cast_column("label", kind) if kind else data
    (root / "hub").mkdir(exist_ok=True)
    data.to_parquet(root / "hub" / f"{split}-00000-of-00001.parquet")


def open_hub(root: Path) -> DataSource:
    return open_data(f"hfds/{root}/hub", data_dir=root / "cache", val_fraction=0.5)


def test_hfds_numbers_validation_by_the_classes_of_training(tmp_path: Path) -> None:
    write_parquet(tmp_path, "train", ["dog", "cat", "emu", "dog"])
    write_parquet(tmp_path, "validation", ["emu", "dog"])
    data = open_hub(tmp_path)
    assert data.classes == data.val.classes == ("cat", "dog", "emu")
    assert data.train.targets == [1, 0, 2, 1] and data.val.targets == [2, 1]
    write_parquet(tmp_path, "validation", ["emu", "dgo"])
    with pytest.raises(StarshiftError, match=r"training split lacks: 'dgo'\. Did you mean 'dog'\?"):
        open_hub(tmp_path)


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_hfds_leaves_out_what_has_no_label(tmp_path: Path, names: list[str] | None) -> None:
    write_parquet(tmp_path, "train", [0, 1, -1, 0, 1, 0], names)
    write_parquet(tmp_path, "validation", [1, -1, 0], names)
    data = open_hub(tmp_path)
    assert data.train.targets == [0, 1, 0, 1, 0] and data.val.targets == [1, 0]
    assert data.train.read(2).shape[2] == 43 and data.val.read(1).shape[2] == 42
    assert "1 image(s) of" in data.notes[0] and "no label" in data.notes[0] and "/validation" in data.notes[1]


def test_hfds_with_a_test_split_whose_labels_are_hidden(tmp_path: Path) -> None:
    write_parquet(tmp_path, "train", [0, 1, 0, 1], ["a", "b"])
    write_parquet(tmp_path, "test", [-1, -1, -1], ["a", "b"])
    data = open_hub(tmp_path)
    assert sorted(data.train.targets) == sorted(data.val.targets) == [0, 1]
    assert "3 image(s) of" in data.notes[0] and "50% of every class is held out" in data.notes[1]


def test_hfds_needs_two_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path, "train", [1, -1, 1])
    with pytest.raises(StarshiftError, match=r"1 class\(es\), of which a classifier needs at least two; 1 image"):
        open_hub(tmp_path)


def test_hfds_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StarshiftError, match=r"pip install 'starshift\[hfds\]'"):
        open_data("hfds/cifar10")
