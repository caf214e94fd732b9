# SPDX-License-Identifier: Apache-2.0
"""Data sets that are folders of images: with a folder per split, or one folder per class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starshift.data.images import FileImages, ImageSet
from starshift.data.split import split_by_name
from starshift.errors import StarshiftError, nearest, quoted

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .dib .webp .gif .tif .tiff .ppm .pgm .pbm .pnm .avif .jp2".split()  # noqa: SIM905
)
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test", "testing")


@dataclass
class ClassFolders:
    """What lies below a folder of class folders: image files by class, and the files that are no images by their
    name."""

    root: Path
    files: dict[str, list[str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def images(self, classes: Sequence[str], channels: int) -> FileImages:
        """All images; ``classes`` gives the numbering."""
        number = {name: i for i, name in enumerate(classes)}
        files = [(path, number[name]) for name, paths in self.files.items() for path in paths]
        return FileImages(self.root, [f for f, _ in files], [t for _, t in files], classes, channels)

    def notes(self) -> list[str]:
        if not self.others:
            return []
        shown = ", ".join(self.others[:3]) + (", ..." if len(self.others) > 3 else "")
        return [f"{len(self.others)} file(s) in {self.root} are not images by their name and left out: {shown}"]


def scan(root: Path) -> ClassFolders:
    """List the images below ``root``: every folder in it is a class, whatever lies at any depth in that belongs to it.

    Hidden files and folders are ignored; links are followed, each folder once. Names are sorted, so the order is
    everywhere the same.

    Raises:
        StarshiftError: the folder is missing, empty, has no class folders, or one of them holds no image.
    """
    found = ClassFolders(root)
    for name in subfolders(root):
        found.files[name] = []
        for path in sorted(_files_below(root, name)):
            is_image = os.path.splitext(path)[1].lower() in EXTENSIONS
            (found.files[name] if is_image else found.others).append(path)
    loose = [e.name for e in os.scandir(root) if e.is_file() and not e.name.startswith(".")]
    if not any(found.files.values()):
        raise StarshiftError(_nothing_found(root, found, loose))
    empty = [name for name, files in found.files.items() if not files]
    if empty:
        raise StarshiftError(f"no images in the class folder(s) {quoted(empty)} of {root}: fill or remove them")
    found.others += sorted(loose)
    return found


def subfolders(root: Path) -> list[str]:
    """The names of the visible folders in ``root``, sorted.

    Raises:
        StarshiftError: ``root`` is missing or no folder, or may not be read.
    """
    try:
        return sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith((".", "__")))
    except FileNotFoundError:
        raise StarshiftError(f"no such folder: {root}") from None
    except NotADirectoryError:
        raise StarshiftError(f"not a folder: {root}. Give the folder that holds one folder per class") from None
    except OSError as error:
        raise StarshiftError(f"cannot read the folder {root}: {error.strerror}") from error


def walk(root: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Every visible folder from ``root`` down, sorted, and the names of its visible files in no order. Links are
    followed, each folder is entered once."""
    seen: set[str] = set()
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(b for b in below if not b.startswith((".", "__")))
        yield folder, [file for file in files if not file.startswith(".")]


def _files_below(root: Path, name: str) -> list[str]:
    """Visible files below root/name, as posix paths relative to root."""
    paths: list[str] = []
    for folder, files in walk(root / name):
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        paths += [f"{prefix}/{file}" for file in files]
    return paths


def _nothing_found(root: Path, found: ClassFolders, loose: list[str]) -> str:
    layout = "one folder per class with the images in it, or train/ and val/ with such folders in them"
    if any(os.path.splitext(name)[1].lower() in EXTENSIONS for name in loose):
        return f"the images in {root} lie side by side: starshift wants {layout}"
    if not found.files and not loose:
        return f"the folder {root} is empty: starshift wants {layout}"
    return f"no images in {root}: starshift wants {layout}"


def find_split(root: Path, names: Sequence[str]) -> Path | None:
    """The first of the folders ``names``, in any case of letters, in ``root`` that has folders in it, or None."""
    found = {name.casefold(): root / name for name in subfolders(root)}
    return next((found[name] for name in names if name in found and subfolders(found[name])), None)


@dataclass(frozen=True)
class OpenedFolder:
    """Training and validation images of a folder, and notes on how they were found; ``boundaries`` of the split by name
    that was made, None where there was none."""

    train: ImageSet
    val: ImageSet
    notes: list[str]
    boundaries: Mapping[str, float] | None = None


def open_folder(
    root: Path,
    *,
    val_fraction: float,
    seed: int,
    channels: int,
    boundaries: Mapping[str, float] | None = None,
) -> OpenedFolder:
    """Open a folder that holds train/ and val/, or one folder per class; see :func:`starshift.data.open_data`.

    Raises:
        StarshiftError: see :func:`scan` and :func:`split_by_name`; also where the folder holds nothing but splits and
            none to train on, or where the classes of train and val differ (they are named).
    """
    visible = subfolders(root)
    train_root, val_root = find_split(root, TRAIN_NAMES), find_split(root, VAL_NAMES)
    only_splits = {name.casefold() for name in visible} <= {*TRAIN_NAMES, *VAL_NAMES}
    if train_root is not None and val_root is None and not only_splits:
        train_root = None  # "train" is one class among others (vehicles)
    if train_root is None and visible and only_splits:
        raise StarshiftError(
            f"{root} holds {quoted(visible)} but no train/ folder with one folder per class in it, to train on"
        )
    found = scan(train_root or root)
    classes = _two_or_more(found)
    images = found.images(classes, channels)
    notes = found.notes()
    if train_root is not None and val_root is not None:
        found_val = scan(val_root)
        _same_classes(train_root, classes, val_root, list(found_val.files))
        notes += found_val.notes()
        if val_root.name.casefold() in ("test", "testing"):
            notes.append(f"validation uses {val_root}")
        return OpenedFolder(images, found_val.images(classes, channels), notes)
    why = f"{root} has no val/ with class folders: " if train_root else ""
    notes.append(f"{why}{val_fraction:.0%} of every class is held out for validation (seed {seed})")
    train, val, boundaries = split_by_name(images, val_fraction, seed, boundaries)
    return OpenedFolder(train, val, notes, boundaries)


def _two_or_more(found: ClassFolders) -> list[str]:
    if len(found.files) < 2:
        raise StarshiftError(
            f"only one class ({quoted(found.files)}) in {found.root}: a classifier needs at least two class folders"
        )
    return list(found.files)


def _same_classes(train_root: Path, train: Sequence[str], val_root: Path, val: Sequence[str]) -> None:
    missing, extra = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if not missing and not extra:
        return
    parts = []
    if missing:
        parts.append(f"only in {train_root}: {quoted(missing)}")
    if extra:
        parts.append(f"only in {val_root}: {quoted(extra)}.{nearest(extra[0], train)}")
    raise StarshiftError("the classes of training and validation differ; " + "; ".join(parts))
