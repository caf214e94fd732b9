# SPDX-License-Identifier: Apache-2.0
"""The path of evaluation, beside Pillow and timm."""

from __future__ import annotations

from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from starshift.data import denormalise, load_image
from starshift.data.transforms import load_pixels, normalise, resize
from starshift.preprocessing import Preprocessing

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(224, 336), (100, 31), (427, 200), (800, 900)])
def test_resize_is_pillows(photo: Image.Image, interpolation: str, size: tuple[int, int]) -> None:
    wanted = as_tensor(photo.resize(size[::-1], FILTERS[interpolation])).int()
    found = resize(as_tensor(photo), size, interpolation).int()
    assert (found - wanted).abs().max() <= 2
    batch = resize(as_tensor(photo)[None].repeat(2, 1, 1, 1), size, interpolation)
    assert torch.equal(batch[1].int(), found)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    "size, crop_pct, shape",
    [
        ((224, 224), 0.875, (640, 427)),
        ((224, 224), 1.0, (427, 640)),
        ((96, 160), 0.9, (500, 333)),
        ((64, 64), 0.95, (30, 41)),
        ((33, 32), 0.77, (400, 401)),
    ],
)
def test_evaluation_is_timms(
    photo: Image.Image, interpolation: str, size: tuple[int, int], crop_pct: float, shape: tuple[int, int]
) -> None:
    from timm.data import create_transform

    image = photo.resize(shape)
    preprocessing = Preprocessing(size, interpolation=interpolation, crop_pct=crop_pct)
    transform = create_transform(
        input_size=(3, *size),
        interpolation=interpolation,
        crop_pct=crop_pct,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    wanted = denormalise(transform(image), preprocessing).int()
    found = denormalise(load_image(image, preprocessing), preprocessing).int()
    assert (found - wanted).abs().max() <= 2


def test_scaled_decode_hardly_shows(photo: Image.Image) -> None:
    """A 1920-pixel photograph at 224 pixels: decoded at a half and resized, against decoded in full and resized."""
    buffer = BytesIO()
    photo.resize((1923, 1283), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=92)  # no multiple of 2 or 4
    whole = as_tensor(Image.open(BytesIO(buffer.getvalue())).convert("RGB"))
    for interpolation, size in product(FILTERS, (100, 140, 224, 300, 420)):
        preprocessing = Preprocessing((size, size), interpolation=interpolation)
        found = load_pixels(buffer.getvalue(), preprocessing).float()
        difference = (found - load_pixels(whole, preprocessing).float()).abs()
        assert difference.mean() < 1.5
        assert difference.flatten().quantile(0.99) <= 10


def test_images_smaller_than_the_crop_and_of_extreme_shape() -> None:
    preprocessing = Preprocessing((64, 64))
    for height, width in ((1, 1), (3, 50), (1, 30000), (30000, 1), (63, 65)):
        image = torch.full((3, height, width), 200, dtype=torch.uint8)
        found = load_pixels(image, preprocessing)
        assert found.shape == (3, 64, 64) and (found == 200).all()


def test_long_images_show_their_centre() -> None:
    image = torch.zeros(3, 10, 1001, dtype=torch.uint8)
    image[:, :, 490:511] = 255
    found = load_pixels(image, Preprocessing((20, 20), interpolation="bilinear"))
    assert (found == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise(channels: int) -> None:
    preprocessing = Preprocessing((9, 7), mean=(0.1, 0.5, 0.9)[:channels], std=(0.2, 0.3, 0.4)[:channels])
    pixels = torch.randint(0, 256, (4, channels, 9, 7), dtype=torch.uint8)
    mean = torch.tensor(preprocessing.mean, dtype=torch.float64).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float64).view(-1, 1, 1)
    found = normalise(pixels, preprocessing)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    assert (found - (pixels / 255 - mean) / std).abs().max() < 1e-6
    assert torch.equal(denormalise(found, preprocessing), pixels)
    assert torch.equal(normalise(pixels.contiguous(memory_format=torch.channels_last), preprocessing), found)


def test_one_channel(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", Preprocessing((32, 32), mean=(0.5,), std=(0.5,)))
    assert image.shape == (1, 32, 32) and -1 <= image.min() < image.max() <= 1
