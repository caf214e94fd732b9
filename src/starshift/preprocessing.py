# SPDX-License-Identifier: Apache-2.0
"""What happens to an image between its file and the network: one value from training to the exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from starshift.errors import StarshiftError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocessing:
    """Resize (shorter side to ``size / crop_pct``), centre crop to ``size``, scale to [0, 1], normalise per channel.

    Attributes:
        size: (height, width) in pixels of the network's input.
        mean, std: per channel, for pixel values in [0, 1]; their length is the number of channels (1 or 3).
        interpolation: ``nearest``, ``bilinear`` or ``bicubic`` (antialiased).
        crop_pct: share of the resized image that the centre crop keeps, in (0, 1].

    Raises:
        StarshiftError: a size that is not positive, mean and std of different lengths, a std of zero or less, an
            unknown interpolation, or a crop_pct outside (0, 1].
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise StarshiftError(f"image size must be positive, not {self.size}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise StarshiftError(f"mean and std need 1 or 3 values each, not {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise StarshiftError(f"std must be above zero, not {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise StarshiftError(f"interpolation is one of {', '.join(INTERPOLATIONS)}, not {self.interpolation!r}")
        if not 0 < self.crop_pct <= 1:
            raise StarshiftError(f"crop_pct must be in (0, 1], not {self.crop_pct}")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def to_config(self) -> dict[str, Any]:
        """The same facts under timm's ``pretrained_cfg`` names (``input_size`` is (channels, height, width))."""
        config = asdict(self)
        size = config.pop("size")
        return {
            "input_size": [self.channels, *size],
            **{k: list(v) if isinstance(v, tuple) else v for k, v in config.items()},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Read timm's ``pretrained_cfg`` names; what is absent keeps its default. A random interpolation: bicubic."""
        channels, height, width = config.get("input_size", (3, 224, 224))
        mean = tuple(config.get("mean", IMAGENET_MEAN))
        std = tuple(config.get("std", IMAGENET_STD))
        if len(mean) != channels:
            mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
        interpolation = config.get("interpolation", "bicubic")
        if interpolation not in INTERPOLATIONS:
            interpolation = "bicubic"
        crop = float(config.get("crop_pct") or 1.0)
        return cls((height, width), mean, std, interpolation, crop)
