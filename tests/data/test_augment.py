# SPDX-License-Identifier: Apache-2.0
"""Random augmentation: its distributions, and that it is a function of its random numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pad as torchvision_pad

from starshift.data import Augment
from starshift.data.augment import DRAWS, PADDING_MODES, flip, pad_and_crop, random_resized_crop
from starshift.data.images import ArrayImages
from starshift.data.pipeline import TrainPipeline
from starshift.data.randomness import hashed, permutation, uniforms
from starshift.errors import StarshiftError
from starshift.preprocessing import Preprocessing

PLAIN = Augment(scale=None, hflip=0)


def draws(count: int) -> np.ndarray:
    return uniforms(hashed(0, np.arange(count)), DRAWS)


def test_random_numbers_are_uniform_and_independent() -> None:
    values = draws(20000)
    assert values.min() >= 0 and values.max() < 1
    assert np.abs(values.mean(0) - 0.5).max() < 0.01
    assert np.abs(values.std(0) - math.sqrt(1 / 12)).max() < 0.01
    assert np.abs(np.corrcoef(values.T) - np.eye(DRAWS)).max() < 0.04
    assert np.abs(np.corrcoef(values[1:, 0], values[:-1, 0])[0, 1]) < 0.03


def test_random_numbers_are_the_same_everywhere() -> None:
    """Fixed values: a change would break the resuming of every run begun before it."""
    assert hashed(1, 2, 3).tolist() == [17824878756907967]
    assert permutation(8, 5, 0).tolist() == [1, 5, 3, 7, 4, 0, 2, 6]
    assert sorted(permutation(1000, 5, 1).tolist()) == list(range(1000))


def test_random_resized_crop_has_the_distribution_asked_for() -> None:
    augment = Augment(scale=(0.25, 0.5), ratio=(0.5, 2.0))
    boxes = np.array([random_resized_crop(400, 600, augment, row) for row in draws(4000)])
    top, left, tall, wide = boxes.T
    assert (top >= 0).all() and (top + tall <= 400).all() and (left >= 0).all() and (left + wide <= 600).all()
    share, ratio = tall * wide / 240000, wide / tall
    assert 0.249 < share.min() < 0.26 and 0.48 < share.max() < 0.501 and abs(share.mean() - 0.375) < 0.01
    assert 0.49 < ratio.min() < 0.55 and 1.8 < ratio.max() < 2.02
    assert len(set(top)) > 100 and len(set(left)) > 100


@pytest.mark.parametrize("height, width", [(1, 1), (1, 1000), (1000, 1), (2, 3)])
def test_random_resized_crop_of_tiny_and_extreme_images(height: int, width: int) -> None:
    for row in draws(50):
        top, left, tall, wide = random_resized_crop(height, width, Augment(), row)
        assert tall >= 1 and wide >= 1 and top + tall <= height and left + wide <= width


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_pad_and_crop_shifts_within_the_padding(mode: str) -> None:
    pixels = np.arange(1, 10 * 12 + 1, dtype=np.uint8).reshape(1, 10, 12, 1).repeat(400, 0)
    augment = Augment(scale=None, crop_padding=2, crop_padding_mode=mode)
    found = pad_and_crop(pixels, augment, draws(400))
    padded = torchvision_pad(torch.from_numpy(pixels[0]).permute(2, 0, 1), [2, 2], padding_mode=mode)
    padded = padded.permute(1, 2, 0).numpy()
    crops = [padded[y : y + 10, x : x + 12] for y in range(5) for x in range(5)]
    places = [next(i for i, crop in enumerate(crops) if np.array_equal(crop, image)) for image in found]
    assert set(places) == set(range(25))


def test_flips_mirror_the_share_asked_for() -> None:
    image = torch.randint(0, 256, (5, 4, 3), dtype=torch.uint8)
    batch = image.repeat(1000, 1, 1, 1)
    flip(batch, Augment(hflip=0.3, vflip=0), draws(1000))
    mirrored = (batch == image.flip(1)).all(-1).all(-1).all(-1)
    assert (batch[~mirrored] == image).all()
    assert 0.25 < mirrored.float().mean() < 0.35
    batch = image.repeat(1000, 1, 1, 1)
    flip(batch, Augment(hflip=0, vflip=1), draws(1000))
    assert (batch == image.flip(0)).all()


def pipeline(augment: Augment, photo: Image.Image, count: int = 8, channels: int = 3, size: int = 48) -> TrainPipeline:
    one = np.asarray(photo.resize((size, size)).convert("RGB" if channels == 3 else "L")).reshape(size, size, channels)
    pixels = np.repeat(one[None], count, axis=0)
    images = ArrayImages(pixels, [0] * count, ["a", "b"], [str(i) for i in range(count)])
    return TrainPipeline(images, Preprocessing((size, size), mean=(0.5,) * channels, std=(0.25,) * channels), augment)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augment",
    [
        replace(PLAIN, aa="rand-m9-n2-mstd0.5"),
        replace(PLAIN, aa="augmix-m5-w2"),
        replace(PLAIN, aa="original-mstd0.5"),
        replace(PLAIN, aa="3a", color_jitter=0.3),
        replace(PLAIN, color_jitter=0.4),
        replace(PLAIN, reprob=1.0),
        replace(PLAIN, reprob=1.0, remode="rand", recount=3),
        Augment(color_jitter=0.2, reprob=0.5, train_interpolation="bicubic"),
    ],
    ids=lambda a: a.aa or a.remode + str(a.color_jitter),
)
def test_every_augmentation_changes_images_as_a_function_of_the_seed(
    photo: Image.Image, augment: Augment, channels: int
) -> None:
    transform = pipeline(augment, photo, channels=channels)
    plain, _, _ = pipeline(PLAIN, photo, channels=channels)(np.arange(8), hashed(1, np.arange(8)))
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    found, _, _ = transform(np.arange(8), hashed(1, np.arange(8)))
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    assert found.shape == (8, channels, 48, 48) and found.isfinite().all()
    assert sum(not torch.equal(a, b) for a, b in zip(found, plain, strict=True)) >= 3
    torch.manual_seed(99)
    np.random.seed(99)
    for rows in (slice(0, 3), slice(3, 8)):  # whatever else is in the batch
        again, _, _ = transform(np.arange(8)[rows], hashed(1, np.arange(8))[rows])
        assert torch.equal(again, found[rows])
    other, _, _ = transform(np.arange(8), hashed(2, np.arange(8)))
    assert not torch.equal(other, found)


def test_random_erasing_hits_the_share_asked_for(photo: Image.Image) -> None:
    transform = pipeline(replace(PLAIN, reprob=0.25, remode="const"), photo, count=400, size=16)
    found, _, _ = transform(np.arange(400), hashed(3, np.arange(400)))
    hit = (found == 0).all(1).flatten(1).sum(1) > 3
    assert 0.18 < hit.float().mean() < 0.32


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.9, 0.5)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"hflip": 1.5}, "hflip"),
        ({"reprob": -0.1}, "reprob"),
        ({"color_jitter": -1.0}, "color_jitter"),
        ({"crop_padding": 4}, "scale=null"),
        ({"crop_padding_mode": "zeros"}, "crop_padding_mode"),
        ({"remode": "blur"}, "remode"),
        ({"train_interpolation": "lanczos"}, "train_interpolation"),
        ({"aa": "rand-x9"}, "aa="),
        ({"aa": "mixture"}, "auto-augment"),
    ],
)
def test_wrong_options_are_refused(photo: Image.Image, options: dict, message: str) -> None:
    with pytest.raises(StarshiftError, match=message):
        transform = pipeline(Augment(**options), photo)
        transform(np.arange(2), hashed(0, np.arange(2)))
