# SPDX-License-Identifier: Apache-2.0
"""Opening a data set by what a user types: ``digits``, a folder, or timm's ``torch/...``, ``hfds/...``, ``wds/...``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from starshift.data import named
from starshift.data.folder import TRAIN_NAMES, VAL_NAMES, find_split, open_folder, scan
from starshift.data.images import ArrayImages, ImageSet, Selection
from starshift.data.split import split
from starshift.errors import StarshiftError, nearest, quoted

_PREFIXES = ("torch/", "hfds/", "wds/")


@dataclass(frozen=True)
class DataSource:
    """A data set, opened.

    Attributes:
        name: what it was opened by.
        classes: names of the classes; targets are indices into them.
        train, val: the images.
        native_size: (height, width) if all images have the same (as far as a few of them tell), else None.
        notes: what a user should know of how the data was found: a split made, files left out.
        root: the folder, in full, if it is one.
        boundaries: by class, of the split by name that was made; None where there was none.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    native_size: tuple[int, int] | None
    notes: tuple[str, ...] = ()
    root: Path | None = None
    boundaries: Mapping[str, float] | None = None


def is_named(spec: str) -> bool:
    """Whether ``spec`` names a data set, and no folder."""
    return spec == "digits" or (spec.startswith(_PREFIXES) and not Path(spec).is_dir())


def open_data(
    spec: str | Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    channels: int = 3,
    data_dir: str | Path | None = None,
    download: bool = False,
    boundaries: Mapping[str, float] | None = None,
) -> DataSource:
    """Open a data set for training.

    Args:
        spec: ``digits`` (8x8 pixels, in scikit-learn); a folder with train/ and val/ (or validation/, valid/, test/)
            or with one folder per class; ``torch/NAME`` (torchvision's, such as ``torch/cifar10``), ``hfds/NAME``
            (Hugging Face datasets, by name or local path), ``wds/FOLDER`` (webdataset shards ``*.tar`` on disk).
        val_fraction: share of every class held out for validation where the data has no such split of its own. A folder
            is split by the names of its images; see :mod:`starshift.data.split`.
        seed: of that split.
        channels: 1 or 3.
        data_dir: where named data sets lie; by default torch/ in ~/.cache/starshift, hfds/ in Hugging Face's own
            cache, wds/ in the working directory.
        download: fetch a named data set that is not there.
        boundaries: those of an earlier split of the folder, to put each image on the side it was on.

    Raises:
        StarshiftError: no such folder, no images, a single class, a class with a single image that would have to be
            split, classes that differ between training and validation, an unknown name, a package that is missing.
    """
    name = str(spec)
    if not is_named(name):
        root = _existing(name)
        found = open_folder(root, val_fraction=val_fraction, seed=seed, channels=channels, boundaries=boundaries)
        return DataSource(
            name,
            found.train.classes,
            found.train,
            found.val,
            found.train.native_size(),
            tuple(found.notes),
            root.resolve(),
            found.boundaries,
        )
    train: ImageSet
    val: ImageSet
    notes: list[str] = []
    if name == "digits":
        train, val = split(_digits(channels), val_fraction, seed)
    else:
        train, val, notes = named.open_named(
            name, val_fraction=val_fraction, seed=seed, channels=channels, data_dir=data_dir, download=download
        )
    return DataSource(name, train.classes, train, val, train.native_size(), tuple(notes))


def open_eval_data(
    spec: str | Path,
    classes: Sequence[str],
    *,
    channels: int = 3,
    val_fraction: float | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    download: bool = False,
    train_too: bool = False,
) -> ImageSet:
    """Open labelled images to evaluate a model of ``classes`` on; targets are indices into ``classes``, matched by
    name.

    Args:
        spec: a folder with one folder per class, or one that holds val/ (or validation/, valid/, test/: the first of
            these) with such folders; otherwise as for :func:`open_data`, of which the validation part is taken.
        classes: the model's class names. The data may lack some of them.
        val_fraction, seed: those of training. Given the very folder of class folders that a model was trained on,
            pass them to get the part that was held out; with None all its images are taken.
        channels, data_dir, download: as for :func:`open_data`.
        train_too: of a folder that holds train/ but none of the above, take that.

    Raises:
        StarshiftError: as :func:`open_data`; also for a class that the model does not know.
    """
    name = str(spec)
    if is_named(name):
        fraction = 0.2 if val_fraction is None else val_fraction
        opened = open_data(
            name, val_fraction=fraction, seed=seed, channels=channels, data_dir=data_dir, download=download
        )
        return _renumbered(opened.val, classes, name)
    root = _existing(name)
    split_root = find_split(root, VAL_NAMES) or (find_split(root, TRAIN_NAMES) if train_too else None)
    if split_root is not None and not set(classes) & {p.name for p in root.iterdir() if p.is_dir()}:
        root = split_root
    elif val_fraction is not None:
        opened = open_data(root, val_fraction=val_fraction, seed=seed, channels=channels)
        return _renumbered(opened.val, classes, name)
    found = scan(root)
    return _renumbered(found.images(list(found.files), channels), classes, str(root))


def _renumbered(images: ImageSet, classes: Sequence[str], name: str) -> ImageSet:
    number = {c: i for i, c in enumerate(classes)}
    unknown = [c for c in images.classes if c not in number]
    if unknown and (synsets := _imagenet_synsets(classes)):
        number, unknown = synsets, [c for c in images.classes if c not in synsets]
    if unknown:
        raise StarshiftError(
            f"{name} has class(es) that the model does not know: {quoted(unknown)}.{nearest(unknown[0], classes)} "
            f"It knows {quoted(classes)}"
        )
    if tuple(classes) == images.classes:
        return images
    targets = [number[images.classes[t]] for t in images.targets]
    return Selection(images, range(len(images)), targets, classes)


def _imagenet_synsets(classes: Sequence[str]) -> dict[str, int]:
    """The numbers of ImageNet's folders (``n01440764``) for a model whose classes are ImageNet's descriptions, as timm
    has them; two of those are alike, so that the folders' names alone tell the classes apart. Else nothing."""
    if len(classes) != 1000:
        return {}
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    if list(classes) != [info.index_to_description(i) for i in range(1000)]:
        return {}
    return {synset: i for i, synset in enumerate(info.label_names())}


def _existing(name: str) -> Path:
    root = Path(name).expanduser()
    if not root.exists():
        hint = nearest(name, ["digits", *_PREFIXES]) if "/" not in name else ""
        raise StarshiftError(
            f"no such folder: {name}.{hint} Data is a folder, 'digits', or timm's torch/..., hfds/..., wds/..."
        )
    return root


def _digits(channels: int) -> ArrayImages:
    """scikit-learn's 1,797 digits (UCI, Alpaydin and Kaynak 1998): grey levels 0 to 16 scaled to 0 to 255."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    pixels = np.repeat(pixels, channels, axis=3)
    return ArrayImages(
        pixels, data.target.tolist(), [str(d) for d in range(10)], [f"digits/{i:04d}" for i in range(len(pixels))]
    )
