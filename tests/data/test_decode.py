# SPDX-License-Identifier: Apache-2.0
"""Every kind of file an image may come in, and every kind that is none."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

from starshift.data import BadImageError, decode_image
from starshift.data.decode import MAX_PIXELS, decode_region, image_size
from starshift.errors import StarshiftError


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


def apart(tensor: torch.Tensor, expected: Image.Image) -> int:
    """The largest difference in grey levels."""
    found = pixels(tensor).astype(int)
    wanted = np.asarray(expected).astype(int)
    return int(np.abs(found - wanted.reshape(found.shape)).max())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_common_kinds_equal_pillow(photo: Image.Image, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"photo.{kind.lower()}"
    photo.save(path, kind)
    found = decode_image(path)
    assert found.dtype == torch.uint8 and found.shape == (3, 427, 640)
    assert apart(found, Image.open(path).convert("RGB")) <= 1
    assert torch.equal(found, decode_image(path.read_bytes()))
    assert torch.equal(found, decode_image(str(path)))


def test_one_channel_is_luma(photo: Image.Image) -> None:
    assert apart(decode_image(encoded(photo, "PNG"), channels=1), photo.convert("L")) == 0
    data = encoded(photo, "JPEG")
    found = decode_image(data, channels=1)  # the file's own luma: colours that it cannot show are clipped in RGB only
    assert np.abs(pixels(found)[..., 0].astype(int) - np.asarray(Image.open(BytesIO(data)).convert("L"))).mean() < 0.5
    tensor = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    assert apart(decode_image(tensor, channels=1), photo.convert("L")) == 0


def test_other_channel_counts_are_refused(photo: Image.Image) -> None:
    with pytest.raises(StarshiftError, match="1 or 3 channels"):
        decode_image(photo, channels=4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_greyscale_is_repeated(photo: Image.Image, kind: str) -> None:
    grey = photo.convert("L")
    found = decode_image(encoded(grey, kind))
    assert found.shape[0] == 3
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert apart(found[:1], Image.open(BytesIO(encoded(grey, kind)))) == 0


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)
    path = tmp_path / "ramp.png"
    Image.fromarray(ramp).save(path)
    found = pixels(decode_image(path, channels=1))[..., 0]
    assert np.abs(found - ramp / 257).max() <= 0.5
    assert found.min() == 0 and found.max() == 255 and len(np.unique(found)) == 256


def test_sixteen_bit_colour_png(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 8 * 8 * 3).astype(">u2").reshape(8, 8, 3)
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    path = tmp_path / "deep.png"
    path.write_bytes(_png(8, 8, depth=16, colour=2, data=rows))
    assert np.abs(pixels(decode_image(path)) - levels.astype(int) / 257).max() <= 1


def _png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_float_tiff(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "unit.tiff")
    assert np.abs(pixels(decode_image(tmp_path / "unit.tiff"))[..., 0] - values * 255).max() <= 0.5
    Image.fromarray(values * 300).save(tmp_path / "wide.tiff")
    with pytest.raises(BadImageError, match="outside"):
        decode_image(tmp_path / "wide.tiff")


def test_palette_and_its_transparent_entry(photo: Image.Image) -> None:
    palette = photo.quantize(16)
    assert apart(decode_image(encoded(palette, "PNG")), palette.convert("RGB")) == 0
    transparent = decode_image(encoded(palette, "PNG", transparency=3))
    hidden = torch.from_numpy(np.asarray(palette) == 3)
    assert hidden.any() and (transparent[:, hidden] == 255).all()
    assert torch.equal(transparent[:, ~hidden], decode_image(encoded(palette, "PNG"))[:, ~hidden])


def test_alpha_is_composited_over_white(photo: Image.Image) -> None:
    alpha = Image.new("L", photo.size, 0)
    alpha.paste(255, (0, 0, 320, 427))
    alpha.paste(128, (300, 0, 340, 427))
    image = photo.copy()
    image.putalpha(alpha)
    found = decode_image(encoded(image, "PNG")).permute(1, 2, 0).float()
    share = torch.from_numpy(np.asarray(alpha) / 255).float()[..., None]
    wanted = torch.from_numpy(np.asarray(photo).copy()).float() * share + 255 * (1 - share)
    assert (found - wanted).abs().max() <= 1
    assert (found[:, 341:] == 255).all()


@pytest.mark.parametrize("kind", ["CMYK", "YCCK"])
def test_cmyk_jpeg_has_the_right_colours(photo: Image.Image, kind: str) -> None:
    cmyk = photo.convert("CMYK")
    if kind == "CMYK":
        data = encoded(cmyk, "JPEG", quality=95)
    else:  # Adobe's files hold inverted values
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(255 - np.asarray(cmyk)), 95, "CMYK", "444")
    assert simplejpeg.decode_jpeg_header(data)[2] == kind
    found = pixels(decode_image(data)).astype(int)
    assert np.abs(found - np.asarray(photo)).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(photo: Image.Image, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo.crop((0, 0, 101, 67)), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)).convert("RGB"))
    found = decode_image(data)
    assert apart(found, upright) <= 1
    assert image_size(data) == (found.shape[1], found.shape[2])
    opened = decode_image(Image.open(BytesIO(data)))
    assert apart(opened, upright) <= 1 and image_size(Image.open(BytesIO(data))) == (found.shape[1], found.shape[2])


def test_an_opened_image_that_is_cut_off_is_a_bad_image(photo: Image.Image) -> None:
    data = encoded(photo, "PNG")
    with pytest.raises(BadImageError, match="truncated"):
        decode_image(Image.open(BytesIO(data[: len(data) // 2])))


def test_exif_orientation_with_a_scaled_crop(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo.crop((0, 0, 640, 416)), "JPEG", exif=exif, quality=95)
    box = (100, 40, 400, 300)
    region, extent = decode_region(data, crop=lambda height, width: box, size=(100, 100))
    assert extent == (200, 150) and region.shape == (3, 200, 150)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    wanted = upright.crop((40, 100, 340, 500)).resize((150, 200), Image.Resampling.BOX)
    assert np.abs(pixels(region).astype(int) - np.asarray(wanted)).mean() < 2


def test_damaged_exif_is_ignored(photo: Image.Image) -> None:
    data = bytearray(encoded(photo, "JPEG", exif=b"Exif\0\0" + b"\xff" * 40))
    assert decode_image(bytes(data)).shape == (3, 427, 640)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(photo: Image.Image, kind: str) -> None:
    first, second = photo.resize((64, 48)), Image.new("RGB", (64, 48), (255, 0, 0))
    data = encoded(
        first, kind, save_all=True, append_images=[second, second], **({} if kind == "GIF" else {"lossless": True})
    )
    assert Image.open(BytesIO(data)).n_frames >= 2
    assert apart(decode_image(data), Image.open(BytesIO(data)).convert("RGB")) <= 1
    assert np.abs(pixels(decode_image(data)).astype(int) - np.asarray(first)).mean() < 10


def test_scaled_decode_keeps_to_the_minimum_and_looks_the_same(photo: Image.Image) -> None:
    large = photo.resize((1920, 1281), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=95)
    for min_size, height in ((1281, 1281), (641, 1281), (640, 641), (320, 321), (200, 321), (10, 161)):
        found = decode_image(data, min_size=min_size)
        assert found.shape[1] == height >= min_size
    half = large.resize((960, 640), Image.Resampling.BOX, box=(0, 0, 1920, 1280))
    assert np.abs(pixels(decode_image(data, min_size=600))[:640].astype(int) - np.asarray(half)).mean() < 2


def test_too_large_says_the_limit(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 10
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(_png(side, side, depth=1, colour=0, data=(b"\0" * (1 + (side + 7) // 8)) * side))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(BadImageError, match=f"limit is {MAX_PIXELS:,} pixels"):
        decode_image(bomb)


def test_too_large_jpeg_is_refused_by_its_header(photo: Image.Image) -> None:
    data = bytearray(encoded(photo, "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 60000, 60000)
    with pytest.raises(BadImageError, match="too large: 60000 x 60000"):
        decode_image(bytes(data))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="No such file"):
        decode_image(tmp_path / "nowhere.jpg")
    with pytest.raises(BadImageError, match="directory"):
        decode_image(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"\xff\xd8\xff\xe0", b"GIF89a", b"\x89PNG\r\n\x1a\n", bytes(range(256)) * 9]
)
def test_no_image_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImageError):
        decode_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated(photo: Image.Image, kind: str, kept: float) -> None:
    data = encoded(photo, kind)
    with pytest.raises(BadImageError):
        decode_image(data[: int(len(data) * kept)])


def test_corrupt_jpeg(photo: Image.Image) -> None:
    data = bytearray(encoded(photo, "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 2] = b"\xff\xd9"  # an end marker amid the scan
    with pytest.raises(BadImageError, match="corrupt or truncated"):
        decode_image(bytes(data))


def test_corrupt_png(photo: Image.Image) -> None:
    data = bytearray(encoded(photo, "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadImageError, match="corrupt"):
        decode_image(bytes(data))


def test_harmless_flaws_are_forgiven(photo: Image.Image) -> None:
    data = encoded(photo, "JPEG")
    whole = decode_image(data)
    assert torch.equal(decode_image(data + b"\0" * 100), whole)
