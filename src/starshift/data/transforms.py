# SPDX-License-Identifier: Apache-2.0
"""From decoded pixels to the network's input: antialiased resize, centre crop, normalisation. The one path of
evaluation.

Images are uint8 (C, H, W) throughout, laid out in memory as H, W, C, for which PyTorch's antialiased uint8 resize is
vectorised; only the last step makes floats.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from starshift.data.decode import Source, decode_region
from starshift.preprocessing import Preprocessing

_MARGIN = 1.4
"""A photograph is decoded at reduced size where that leaves so many times the pixels of the resize that follows. The
mean difference is below one grey level then; without the margin, the decoder's sharper filter would show."""

# Called directly since torch.nn.functional.interpolate takes a size or a scale, and a region's extent needs both.
_ANTIALIASED = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}

_LONGEST = 4
"""An image longer than this many times its short side is cut to it (about its centre) before the resize; the crop
never shows more."""


def load_image(source: Source, preprocessing: Preprocessing) -> Tensor:
    """Decode, resize, centre-crop and normalise one image: float32 (C, H, W). Evaluation, prediction and export all
    come through here.

    Args:
        source: a path, the bytes of a file, a Pillow image, or a uint8 tensor (C, H, W).
        preprocessing: size, interpolation, crop share, mean and std; the number of channels is that of the mean.

    Raises:
        BadImageError: where there is no image to be had.
    """
    return normalise(load_pixels(source, preprocessing)[None], preprocessing)[0]


def load_pixels(source: Source, preprocessing: Preprocessing) -> Tensor:
    """As :func:`load_image`, before the normalisation: uint8 (C, H, W)."""

    def region(height: int, width: int) -> tuple[int, int, int, int]:
        tall, wide = min(height, _LONGEST * width), min(width, _LONGEST * height)
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    least = tuple(math.ceil(_MARGIN * side) for side in _scale_size(preprocessing))
    found = decode_region(source, channels=preprocessing.channels, crop=region, size=(least[0], least[1]))
    return eval_pixels(found.pixels, preprocessing, found.extent)


def eval_pixels(pixels: Tensor, preprocessing: Preprocessing, extent: tuple[float, float] | None = None) -> Tensor:
    """Resize the shorter side to ``size / crop_pct`` and crop the centre: uint8 (..., C, H, W) to (..., C, *size)."""
    height, width = preprocessing.size
    tall, wide = extent or (pixels.shape[-2], pixels.shape[-1])
    size = _resized(tall, wide, _scale_size(preprocessing))
    pixels = resize(pixels, size, preprocessing.interpolation, extent)
    top, left = round((pixels.shape[-2] - height) / 2), round((pixels.shape[-1] - width) / 2)
    return pixels[..., top : top + height, left : left + width]


def resize(
    pixels: Tensor, size: tuple[int, int], interpolation: str, extent: tuple[float, float] | None = None
) -> Tensor:
    """Resize uint8 (C, H, W) or (N, C, H, W) to ``size`` = (height, width), antialiased as Pillow does it, to uint8.

    ``extent`` is what of the pixels' height and width is to be shown, where that is a fraction of a pixel less than all
    (see :class:`starshift.data.decode.Region`).
    """
    if pixels.shape[-2:] == size:
        return pixels
    # The batch dimension goes in front of H, W, C: in front of C, its stride would hide the layout and slow the resize.
    batch = pixels if pixels.ndim == 4 else pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    if interpolation == "nearest":
        batch = F.interpolate(batch, size=size, mode="nearest-exact")
    else:
        batch = batch.contiguous(memory_format=torch.channels_last)
        scales = (None, None) if extent is None else (size[0] / extent[0], size[1] / extent[1])
        batch = _ANTIALIASED[interpolation](batch, size, False, *scales)
    return batch if pixels.ndim == 4 else batch[0]


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(pixels / 255 - mean) / std, per channel: uint8 (N, C, H, W) to float32 of the same shape, channels last in
    memory."""
    count, channels, height, width = pixels.shape
    scale, shift = _affine(preprocessing, width)
    result = torch.empty(count, height, width * channels)
    # Rows of W * C values: with C alone as the innermost dimension (three values) this would be ten times slower.
    result.copy_(pixels.permute(0, 2, 3, 1).reshape(count, height, width * channels))
    torch.addcmul(shift, result, scale, out=result)
    return result.view(count, height, width, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _affine(preprocessing: Preprocessing, width: int) -> tuple[Tensor, Tensor]:
    """The normalisation as value * scale + shift, for a row of ``width`` pixels: float32 (width * C,) each."""
    mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
    std = torch.tensor(preprocessing.std, dtype=torch.float64)
    return (1 / (255 * std)).float().repeat(width), (-mean / std).float().repeat(width)


def denormalise(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The inverse of :func:`normalise`, for showing: float (..., C, H, W) to uint8 of the same shape."""
    mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    return (image.detach().cpu().float() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)


def _scale_size(preprocessing: Preprocessing) -> tuple[int, int]:
    height, width = preprocessing.size
    return math.floor(height / preprocessing.crop_pct), math.floor(width / preprocessing.crop_pct)


def _resized(height: float, width: float, target: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of the same aspect ratio that covers ``target``; rounded as torchvision (square) and timm
    (otherwise) do."""
    if target[0] == target[1]:
        if height <= width:
            return target[0], int(target[0] * width / height)
        return int(target[0] * height / width), target[0]
    ratio = min(height / target[0], width / target[1])
    return max(round(height / ratio), target[0]), max(round(width / ratio), target[1])
