# SPDX-License-Identifier: Apache-2.0
"""Photographic JPEG files to measure with, where there are no others: made from the two photographs in scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def make_photographs(
    root: Path, count: int, width: int, height: int, *, classes: int = 2, quality: int = 88, seed: int = 0
) -> None:
    """Write ``count`` JPEG files of ``width`` x ``height`` into class folders below ``root``.

    Each is a random part of a photograph, mirrored at random and enlarged where need be. What enlarging lacks in
    detail is given back as noise whose amplitude falls with frequency, as that of natural images does (Field 1987),
    so that the files have about the bits per pixel of photographs, on which the speed of decoding depends.
    """
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(seed)
    originals = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(count):
        folder = root / f"class{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        part = _part(originals[number % len(originals)], width / height, random).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(part, np.float32) + 6 * _noise(height, width, random)[..., None]
        image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
        image.save(folder / f"{number:05d}.jpg", quality=quality)


def _part(image: Image.Image, ratio: float, random: np.random.Generator) -> Image.Image:
    most = min(image.width, image.height * ratio)
    width = random.uniform(0.6, 1.0) * most
    left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - width / ratio)
    part = image.crop((int(left), int(top), int(left + width), int(top + width / ratio)))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else part


def _noise(height: int, width: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Noise with an amplitude of 1 / frequency, of standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal((height, width))) / frequency
    noise = np.fft.irfft2(spectrum, s=(height, width))
    return (noise / noise.std()).astype(np.float32)
