# SPDX-License-Identifier: Apache-2.0
"""Dividing a set of images into one to train on and one to validate on, class by class.

A folder changes: photographs come and go. So its images are divided by their names. Each has a place in [0, 1), a hash
of its name and the seed; of every class those with the lowest places are held out, as many as ``val_fraction`` asks
for. The highest place held out is the class's boundary. Whoever divides by the same boundaries again puts every image
on the side it was on, whatever else has come or gone. A new split of changed data draws boundaries anew, which moves
few images. Sets that do not change are divided by position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from starshift.data.images import ImageSet, Selection
from starshift.data.randomness import hashed, permutation
from starshift.errors import StarshiftError, quoted

VAL_SPLITS = ("validation", "val", "valid", "test")
"""Names of the parts of named sets and shards to validate on, the first that is there."""


def places(images: ImageSet, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each image, by its key and ``seed`` alone: float64 (N,)."""
    keys = (images.key(index).encode("utf-8", "surrogatepass") for index in range(len(images)))
    words = [int.from_bytes(blake2b(key, digest_size=8).digest(), "little", signed=True) for key in keys]
    return (hashed(seed, np.array(words, np.int64)) >> np.uint64(11)) * 2.0**-53


def held_out(images: ImageSet, at: NDArray[np.float64], boundaries: Mapping[str, float]) -> NDArray[np.bool_]:
    """Which images, whose :func:`places` are ``at``, a split by name holds out: those of each class up to its
    boundary."""
    limits = np.array([boundaries.get(name, -1.0) for name in images.classes])
    return at <= limits[np.array(images.targets, np.int64)]


def split(images: ImageSet, val_fraction: float, seed: int) -> tuple[Selection, Selection]:
    """Divide a set at random, by the images' positions and ``seed``: (train, val).

    Every class gives ``val_fraction`` of its images, at least one, and keeps at least one.

    Raises:
        StarshiftError: ``val_fraction`` is not in (0, 1), or a class has a single image.
    """
    held = np.zeros(len(images), np.bool_)
    for target, members, count in _shares(images, val_fraction):
        held[members[permutation(len(members), seed, target)[:count]]] = True
    return _parts(images, held)


def split_by_name(
    images: ImageSet, val_fraction: float, seed: int, boundaries: Mapping[str, float] | None = None
) -> tuple[Selection, Selection, Mapping[str, float]]:
    """Divide a set at random, by the images' names and ``seed``: (train, val, boundaries by class).

    Shares are as for :func:`split`. Where the ``boundaries`` of an earlier split are given they rule, and a side may be
    left empty.

    Raises:
        StarshiftError: as :func:`split`.
    """
    at = places(images, seed)
    if boundaries is None:
        shares = _shares(images, val_fraction)
        boundaries = {images.classes[t]: float(np.sort(at[members])[count - 1]) for t, members, count in shares}
    return *_parts(images, held_out(images, at, boundaries)), boundaries


def _shares(images: ImageSet, val_fraction: float) -> Iterator[tuple[int, NDArray[np.int64], int]]:
    """Of each class that has images: its number, their indices, and how many are to be held out."""
    if not 0 < val_fraction < 1:
        raise StarshiftError(f"val_fraction is a share in (0, 1), not {val_fraction}")
    single = [images.classes[t] for t, n in sorted(Counter(images.targets).items()) if n == 1]
    if single:
        raise StarshiftError(
            f"the class(es) {quoted(single)} have a single image, which cannot be split into training and validation: "
            "add images, or give train/ and val/ folders"
        )
    targets = np.array(images.targets, np.int64)
    order = np.argsort(targets, kind="stable")
    found, starts = np.unique(targets[order], return_index=True)
    for target, members in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
        yield target, members, min(max(round(len(members) * val_fraction), 1), len(members) - 1)


def _parts(images: ImageSet, held: NDArray[np.bool_]) -> tuple[Selection, Selection]:
    """(train, val), both class by class."""
    order = np.argsort(np.array(images.targets, np.int64), kind="stable")
    return Selection(images, order[~held[order]].tolist()), Selection(images, order[held[order]].tolist())
