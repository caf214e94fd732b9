# SPDX-License-Identifier: Apache-2.0
"""The networks by name: StarNet, DemoNet, ShiftResNet, ShiftNet, StarShift, and the residual networks they are compared
with.

A family is a file here without a leading underscore that holds ``VARIANTS``; nothing else lists it. Every model has
timm's surface, and importing this package makes our names known to ``timm.create_model`` (timm's own names stay
timm's).
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

from torch import nn

from starshift.models._build import create_plain, is_model, register_with_timm
from starshift.models._counting import ModelInfo, count_macs, count_params, model_info
from starshift.models._folder import LoadedModel, create_from, load_model, save_model
from starshift.models._registry import OptionError, variants
from starshift.models._weights import WeightsError, load_weights

__all__ = [
    "LoadedModel",
    "ModelInfo",
    "OptionError",
    "WeightsError",
    "count_macs",
    "count_params",
    "create_model",
    "is_model",
    "list_models",
    "load_model",
    "load_weights",
    "model_info",
    "save_model",
]

register_with_timm()


def list_models(filter: str = "") -> list[str]:
    """Names of our models, in natural order; ``filter`` is a pattern such as ``"starnet_*"``."""
    names = (name for name in variants() if not filter or fnmatch.fnmatch(name, filter))
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def create_model(
    name: str, pretrained: bool = False, checkpoint_path: str | Path | None = None, **kwargs: Any
) -> nn.Module:
    """Make a model by name.

    Args:
        name: one of :func:`list_models`, any of timm's names where we have none of that name, or
            ``local-dir:<folder>`` or ``hf-hub:<repository>`` (``pretrained`` then loads the weights found there).
        pretrained: load published weights from the Hub (StarNet s1 to s4 have some, through timm).
        checkpoint_path: weights to load.
        kwargs: the model's options: ``num_classes``, ``in_chans``, ``drop_rate``, ``drop_path_rate``, and those of
            its class.

    Raises:
        StarshiftError: unknown name or keyword (the nearest right one is named), or weights that cannot be had or do
            not fit.

    Example:
        >>> from starshift.models import create_model
        >>> model = create_model("shiftresnet20", expansion=3, num_classes=10)
        >>> sum(p.numel() for p in model.parameters())
        95642
    """
    make = create_from if name.startswith(("local-dir:", "hf-hub:")) else create_plain
    model = make(name, pretrained, **kwargs)
    if checkpoint_path:
        load_weights(model, checkpoint_path)
    return model
