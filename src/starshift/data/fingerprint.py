# SPDX-License-Identifier: Apache-2.0
"""What a run keeps of its data, to know later whether they are the same: names of classes and hashes of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from starshift.data.images import ImageSet, Selection
from starshift.data.sources import DataSource
from starshift.data.split import held_out, places
from starshift.errors import StarshiftError, quoted

SAMPLE = 64  # held-out images whose sizes tell data that changed from other data with names alike
USES = ("train on", "validate on")
NEW_RUN = "or start a new run (--checkpoint RUN gives it the weights of this one)"


@dataclass(frozen=True)
class Fingerprint:
    """The images of a run.

    Attributes:
        classes: their names, in order.
        seed: of the places; see :mod:`starshift.data.split`.
        boundaries: of the split by name, None where there was none.
        train, val: a hash over the place and class of every image, in any order.
        sample: place and size in bytes of some held-out images.
        places: of all images, (train, val). Checkpoints have them, the configuration of a model does not.
    """

    classes: tuple[str, ...]
    seed: int
    boundaries: Mapping[str, float] | None
    train: str
    val: str
    sample: tuple[tuple[float, int], ...]
    places: tuple[NDArray[np.float64], ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, source: DataSource, seed: int) -> Fingerprint:
        parts = source.train, source.val
        at = tuple(places(images, seed) for images in parts)
        first = np.argsort(at[1])[:SAMPLE].tolist()
        train, val = (_digest(p, np.array(images.targets)) for p, images in zip(at, parts, strict=True))
        sample = tuple((float(at[1][i]), _bytes(source.val, i)) for i in first)
        return cls(source.classes, seed, source.boundaries, train, val, sample, at)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fingerprint:
        """Read what :meth:`to_dict` or :meth:`state` gave."""
        known = dict(values)
        known["classes"] = tuple(known["classes"])
        known["sample"] = tuple((place, size) for place, size in known["sample"])
        known["places"] = tuple(np.array(part) for part in known.get("places", ()))
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, without the places."""
        return {
            "classes": list(self.classes),
            "seed": self.seed,
            "boundaries": None if self.boundaries is None else dict(self.boundaries),
            "train": self.train,
            "val": self.val,
            "sample": [list(pair) for pair in self.sample],
        }

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {**self.to_dict(), "places": [torch.from_numpy(part) for part in self.places]}

    def changes(self, now: Fingerprint, source: DataSource) -> str:
        """Say how ``now``, the data that a run is to go on with, from ``source``, differ from these; empty if not at
        all.

        Raises:
            StarshiftError: the classes are others, no images are left to train or to validate on, or it cannot be told
                whether what was held out stays so: the data are no folder, or divided in another way.
        """
        if now.classes != self.classes:
            new, gone = (
                quoted(sorted(set(a) - set(b))) for a, b in ((now.classes, self.classes), (self.classes, now.classes))
            )
            what = "; ".join(f"{word}: {names}" for word, names in (("new", new), ("gone", gone)) if names)
            raise StarshiftError(
                f"{source.name} has other classes than this run began with ({what or 'in another order'}). Give the"
                f" data it began with, put the class folders back, {NEW_RUN}"
            )
        if (now.train, now.val) == (self.train, self.val):
            return ""
        if source.root is None or (now.boundaries is None) != (self.boundaries is None):
            raise StarshiftError(
                f"{source.name} is not as it was when this run began, and it cannot be told whether images that were"
                f" held out would be trained on. Give the data it began with, {NEW_RUN}"
            )
        for left, use in zip(now.places, USES, strict=True):
            if not len(left):
                raise StarshiftError(
                    f"of the images of this run none to {use} are left in {source.name}: put them back, {NEW_RUN}"
                )
        counts = [
            f"{len(np.setdiff1d(b, a))} new and {len(np.setdiff1d(a, b))} gone of the images to {use}"
            for a, b, use in zip(self.places, now.places, USES, strict=True)
        ]
        kept = "" if self.boundaries is None else "; what was held out stays held out"
        return f"the data have changed since this run began: {', '.join(counts)}{kept}"

    def find(self, images: ImageSet) -> tuple[ImageSet, bool | None]:
        """The part of ``images`` that was held out, and whether it is as it was; or all of them and None, where they
        are other data than these.

        They are these where all names are the same, or most of the sample is there with names and sizes.
        """
        at, targets = places(images, self.seed), np.array(images.targets)
        held = np.ones(len(images), np.bool_)
        if self.boundaries is not None:
            held = held_out(images, at, self.boundaries)
        same = _digest(at[held], targets[held]) == self.val
        whole = same and _digest(at[~held], targets[~held]) == self.train
        if not whole and not self._sampled(images, at):
            return images, None
        return images if held.all() else Selection(images, np.flatnonzero(held).tolist()), same

    def _sampled(self, images: ImageSet, at: NDArray[np.float64]) -> bool:
        there = np.flatnonzero(np.isin(at, [place for place, _ in self.sample])).tolist()
        found = {(float(at[i]), _bytes(images, i)) for i in there}
        return 2 * len(found & set(self.sample)) >= len(self.sample)


def _digest(at: NDArray[np.float64], targets: NDArray[np.integer]) -> str:
    order = np.lexsort((targets, at))
    return sha256(at[order].astype("<f8").tobytes() + targets[order].astype("<i8").tobytes()).hexdigest()[:32]


def _bytes(images: ImageSet, index: int) -> int:
    """Size of the image as it is stored; 0 where that says nothing."""
    source = images.source(index)
    if isinstance(source, (str, Path)):
        return os.path.getsize(source) if os.path.isfile(source) else 0
    return len(source) if isinstance(source, bytes) else 0
