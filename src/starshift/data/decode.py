# SPDX-License-Identifier: Apache-2.0
"""Image files to uint8 tensors: JPEG through libjpeg-turbo, with its scaled decode for large photographs, all else
through Pillow.

What an image becomes, whatever it was:

- EXIF orientation is applied: the tensor shows what a viewer shows.
- Greyscale is repeated to three channels, or colour reduced to luma (ITU-R 601) for one channel.
- 16 bits a channel are scaled to 8 (65535 becomes 255), not clipped. Float images must lie in [0, 1].
- A palette is looked up. Transparency (alpha channel or a transparent palette entry) is composited over white.
- CMYK and YCCK JPEGs become RGB, with Adobe's inversion undone.
- Of an animation the first frame is taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from starshift.errors import StarshiftError

MAX_PIXELS = 178_956_970
"""Images of more pixels are refused as decompression bombs (Pillow's own hard limit: 512 MB of RGB)."""

Source: TypeAlias = "str | Path | bytes | Image.Image | Tensor"
"""A path, an encoded file's bytes, a Pillow image, or pixels that are decoded already: uint8 (C, H, W)."""

Box: TypeAlias = "tuple[int, int, int, int]"
"""A crop: (top, left, height, width) in pixels."""

# What libjpeg says of a scan that is damaged. Its other complaints (stray bytes between markers and the like) lose no
# pixel, and Pillow reads on.
_DAMAGED = ("premature end", "bad huffman", "found marker")
# EXIF orientation to quarter turns counter-clockwise, which come after the mirroring of 2, 4, 5 and 7.
_EXIF_TURNS = {3: 2, 5: 1, 6: 3, 7: 3, 8: 1}
_EXIF_MIRRORED = (2, 4, 5, 7)


class BadImageError(StarshiftError):
    """A file that cannot be read as an image: missing, empty, corrupt, truncated, no image at all, or too large."""


def decode_image(source: Source, *, channels: int = 3, min_size: int | None = None) -> Tensor:
    """Decode an image to uint8 (C, H, W), C being ``channels`` (1 or 3); the memory layout is H, W, C.

    Args:
        source: a path, the bytes of a file, a Pillow image, or a uint8 tensor (C, H, W).
        channels: 1 (luma) or 3 (RGB).
        min_size: where given, a large JPEG may come out smaller by 2, 4 or 8, with both sides still at least this
            many pixels.

    Raises:
        BadImageError: with the reason, where there is no image to be had.
    """
    size = (min_size, min_size) if min_size else None
    return decode_region(source, channels=channels, size=size).pixels


class Region(NamedTuple):
    """A decoded part of an image.

    Attributes:
        pixels: uint8 (C, h, w).
        extent: (height, width) of the region in these pixels, (h, w) or a little less: at 1/4, 1281 lines are 320.25,
            decoded as 321. A resize that ignores it shifts the image's far edge.
    """

    pixels: Tensor
    extent: tuple[float, float]


def decode_region(
    source: Source,
    *,
    channels: int = 3,
    crop: Callable[[int, int], Box] | None = None,
    size: tuple[int, int] | None = None,
) -> Region:
    """Decode a region of an image, at a lower resolution where that is cheaper and ``size`` allows it.

    Args:
        source, channels: as for :func:`decode_image`.
        crop: a function of the upright image's (height, width) that answers the region wanted; None takes the whole
            image.
        size: (height, width) that the region will be resized to. A JPEG is decoded at 1/2, 1/4 or 1/8 where the
            region still has at least this size then. None decodes in full.

    Raises:
        BadImageError: as :func:`decode_image`.
    """
    if channels not in (1, 3):
        raise StarshiftError(f"images have 1 or 3 channels, not {channels}")
    if isinstance(source, Tensor):
        pixels = _with_channels(source, channels)
    elif isinstance(source, Image.Image):
        pixels = _decode_with_pillow(source, channels)
    else:
        data = _read_bytes(source)
        if data[:3] == b"\xff\xd8\xff":
            found = _decode_jpeg(data, channels, crop, size)
            if found is not None:
                return found
        pixels = _decode_with_pillow(data, channels)
    if crop is not None:
        top, left, height, width = crop(pixels.shape[1], pixels.shape[2])
        pixels = pixels[:, top : top + height, left : left + width]
    return Region(pixels, (pixels.shape[1], pixels.shape[2]))


def image_size(source: Source) -> tuple[int, int]:
    """The upright image's (height, width), from the file's head alone where that is possible.

    Raises:
        BadImageError: where the head is not an image's.
    """
    if isinstance(source, Tensor):
        return source.shape[1], source.shape[2]
    try:
        image = source if isinstance(source, Image.Image) else _open(_read_bytes(source))
        width, height = image.size
        turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) >= 5  # Pillow turns a TIFF's size itself
        return (width, height) if turned else (height, width)
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(f"not readable as an image: {error}") from error


def _read_bytes(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            with open(source, "rb") as file:
                data = file.read()
        except OSError as error:
            raise BadImageError(f"cannot be opened: {error.strerror or error}") from error
    if not data:
        raise BadImageError("empty file")
    return data


def _too_large(height: int, width: int) -> BadImageError:
    return BadImageError(
        f"too large: {width} x {height} pixels; the limit is {MAX_PIXELS:,} pixels (decompression bomb?)"
    )


# --- JPEG -----------------------------------------------------------------------------------------------------------


def _decode_jpeg(
    data: bytes, channels: int, crop: Callable[[int, int], Box] | None, size: tuple[int, int] | None
) -> Region | None:
    """None hands the file to Pillow: CMYK, and what libjpeg-turbo's simple interface refuses."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours in ("CMYK", "YCCK"):
        return None
    if height * width > MAX_PIXELS:
        raise _too_large(height, width)
    orientation = _jpeg_orientation(data)
    whole = (width, height) if orientation >= 5 else (height, width)
    box = crop(*whole) if crop is not None else (0, 0, *whole)
    factor = _scale_factor(box, size)
    pixels = _turbo(data, channels, height, width, factor)
    if pixels is None:
        return None
    if orientation != 1:
        pixels = _upright(pixels, orientation)
    extent = (box[2] / factor, box[3] / factor)
    if factor > 1:
        box = _scaled_box(box, factor, pixels.shape[0], pixels.shape[1])
    top, left, height, width = box
    return Region(torch.from_numpy(pixels[top : top + height, left : left + width]).permute(2, 0, 1), extent)


def _turbo(data: bytes, channels: int, height: int, width: int, factor: int) -> NDArray[np.uint8] | None:
    colourspace = "RGB" if channels == 3 else "GRAY"
    try:
        if factor == 1:
            pixels = simplejpeg.decode_jpeg(data, colourspace)
        else:  # asking for exactly 1/factor: the smallest decoder scale whose result is not smaller than this
            low, wide = -(-height // factor), -(-width // factor)
            pixels = simplejpeg.decode_jpeg(data, colourspace, min_height=low, min_width=wide, min_factor=2)
    except ValueError as error:
        reason = str(error)
        if any(words in reason.lower() for words in _DAMAGED):
            raise BadImageError(f"corrupt or truncated JPEG: {reason}") from error
        return None
    return pixels


def _scale_factor(box: Box, size: tuple[int, int] | None) -> int:
    """The largest of 8, 4, 2 and 1 that leaves the region at least as large as the target."""
    if size is None:
        return 1
    return next((f for f in (8, 4, 2) if box[2] >= f * size[0] and box[3] >= f * size[1]), 1)


def _scaled_box(box: Box, factor: int, height: int, width: int) -> Box:
    """The box in an image decoded at 1/factor, which has (height, width); at most half a pixel off, and not smaller."""
    top, left = min(round(box[0] / factor), height - 1), min(round(box[1] / factor), width - 1)
    bottom, right = -(-(box[0] + box[2]) // factor), -(-(box[1] + box[3]) // factor)
    return top, left, min(bottom, height) - top, min(right, width) - left


def _jpeg_orientation(data: bytes) -> int:
    if data.find(b"Exif\0\0", 0, 1 << 17) < 0:
        return 1
    try:
        return int(_open(data).getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF block does not make the picture unreadable
        return 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply the EXIF orientation (1 to 8) to (H, W, C)."""
    if orientation in _EXIF_MIRRORED:
        pixels = pixels[::-1] if orientation == 4 else pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, _EXIF_TURNS.get(orientation, 0)))


# --- everything else ------------------------------------------------------------------------------------------------


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(BytesIO(data))


def _decode_with_pillow(source: bytes | Image.Image, channels: int) -> Tensor:
    try:
        image = source if isinstance(source, Image.Image) else _open(source)
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(image.height, image.width)
        image.load()
        return _from_pillow(ImageOps.exif_transpose(image), channels)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("not an image, or of a kind that is not known") from error
    except Image.DecompressionBombError as error:
        raise BadImageError(f"too large: the limit is {MAX_PIXELS:,} pixels (decompression bomb?)") from error
    except Exception as error:  # decoders of broken files raise whatever they trip over: the file is what is wrong
        raise BadImageError(f"corrupt or truncated image: {error}") from error


def _from_pillow(image: Image.Image, channels: int) -> Tensor:
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_8_bits(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    mode = "RGB" if channels == 3 else "L"
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return torch.from_numpy(pixels[:, :, None] if channels == 1 else pixels).permute(2, 0, 1)


def _to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Greyscale of 16 or 32 bits a pixel, or float, to 8 bits."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise BadImageError("float pixels outside [0, 1]: their range is not known")
        return np.rint(values * 255).astype(np.uint8)
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImageError("pixels of more than 16 bits: their range is not known")
    return ((values + 128) // 257).astype(np.uint8)


def _with_channels(pixels: Tensor, channels: int) -> Tensor:
    if pixels.shape[0] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1)
    red, green, blue = pixels.int().unbind(0)  # ITU-R 601, in Pillow's fixed point
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[None]
