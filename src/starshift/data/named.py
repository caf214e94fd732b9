# SPDX-License-Identifier: Apache-2.0
"""Data sets under timm's names: ``torch/...`` through timm and torchvision, ``hfds/...`` through datasets,
``wds/...`` from local tars."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from starshift.data.images import ArrayImages, FileImages, ImageSet
from starshift.data.split import VAL_SPLITS, split
from starshift.errors import StarshiftError, nearest, quoted

DEFAULT_DIR = Path("~/.cache/starshift")
TORCH_NAMES = tuple(
    "cifar10 cifar100 mnist kmnist fashion_mnist qmnist imagenet places365 inaturalist image_folder".split()  # noqa: SIM905
)

Opened = tuple[ImageSet, ImageSet, list[str]]


def open_named(
    name: str, *, val_fraction: float, seed: int, channels: int, data_dir: str | Path | None, download: bool
) -> Opened:
    """Training and validation images of a named data set, and notes.

    Raises:
        StarshiftError: the name is unknown, the data is not there (and ``download`` is False), or a package is missing.
    """
    kind, _, rest = name.partition("/")
    if not rest:
        raise StarshiftError(f"{name} lacks a name: say which data set, such as torch/cifar10")
    if kind == "torch":
        return _open_torch(rest, channels, data_dir, download)
    if kind == "hfds":
        return _open_hfds(rest, val_fraction, seed, channels, data_dir, download)
    from starshift.data.shards import open_shards

    if "://" in rest or rest.startswith("pipe:"):
        raise StarshiftError(f"{name}: shards are read from a disk only; copy them to a folder and give that")
    return open_shards(
        Path(data_dir or ".").expanduser() / rest, val_fraction=val_fraction, seed=seed, channels=channels
    )


def _open_torch(name: str, channels: int, data_dir: str | Path | None, download: bool) -> Opened:
    from timm.data import create_dataset

    if name not in TORCH_NAMES:
        raise StarshiftError(
            f"unknown data set torch/{name}.{nearest(name, TORCH_NAMES)} There are {', '.join(TORCH_NAMES)}"
        )
    root = Path(data_dir).expanduser() if data_dir is not None else DEFAULT_DIR.expanduser()
    if download:
        root.mkdir(parents=True, exist_ok=True)

    def part(which: str) -> ImageSet:
        try:
            data = create_dataset(f"torch/{name}", root=str(root), split=which, download=download)
        except (RuntimeError, OSError, AssertionError, KeyError, ValueError) as error:
            advice = ". Training takes its folder (--set data_dir=...) or fetches it (--set download=true)"
            raise StarshiftError(
                f"cannot open torch/{name} ({which}) in {root}: {error}{'' if download else advice}"
            ) from error
        return _from_torchvision(data, f"{name}/{which}", channels)

    train, val = part("train"), part("validation")
    if train.classes != val.classes:
        raise StarshiftError(
            f"the classes of training and validation differ: {sorted(set(train.classes) ^ set(val.classes))}"
        )
    return train, val, []


def _from_torchvision(data: Any, name: str, channels: int) -> ImageSet:
    """A torchvision data set as ours: its array where it keeps one, else the files that it lists."""
    files = getattr(data, "samples", None) or getattr(data, "imgs", None)
    if files:
        classes = getattr(data, "classes", None) or [str(i) for i in range(max(t for _, t in files) + 1)]
        classes = [c if isinstance(c, str) else ", ".join(c) for c in classes]
        paths = [os.path.relpath(f, data.root) for f, _ in files]
        return FileImages(Path(data.root), paths, [t for _, t in files], classes, channels)
    pixels = getattr(data, "data", None)
    if pixels is not None:
        array = np.asarray(pixels)
        array = _channels(array[..., None] if array.ndim == 3 else array, channels)
        targets = np.asarray(data.targets)
        targets = (targets if targets.ndim == 1 else targets[:, 0]).tolist()
        return ArrayImages(
            array, targets, [str(c) for c in data.classes], [f"{name}/{i:05d}" for i in range(len(array))]
        )
    classes = list(data.all_categories)  # iNaturalist
    paths = [f"{classes[target]}/{file}" for target, file in data.index]
    return FileImages(Path(data.root), paths, [target for target, _ in data.index], classes, channels)


def _channels(array: np.ndarray, channels: int) -> np.ndarray:
    if array.shape[3] == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=3)
    weights = np.array([19595, 38470, 7471], np.int64)  # ITU-R 601, in Pillow's fixed point
    return ((array.astype(np.int64) @ weights + 0x8000) >> 16).astype(np.uint8)[..., None]


def _open_hfds(
    name: str, val_fraction: float, seed: int, channels: int, data_dir: str | Path | None, download: bool
) -> Opened:
    try:
        import datasets
    except ImportError:
        raise StarshiftError("hfds/... needs the package datasets: pip install 'starshift[hfds]'") from None
    cache = str(Path(data_dir).expanduser()) if data_dir is not None else None
    try:
        with nullcontext() if download else _offline():
            parts = datasets.load_dataset(name, cache_dir=cache)
    except Exception as error:  # whatever it trips over, from a name that is not there to a file it cannot parse
        advice = (
            "" if download or Path(name).exists() else ". Let it be fetched (download), or give the path of a local one"
        )
        raise StarshiftError(f"cannot open hfds/{name}: {error}{advice}") from error
    if "train" not in parts:
        raise StarshiftError(f"hfds/{name} has no split 'train', only {', '.join(parts)}")
    notes: list[str] = []
    train = _from_hugging_face(parts["train"], f"hfds/{name}/train", channels, notes)
    if len(set(train.targets)) < 2:
        raise StarshiftError(
            f"hfds/{name}/train has labels of {len(set(train.targets))} class(es), of which a classifier needs at least"
            f" two{'; ' + notes[0] if notes else ''}"
        )
    for which in (s for s in VAL_SPLITS if s in parts):
        val = _from_hugging_face(parts[which], f"hfds/{name}/{which}", channels, notes, train.classes)
        if len(val):
            return train, val, [*notes, f"validation uses the split {which!r}"]
    held, out = split(train, val_fraction, seed)
    notes.append(f"hfds/{name} has no validation split: {val_fraction:.0%} of every class is held out (seed {seed})")
    return held, out, notes


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the packages datasets and huggingface_hub from asking the network: what is on disk has to do."""
    import datasets
    import huggingface_hub

    switches = [(datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in switches]
    for module, name in switches:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)


def _from_hugging_face(
    data: Any, name: str, channels: int, notes: list[str], classes: Sequence[str] | None = None
) -> HubImages:
    """The labelled images of a split, numbered by ``classes`` if given; ``notes`` is told of those without a label."""
    import datasets

    image_key = next((k for k, f in data.features.items() if isinstance(f, datasets.Image)), None)
    label_key = next((k for k in ("label", "labels", "fine_label", "class") if k in data.features), None)
    if image_key is None or label_key is None:
        raise StarshiftError(
            f"{name} needs a column of images and one called 'label'; it has {', '.join(data.features)}"
        )
    data = data.cast_column(image_key, datasets.Image(decode=False))
    labels = data[label_key][:]
    known = [
        i for i, label in enumerate(labels) if label is not None and not (isinstance(label, (int, float)) and label < 0)
    ]
    if len(known) < len(labels):
        notes.append(f"{len(labels) - len(known)} image(s) of {name} have no label (none, or one below 0): left out")
        data, labels = data.select(known), [labels[i] for i in known]
    feature = data.features[label_key]
    if isinstance(feature, datasets.ClassLabel):
        own, labels = list(feature.names), [feature.names[label] for label in labels]
    else:
        labels = [str(label) for label in labels]
        own = sorted(set(labels))
    number = {c: i for i, c in enumerate(own if classes is None else classes)}
    unknown = sorted(set(labels) - set(number))
    if unknown:
        raise StarshiftError(
            f"{name} has class(es) that the training split lacks: {quoted(unknown)}.{nearest(unknown[0], number)}"
            " Give both splits the same labels"
        )
    return HubImages(data, image_key, name, [number[label] for label in labels], list(number), channels)


class HubImages(ImageSet):
    """Images of a Hugging Face data set whose column ``column`` holds encoded bytes or a path."""

    def __init__(
        self, data: Any, column: str, title: str, targets: Sequence[int], classes: Sequence[str], channels: int
    ) -> None:
        super().__init__(targets, classes, channels)
        self.data, self.column, self.title = data, column, title

    def source(self, index: int) -> bytes | str:
        image = self.data[index][self.column]
        return image["bytes"] or image["path"]

    def name(self, index: int) -> str:
        path = self.data[index][self.column]["path"]
        return f"{self.title}/{path}" if path else f"{self.title}/{index:06d}"

    def key(self, index: int) -> str:
        return f"{index:06d}"  # a path would have to be read together with the image
