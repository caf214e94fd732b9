# SPDX-License-Identifier: Apache-2.0
"""What is measured: a network by its name, run or model folder, one of timm's, or a file that was exported before."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starshift.bench.forms import FLOAT32
from starshift.errors import StarshiftError, nearest

if TYPE_CHECKING:
    from starshift.deploy._source import Source

TIMM = "timm:"  # before a name: timm's own network, also where we have one of that name
PEERS = (
    *("mobilenetv3_large_100", "mobilenetv4_conv_small", "efficientnet_lite0", "fasternet_t0", "repvit_m0_9"),
    *("edgenext_xx_small", "mobileone_s0", "ghostnet_100", "regnety_002"),
    *("starnet_s1", "starnet_s2", "starnet_s3", "starnet_s4"),
)
PUBLISHED = Path(__file__).with_name("published_top1.csv")


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        text: as the user named it.
        file: it is an exported file, so there is one form of it alone.
        name: what rows call it.
    """

    text: str
    file: bool = False

    @property
    def name(self) -> str:
        return self.text

    @property
    def timms(self) -> bool:
        return self.text.startswith(TIMM)

    @property
    def trained(self) -> bool:
        """It has weights of its own, so that accuracy means something; a name alone has random ones."""
        from starshift.deploy._source import PREFIXES

        return Path(self.text).exists() or self.text.startswith(PREFIXES)


@dataclass(frozen=True)
class Facts:
    """What is known of a subject before it is measured; counts are None where a file does not tell.

    Attributes:
        published: its accuracy on ImageNet in percent as its authors state it; None where it has other weights or is
            timed at another size than theirs.
        params: as it trains.
        macs: of one image of ``size``, folded.
        size: side of the input in pixels (its height).
        weights: whether it has weights of its own, so that accuracy means something.
        precision: of a file.
    """

    published: float | None
    params: int | None
    macs: int | None
    size: int
    weights: bool
    precision: str = FLOAT32


def subject_of(text: str) -> Subject:
    """What the user's word means; whether there is such a thing shows when it is opened.

    Raises:
        StarshiftError: a file that is no exported one.
    """
    path = Path(text)
    if not path.exists():
        return Subject(text)
    from starshift.deploy import target_of, targets

    if target_of(path) is not None:
        return Subject(text, file=True)
    if path.is_dir():
        return Subject(text)
    known = ", ".join(target.suffix for target in targets().values())
    raise StarshiftError(f"{path} is no exported file that is known here; their names end in {known}")


@lru_cache(maxsize=1)
def open_subject(subject: Subject, size: int | None) -> Source:
    """The network (eval mode, float32) with all that is known about it; several branches merged into one where timm's
    networks are made for that (RepViT, MobileOne).

    Raises:
        StarshiftError: there is no such network.
    """
    from dataclasses import replace

    import torch
    from timm.utils import reparameterize_model

    from starshift.deploy._source import open_source

    torch.manual_seed(0)
    source = _timms(subject, size) if subject.timms else open_source(subject.text, img_size=size)
    return replace(source, model=reparameterize_model(source.model))


def _timms(subject: Subject, size: int | None) -> Source:
    from timm import create_model
    from timm.models import is_model

    from starshift.deploy._source import Source, class_names
    from starshift.preprocessing import Preprocessing

    name = subject.text.removeprefix(TIMM)
    if not is_model(name):
        from timm import list_models

        raise StarshiftError(f"timm has no model '{name}'.{nearest(name, list_models())}")
    model: Any = create_model(name).eval()
    config: dict[str, Any] = dict(model.pretrained_cfg)
    if size is not None:
        config["input_size"] = (config["input_size"][0], size, size)
    return Source(name, model, {}, class_names(model.num_classes), Preprocessing.from_config(config))


def facts_of(subject: Subject, size: int | None) -> Facts:
    """Count and describe; see :class:`Facts`.

    Raises:
        StarshiftError: it cannot be opened.
    """
    if subject.file:
        return _facts_of_file(subject)
    from starshift.layers import fold_batchnorm
    from starshift.models import count_macs, count_params

    source = open_subject(subject, size)
    side = source.preprocessing.size
    macs = count_macs(fold_batchnorm(source.model), side)
    known = None if subject.trained else published(source.name, side[0])
    return Facts(known, count_params(source.model), macs, side[0], subject.trained)


def _facts_of_file(subject: Subject) -> Facts:
    """From what travels in the file; counted on the network that it names."""
    import torch

    from starshift.deploy import load_exported
    from starshift.layers import fold_batchnorm
    from starshift.models import count_macs, count_params, create_model, is_model

    predictor = load_exported(subject.text)
    side = predictor.preprocessing.size
    metadata, trained = predictor.metadata, predictor.trained
    unknown = Facts(None, None, None, side[0], trained, metadata.precision)
    if not is_model(predictor.name):
        return unknown
    arguments = {"num_classes": len(predictor.classes), **dict(metadata.model_args)}
    try:
        with torch.device("meta"):
            network = create_model(predictor.name, **arguments)
        macs = count_macs(fold_batchnorm(network), side)
    except (StarshiftError, TypeError, ValueError, RuntimeError):  # written where the architecture had other options
        return unknown
    return Facts(None, count_params(network), macs, side[0], trained, metadata.precision)


def published(name: str, size: int) -> float | None:
    """What :func:`published_top1` has for this network at this side of the image, if that is its own."""
    from starshift.models import model_info

    found = published_top1().get(name)
    return found if found is not None and model_info(name).size[0] == size else None


@lru_cache(maxsize=1)
def published_top1() -> dict[str, float]:
    """Published ImageNet-1k top-1 accuracy in percent, by model; sources stand in the file."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        return {row["model"]: float(row["top1"]) for row in csv.DictReader(file)}
