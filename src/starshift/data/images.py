# SPDX-License-Identifier: Apache-2.0
"""Sets of labelled images that are read by index: from memory, from files, or a selection of
another set."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starshift.data.decode import BadImageError, Box, Region, Source, decode_region, image_size

CACHE_BYTES = 512 << 20
"""Sets of small images are kept decoded in memory up to this many bytes."""
CACHE_SIDE = 64
"""... if their images, all of one size, are at most this high and wide."""


class ImageSet(abc.ABC):
    """Labelled images, by index.

    Attributes:
        targets: the class of every image, as an index into ``classes``.
        classes: their names.
        channels: 1 or 3, of what :meth:`read` returns.
        pixels: every image decoded, uint8 (N, H, W, C), where the set is small enough to be kept so; else None.
        bad: reasons why images of ``pixels`` could not be read, by index (their pixels are zero).
    """

    def __init__(self, targets: Sequence[int], classes: Sequence[str], channels: int = 3) -> None:
        self.targets = [int(t) for t in targets]
        self.classes = tuple(classes)
        self.channels = channels
        self.pixels: NDArray[np.uint8] | None = None
        self.bad: dict[int, str] = {}
        self._checked = False

    @abc.abstractmethod
    def source(self, index: int) -> Source:
        """The image as it is stored: a path, encoded bytes, a Pillow image or a uint8 tensor (C, H, W)."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """What to call the image in a report: its path where it has one."""

    def key(self, index: int) -> str:
        """What to know the image by again, wherever the set lies."""
        return self.name(index)

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> Tensor:
        """Decode image ``index``: uint8 (C, H, W).

        Raises:
            BadImageError: with the reason, where it cannot be read.
        """
        return self.read_region(index).pixels

    def read_region(
        self, index: int, *, crop: Callable[[int, int], Box] | None = None, size: tuple[int, int] | None = None
    ) -> Region:
        """Decode a region of image ``index``; see :func:`starshift.data.decode.decode_region`.

        Raises:
            BadImageError: with the reason, where it cannot be read.
        """
        if self.pixels is None:
            return decode_region(self.source(index), channels=self.channels, crop=crop, size=size)
        if index in self.bad:
            raise BadImageError(self.bad[index])
        pixels = torch.from_numpy(self.pixels[index]).permute(2, 0, 1)
        return decode_region(pixels, channels=self.channels, crop=crop)

    def native_size(self, probes: int = 16) -> tuple[int, int] | None:
        """(height, width) if images taken evenly from the set all have the same, else None."""
        if self.pixels is not None:
            return self.pixels.shape[1], self.pixels.shape[2]
        sizes = set()
        for index in range(0, len(self), max(len(self) // probes, 1)):
            try:
                sizes.add(image_size(self.source(index)))
            except BadImageError:
                continue
            if len(sizes) > 1:
                return None
        return sizes.pop() if sizes else None

    def load_small(self) -> bool:
        """Decode the whole set into :attr:`pixels`, if its images are small, all of one size, and few enough; says
        whether they are.

        Done once; later calls return at once. What turns out to be unreadable is kept in :attr:`bad`.
        """
        if self.pixels is not None or self._checked:
            return self.pixels is not None
        self._checked = True
        size = self.native_size()
        if size is None or max(size) > CACHE_SIDE or len(self) * size[0] * size[1] * self.channels > CACHE_BYTES:
            return False
        pixels = np.zeros((len(self), *size, self.channels), np.uint8)
        bad: dict[int, str] = {}

        for index in range(len(self)):
            try:
                image = decode_region(self.source(index), channels=self.channels).pixels
            except BadImageError as error:
                bad[index] = str(error)
                continue
            if image.shape[1:] != size:
                return False
            pixels[index] = image.permute(1, 2, 0).numpy()
        self.pixels, self.bad = pixels, bad
        return True


class ArrayImages(ImageSet):
    """Images in memory: uint8 (N, H, W, C)."""

    def __init__(
        self, pixels: NDArray[np.uint8], targets: Sequence[int], classes: Sequence[str], names: Sequence[str]
    ) -> None:
        super().__init__(targets, classes, pixels.shape[3])
        self.pixels = np.ascontiguousarray(pixels)
        self.names = list(names)

    def source(self, index: int) -> Source:
        assert self.pixels is not None
        return torch.from_numpy(self.pixels[index]).permute(2, 0, 1)

    def name(self, index: int) -> str:
        return self.names[index]


class FileImages(ImageSet):
    """Images in files; ``root`` and the paths below it, which are also their names."""

    def __init__(
        self, root: Path, files: Sequence[str], targets: Sequence[int], classes: Sequence[str], channels: int = 3
    ) -> None:
        super().__init__(targets, classes, channels)
        self.root = root
        self.files = list(files)

    def source(self, index: int) -> Source:
        return f"{self.root}/{self.files[index]}"

    def name(self, index: int) -> str:
        return f"{self.root}/{self.files[index]}"

    def key(self, index: int) -> str:
        return self.files[index]


class Selection(ImageSet):
    """Some images of another set, in the order of ``indices``; ``targets`` may renumber their classes."""

    def __init__(
        self,
        images: ImageSet,
        indices: Sequence[int],
        targets: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        chosen = [images.targets[i] for i in indices] if targets is None else targets
        super().__init__(chosen, images.classes if classes is None else classes, images.channels)
        self.images, self.indices = images, [int(i) for i in indices]
        if images.pixels is not None:
            self.pixels = images.pixels[self.indices]
            self.bad = {k: images.bad[i] for k, i in enumerate(self.indices) if i in images.bad}

    def source(self, index: int) -> Source:
        return self.images.source(self.indices[index])

    def name(self, index: int) -> str:
        return self.images.name(self.indices[index])

    def key(self, index: int) -> str:
        return self.images.key(self.indices[index])
