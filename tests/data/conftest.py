# SPDX-License-Identifier: Apache-2.0
"""Real photographs for the tests, and folders of images made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A photograph of 640 x 427 pixels, from scikit-learn."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))


MakeFolder = Callable[[Mapping[str, int]], Path]


@pytest.fixture
def make_folder(tmp_path: Path, photo: Image.Image) -> MakeFolder:
    """A function that writes so many JPEGs, of different sizes, into each folder named, below one root, its result."""

    def make(counts: Mapping[str, int]) -> Path:
        random = np.random.default_rng(0)
        root = tmp_path / "images"
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                width, height = random.integers(40, 90, 2).tolist()
                left, top = random.integers(0, 300), random.integers(0, 300)
                part = photo.crop((left, top, left + width, top + height))
                part.save(root / folder / f"{number:03d}.jpg", quality=90)
        return root

    return make
