# SPDX-License-Identifier: Apache-2.0
"""What a loader does with a batch's indices: read, crop, augment, normalise. Small images that are in memory go as
whole arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starshift.data.augment import (
    DRAWS,
    Augment,
    flip,
    pad_and_crop,
    pillow_augmentation,
    random_erasing,
    random_resized_crop,
)
from starshift.data.decode import BadImageError
from starshift.data.images import ImageSet
from starshift.data.randomness import global_state_kept, hashed, seed_global, uniforms
from starshift.data.transforms import eval_pixels, load_pixels, normalise, resize
from starshift.errors import StarshiftError
from starshift.preprocessing import Preprocessing

ATTEMPTS = 10
"""So many images in place of one that cannot be read; if none of them can, the data set is taken for broken."""

Result: TypeAlias = "tuple[Tensor, NDArray[np.int64], list[tuple[str, str]]]"
"""Normalised float32 (N, C, H, W); the indices they are of; (name, reason) of images that could not be read."""


class EvalPipeline:
    """Images as :func:`starshift.data.load_image` gives them; those that cannot be read are left out."""

    def __init__(self, images: ImageSet, preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing

    def __call__(self, indices: NDArray[np.int64], seeds: NDArray[np.uint64]) -> Result:
        if self.images.pixels is not None:
            bad = [(self.images.name(i), self.images.bad[i]) for i in indices.tolist() if i in self.images.bad]
            good = np.array([i for i in indices.tolist() if i not in self.images.bad], np.int64)
            pixels = torch.from_numpy(self.images.pixels[good]).permute(0, 3, 1, 2)
            return normalise(eval_pixels(pixels, self.preprocessing), self.preprocessing), good, bad
        pixels = torch.empty(len(indices), *self.preprocessing.size, self.preprocessing.channels, dtype=torch.uint8)
        pixels = pixels.permute(0, 3, 1, 2)
        kept: list[int] = []
        bad = []
        for index in indices.tolist():
            try:
                pixels[len(kept)] = load_pixels(self.images.source(index), self.preprocessing)
                kept.append(index)
            except BadImageError as error:
                bad.append((self.images.name(index), str(error)))
        return normalise(pixels[: len(kept)], self.preprocessing), np.array(kept, np.int64), bad


class TrainPipeline:
    """Augmented images; one that cannot be read is replaced by another, chosen by its own random seed."""

    def __init__(self, images: ImageSet, preprocessing: Preprocessing, augment: Augment) -> None:
        self.images, self.preprocessing, self.augment = images, preprocessing, augment

    @property
    def in_bulk(self) -> bool:
        """Whether a batch is done as whole arrays, with no step taken image by image."""
        plain = self.augment.scale is None and not self.augment.reprob
        return (
            self.images.pixels is not None and plain and pillow_augmentation(self.augment, self.preprocessing) is None
        )

    def __call__(self, indices: NDArray[np.int64], seeds: NDArray[np.uint64]) -> Result:
        indices = indices.copy()
        draws = uniforms(seeds, DRAWS)
        bad: list[tuple[str, str]] = []
        if self.images.pixels is not None and self.augment.scale is None:
            pixels = self._stored(indices, seeds, bad)
        else:
            pixels = np.empty((len(indices), *self.preprocessing.size, self.images.channels), np.uint8)
            for row in range(len(indices)):
                pixels[row] = self._read(row, indices, seeds, draws[row], bad)
        if self.augment.crop_padding:
            pixels = pad_and_crop(pixels, self.augment, draws)
        flip(torch.from_numpy(pixels), self.augment, draws)
        augmentation = pillow_augmentation(self.augment, self.preprocessing)
        if augmentation is not None:
            with global_state_kept():
                for row, seed in enumerate(hashed(seeds, 2).tolist()):
                    seed_global(seed)
                    pixels[row] = augmentation(pixels[row])
        image = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), self.preprocessing)
        erase = random_erasing(self.augment)
        if erase is not None:
            own = hashed(seeds, 3)
            with global_state_kept():
                for row in np.flatnonzero(draws[:, 27] < self.augment.reprob).tolist():
                    seed_global(int(own[row]))
                    erase(image[row])
        return image, indices, bad

    def _stored(
        self, indices: NDArray[np.int64], seeds: NDArray[np.uint64], bad: list[tuple[str, str]]
    ) -> NDArray[np.uint8]:
        """The batch from memory, brought to the network's size: (N, H, W, C)."""
        assert self.images.pixels is not None
        for row in [row for row, index in enumerate(indices.tolist()) if index in self.images.bad]:
            indices[row] = self._replacement(int(indices[row]), int(seeds[row]), bad)
        pixels = self.images.pixels[indices]
        if pixels.shape[1:3] == self.preprocessing.size:
            return pixels
        resized = eval_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2), self.preprocessing)
        return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())

    def _replacement(self, index: int, seed: int, bad: list[tuple[str, str]]) -> int:
        """The first readable one of the images that stand in for ``index``, for sets in memory."""
        for candidate in self._candidates(index, seed):
            if candidate not in self.images.bad:
                return candidate
            bad.append((self.images.name(candidate), self.images.bad[candidate]))
        raise self._broken(bad)

    def _read(
        self,
        row: int,
        indices: NDArray[np.int64],
        seeds: NDArray[np.uint64],
        draws: NDArray[np.float64],
        bad: list[tuple[str, str]],
    ) -> NDArray[np.uint8]:
        """One image at the network's size (H, W, C); writes the index of the image that was read in the end."""
        for candidate in self._candidates(int(indices[row]), int(seeds[row])):
            try:
                pixels = self._crop(candidate, draws)
            except BadImageError as error:
                bad.append((self.images.name(candidate), str(error)))
                continue
            indices[row] = candidate
            return pixels.permute(1, 2, 0).numpy()
        raise self._broken(bad)

    def _crop(self, index: int, draws: NDArray[np.float64]) -> Tensor:
        size = self.preprocessing.size
        if self.augment.scale is None:
            return load_pixels(self.images.source(index), self.preprocessing)
        region = self.images.read_region(
            index, crop=lambda h, w: random_resized_crop(h, w, self.augment, draws), size=size
        )
        return resize(region.pixels, size, self.augment.interpolation(draws), region.extent)

    def _candidates(self, index: int, seed: int) -> Iterator[int]:
        yield index
        yield from (hashed(seed, 4, np.arange(ATTEMPTS)) % np.uint64(len(self.images))).tolist()

    def _broken(self, bad: list[tuple[str, str]]) -> StarshiftError:
        name, reason = bad[-1]
        return StarshiftError(
            f"{ATTEMPTS + 1} images in a row cannot be read, the last of them {name} ({reason}): is the data broken?"
        )
