# SPDX-License-Identifier: Apache-2.0
"""webdataset shards on disk (``wds/FOLDER``), read by index.

A shard is a tar file in which the files of a sample share a name up to the first dot: ``000017.jpg``, ``000017.cls``.
The tars' headers are read once; after that a sample is a place in a file, so shuffling, resuming and sharding are as
exact as for a folder of images. No package is needed. Shards behind a URL or a pipe are not read: copy them to a disk
first.
"""

from __future__ import annotations

import json
import tarfile
from array import array
from pathlib import Path, PurePosixPath

from starshift.data.folder import EXTENSIONS
from starshift.data.images import ImageSet
from starshift.data.split import VAL_SPLITS, split
from starshift.errors import StarshiftError


class ShardImages(ImageSet):
    """Images inside tar files, by place: (shard, offset, size)."""

    def __init__(self, shards: list[Path], channels: int) -> None:
        super().__init__([], [], channels)
        self.shards = shards
        self._shard, self._offset, self._size = array("l"), array("q"), array("q")
        self._keys: list[str] = []
        for number, path in enumerate(shards):
            self._index(number, path)
        labels = self.targets
        if not labels:
            raise StarshiftError(
                f"no labelled images in {', '.join(p.name for p in shards[:3])}: a sample is NAME.jpg beside NAME.cls"
            )
        self.classes = _class_names(shards[0].parent, max(labels) + 1)

    def _index(self, number: int, path: Path) -> None:
        images: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    folder, _, file = member.name.rpartition("/")
                    stem, _, extension = file.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    if extension == "cls":
                        content = tar.extractfile(member)
                        assert content is not None
                        labels[key] = int(content.read())
                    elif PurePosixPath("x." + extension).suffix.lower() in EXTENSIONS:
                        images[key] = (member.offset_data, member.size)
        except (tarfile.TarError, OSError, ValueError) as error:
            raise StarshiftError(f"cannot read the shard {path}: {error}") from error
        for key, (offset, size) in images.items():
            if key in labels:
                self._shard.append(number)
                self._offset.append(offset)
                self._size.append(size)
                self._keys.append(key)
                self.targets.append(labels[key])

    def source(self, index: int) -> bytes:
        with open(self.shards[self._shard[index]], "rb") as file:
            file.seek(self._offset[index])
            return file.read(self._size[index])

    def name(self, index: int) -> str:
        return f"{self.shards[self._shard[index]]}/{self._keys[index]}"

    def key(self, index: int) -> str:
        return f"{self.shards[self._shard[index]].name}/{self._keys[index]}"


def open_shards(root: Path, *, val_fraction: float, seed: int, channels: int) -> tuple[ImageSet, ImageSet, list[str]]:
    """Training and validation images of a folder of shards, and notes.

    The shards of a split are those whose name, or whose folder's, has the split's name in it
    (``imagenet-train-0000.tar``, ``val/000.tar``). Where no split is told, a share of every class is held out. Class
    names come from ``classes.txt`` (one a line)
    or the ``class_names`` of ``_info.json``; otherwise classes are named by their number.

    Raises:
        StarshiftError: no such folder, no shards, an unreadable shard, no labels, a class with a single image, a
        single class.
    """
    if not root.is_dir():
        raise StarshiftError(f"no such folder: {root} (wds/ takes the folder that holds the shards, *.tar)")
    shards = sorted(root.rglob("*.tar"))
    if not shards:
        raise StarshiftError(f"no shards (*.tar) in {root}")
    train = [s for s in shards if "train" in _label(root, s)]
    which = next((v for v in VAL_SPLITS if any(v in _label(root, s) for s in shards if s not in train)), None)
    if train and which:
        val = [s for s in shards if s not in train and which in _label(root, s)]
        images, val_images = ShardImages(train, channels), ShardImages(val, channels)
        classes = max(images.classes, val_images.classes, key=len)
        images.classes = val_images.classes = classes
        return _checked(images), val_images, [f"validation uses {len(val)} shard(s) named {which!r}"]
    images = _checked(ShardImages(train or shards, channels))
    held, out = split(images, val_fraction, seed)
    return held, out, [f"no validation shards in {root}: {val_fraction:.0%} of every class is held out (seed {seed})"]


def _label(root: Path, shard: Path) -> str:
    return shard.relative_to(root).as_posix().lower()


def _checked(images: ShardImages) -> ShardImages:
    if len(set(images.targets)) < 2:
        raise StarshiftError("only one class in the training shards: a classifier needs at least two")
    return images


def _class_names(folder: Path, count: int) -> tuple[str, ...]:
    for home in (folder, folder.parent):
        if (home / "classes.txt").is_file():
            names = [
                line.strip() for line in (home / "classes.txt").read_text(encoding="utf-8").splitlines() if line.strip()
            ]
        elif (home / "_info.json").is_file():
            names = json.loads((home / "_info.json").read_text(encoding="utf-8")).get("class_names", [])
        else:
            continue
        if names and len(names) < count:
            raise StarshiftError(f"{home} names {len(names)} classes, but there are labels up to {count - 1}")
        if names:
            return tuple(str(n) for n in names)
    return tuple(str(i) for i in range(count))
