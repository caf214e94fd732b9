# SPDX-License-Identifier: Apache-2.0
"""What models there are: every module of this package without a leading underscore is a family with ``VARIANTS``."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from starshift.errors import StarshiftError, nearest
from starshift.preprocessing import IMAGENET_MEAN, IMAGENET_STD

CIFAR: Mapping[str, Any] = {
    "size": (32, 32),
    "num_classes": 10,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
    "crop_pct": 1.0,
}
"""What a :class:`Variant` for CIFAR-10 has."""


class OptionError(StarshiftError, TypeError):
    """A keyword that the model does not take."""


@dataclass(frozen=True)
class Variant:
    """One named model.

    Attributes:
        name: lower case, distinct from timm's names unless the model is the same network.
        cls: its class; the class's keywords are the model's options.
        args: the options that make this variant.
        size: (height, width) in pixels it is meant for.
        num_classes: default, that of the paper's data.
        mean, std: of the paper's data, for pixels in [0, 1].
        crop_pct: share of the resized image that the centre crop keeps.
        published_top1: the paper's accuracy in percent, by data set and, where it depends on them, options.
        paper: where it comes from.
        timm_args: for a network that timm has too under this name: the options that timm's understands alike.
    """

    name: str
    cls: type[Any]
    args: Mapping[str, Any]
    size: tuple[int, int] = (224, 224)
    num_classes: int = 1000
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = 0.875
    published_top1: Mapping[str, float] = field(default_factory=dict)
    paper: str = ""
    timm_args: frozenset[str] | None = None

    @property
    def family(self) -> str:
        return self.cls.__module__.rpartition(".")[2]

    @property
    def timm_name(self) -> str:
        """The name under which timm builds our class: timm's own names stay timm's."""
        return self.name if self.timm_args is None else f"starshift_{self.name}"

    def options(self) -> tuple[str, ...]:
        """The keywords that the model takes."""
        return tuple(p for p in inspect.signature(self.cls).parameters if p != "self")

    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's ``pretrained_cfg`` of the untrained network."""
        channels = self.args.get("in_chans", 3)
        first_conv, classifier = self.cls.first_conv, "head"
        return {
            "architecture": self.timm_name,
            "input_size": (channels, *self.size),
            "num_classes": self.num_classes,
            "mean": self.mean[:channels],
            "std": self.std[:channels],
            "interpolation": "bicubic",
            "crop_pct": self.crop_pct,
            "first_conv": first_conv,
            "classifier": classifier,
            "paper_name": self.paper,
        }


@cache
def variants() -> dict[str, Variant]:
    """Every variant by name."""
    package = import_module(__package__ or "starshift.models")
    found: dict[str, Variant] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            family: Iterable[Variant] = import_module(f"{package.__name__}.{module.name}").VARIANTS
            for variant in family:
                if variant.name in found:
                    raise ValueError(f"two models are called {variant.name}")
                found[variant.name] = variant
    return found


def get_variant(name: str) -> Variant | None:
    """The variant of this name, with or without a tag of its weights, also by the name that timm has for it
    (``starshift_starnet_s1``), or None."""
    found, name = variants(), name.partition(".")[0]
    plain = name.removeprefix("starshift_")
    if name != plain and name not in found:
        return found[plain] if plain in found and found[plain].timm_name == name else None
    return found.get(name)


def check_options(variant: Variant, options: Iterable[str], extra: Iterable[str] = ()) -> None:
    """Refuse keywords that the model does not take.

    Raises:
        OptionError: naming the first of them, and the right one that is most like it.
    """
    known = (*variant.options(), *extra)
    for option in options:
        if option not in known:
            raise OptionError(
                f"{variant.name} has no option '{option}'.{nearest(option, known)} "
                f"It takes: {', '.join(variant.options())}"
            )
