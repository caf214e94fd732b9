# SPDX-License-Identifier: Apache-2.0
"""Random augmentation of training images, under timm's option names.

Order: random resized crop (or resize and padded random crop), flips, timm's auto-augment, colour jitter,
normalisation, timm's random erasing. Geometry works on uint8 tensors; Pillow is visited only where auto-augment or
colour jitter is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from starshift.data.decode import Box
from starshift.errors import StarshiftError
from starshift.preprocessing import Preprocessing

INTERPOLATIONS = ("random", "bilinear", "bicubic", "nearest")
PADDING_MODES = ("constant", "edge", "reflect", "symmetric")
DRAWS = 28
"""Uniform numbers a sample may use: 0..19 crop attempts, 20 and 21 its place, 22 and 23 flips, 24 interpolation, 25
and 26 padded crop, 27 erasing."""


@dataclass(frozen=True)
class Augment:
    """What may happen at random to a training image; the names are timm's.

    Attributes:
        scale: share of the image's area that the random resized crop keeps, (least, most); None: no such crop, but
            the resize and centre crop of evaluation.
        ratio: its aspect ratio, width / height, (least, most).
        crop_padding: pixels put around the resized image before a random crop of the network's size (CIFAR's usual
            4). Wants ``scale=None``.
        crop_padding_mode: what they are, by torchvision's names: ``constant`` (black), ``edge``, ``reflect`` or
            ``symmetric``.
        hflip, vflip: probability of mirroring left-right, top-bottom.
        color_jitter: strength of brightness, contrast and saturation changes; 0 is none. Left out where ``aa`` is
            given, as in timm, unless that is three-augment ("3a").
        aa: timm's auto-augment string, such as ``rand-m9-mstd0.5-inc1``, ``augmix-m5``, ``original``; empty is none.
        reprob, remode, recount: random erasing's probability, mode (``const``, ``rand`` or ``pixel``) and count.
        train_interpolation: ``random`` (bilinear or bicubic), ``bilinear``, ``bicubic`` or ``nearest``.

    Raises:
        StarshiftError: a value outside its range, named.
    """

    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.0
    aa: str = ""
    reprob: float = 0.0
    remode: str = "pixel"
    recount: int = 1
    crop_padding: int = 0
    crop_padding_mode: str = "constant"
    train_interpolation: str = "random"

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise StarshiftError(f"scale is two shares of the area, 0 < least <= most <= 1, not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise StarshiftError(f"ratio is two positive numbers, least <= most, not {self.ratio}")
        for name in ("hflip", "vflip", "reprob"):
            if not 0 <= getattr(self, name) <= 1:
                raise StarshiftError(f"{name} is a probability in [0, 1], not {getattr(self, name)}")
        if self.color_jitter < 0 or self.crop_padding < 0 or self.recount < 1:
            raise StarshiftError("color_jitter and crop_padding must not be negative, and recount must be at least 1")
        if self.crop_padding and self.scale is not None:
            raise StarshiftError(
                "crop_padding goes without scale (--set scale=null): choose either the padded crop or the random "
                "resized crop"
            )
        if self.crop_padding_mode not in PADDING_MODES:
            raise StarshiftError(
                f"crop_padding_mode is one of {', '.join(PADDING_MODES)}, not {self.crop_padding_mode!r}"
            )
        if self.remode not in ("const", "rand", "pixel"):
            raise StarshiftError(f"remode is const, rand or pixel, not {self.remode!r}")
        if self.train_interpolation not in INTERPOLATIONS:
            raise StarshiftError(
                f"train_interpolation is one of {', '.join(INTERPOLATIONS)}, not {self.train_interpolation!r}"
            )
        _check_auto_augment(self.aa)

    def interpolation(self, draws: NDArray[np.float64]) -> str:
        if self.train_interpolation == "random":
            return "bilinear" if draws[24] < 0.5 else "bicubic"
        return self.train_interpolation


def _check_auto_augment(aa: str) -> None:
    if aa and not aa.startswith(("rand", "augmix", "original", "v0", "3a")):
        raise StarshiftError(
            f"aa is timm's auto-augment string (rand-..., augmix-..., original..., v0..., 3a), not {aa!r}"
        )


def random_resized_crop(height: int, width: int, augment: Augment, draws: NDArray[np.float64]) -> Box:
    """The region that random resized crop keeps of an image (Szegedy et al. 2015, section 6; ten attempts, then the
    centre).

    ``draws``: :data:`DRAWS` uniform numbers in [0, 1).
    """
    assert augment.scale is not None
    (least, most), (narrow, broad) = augment.scale, augment.ratio
    log_narrow, log_broad = math.log(narrow), math.log(broad)
    for attempt in range(10):
        area = height * width * (least + (most - least) * float(draws[2 * attempt]))
        ratio = math.exp(log_narrow + (log_broad - log_narrow) * float(draws[2 * attempt + 1]))
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            return int(float(draws[20]) * (height - tall + 1)), int(float(draws[21]) * (width - wide + 1)), tall, wide
    tall, wide = height, width
    if width / height < narrow:
        tall = max(round(width / narrow), 1)
    elif width / height > broad:
        wide = max(round(height * broad), 1)
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def pad_and_crop(pixels: NDArray[np.uint8], augment: Augment, draws: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Crop a batch (N, H, W, C) at random places after padding on every side; ``draws`` is (N, DRAWS). The size
    stays."""
    _, height, width, _ = pixels.shape
    around = (augment.crop_padding, augment.crop_padding)
    padded = np.pad(pixels, ((0, 0), around, around, (0, 0)), augment.crop_padding_mode)  # type: ignore[call-overload]
    places = (draws[:, 25:27] * (2 * augment.crop_padding + 1)).astype(int).tolist()
    result = np.empty_like(pixels)
    for i, (top, left) in enumerate(places):
        result[i] = padded[i, top : top + height, left : left + width]
    return result


def flip(pixels: Tensor, augment: Augment, draws: NDArray[np.float64]) -> None:
    """Mirror some images of a batch uint8 (N, H, W, C) in place; ``draws`` is (N, DRAWS)."""
    for dim, probability, draw in ((2, augment.hflip, 22), (1, augment.vflip, 23)):
        if probability:
            chosen = torch.from_numpy(np.flatnonzero(draws[:, draw] < probability))
            pixels[chosen] = torch.flip(pixels[chosen], (dim,))


@lru_cache(maxsize=8)
def pillow_augmentation(
    augment: Augment, preprocessing: Preprocessing
) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None:
    """timm's auto-augment and torchvision's colour jitter on one image (H, W, C), drawing from the global generators;
    None: neither."""
    steps: list[Any] = []
    if augment.aa:
        steps.append(_auto_augment(augment, preprocessing))
    if augment.color_jitter and (not augment.aa or "3a" in augment.aa):
        from torchvision.transforms import ColorJitter

        steps.append(ColorJitter(*[augment.color_jitter] * 3))
    if not steps:
        return None

    def apply(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        grey = pixels.shape[2] == 1
        image = Image.fromarray(np.repeat(pixels, 3, axis=2) if grey else np.ascontiguousarray(pixels), "RGB")
        for step in steps:
            image = step(image)
        result = np.asarray(image.convert("L") if grey else image)
        return result[:, :, None] if grey else result

    return apply


def _auto_augment(augment: Augment, preprocessing: Preprocessing) -> Any:
    from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
    from timm.data.transforms import str_to_pil_interp

    mean = (*preprocessing.mean, *preprocessing.mean, *preprocessing.mean)[:3]
    params: dict[str, Any] = {
        "translate_const": int(min(preprocessing.size) * 0.45),
        "img_mean": tuple(min(255, round(255 * x)) for x in mean),
    }
    if augment.train_interpolation != "random":
        params["interpolation"] = str_to_pil_interp(augment.train_interpolation)
    try:
        if augment.aa.startswith("rand"):
            return rand_augment_transform(augment.aa, params)
        if augment.aa.startswith("augmix"):
            params["translate_pct"] = 0.3
            return augment_and_mix_transform(augment.aa, params)
        return auto_augment_transform(augment.aa, params)
    except (AssertionError, ValueError, KeyError) as error:
        raise StarshiftError(f"timm does not understand aa={augment.aa!r}: {error or type(error).__name__}") from error


@lru_cache(maxsize=8)
def random_erasing(augment: Augment) -> Any:
    """timm's random erasing (Zhong et al. 2017) of a normalised float image (C, H, W), drawing from the global
    generators; None: not wanted. It always erases: whether to is the caller's draw."""
    if not augment.reprob:
        return None
    from timm.data.random_erasing import RandomErasing

    return RandomErasing(1.0, mode=augment.remode, max_count=augment.recount, device="cpu")
