# SPDX-License-Identifier: Apache-2.0
"""Models made by name, and their registration with timm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, split_model_name_tag
from torch import nn

from starshift.errors import StarshiftError, nearest
from starshift.models._registry import OptionError, Variant, check_options, get_variant, variants

TIMM_OPTIONS = (
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "cache_dir",
    "features_only",
    "out_indices",
    "feature_cls",
)
"""What timm's own builder takes beside the model's options."""

default_cfgs: dict[str, Any] = {}
"""timm reads the ``pretrained_cfg`` of the names registered from this module here."""


def is_model(name: str) -> bool:
    """Whether :func:`create_model` knows the name: one of ours, or one of timm's."""
    return get_variant(name) is not None or timm.is_model(name)


def build(variant: Variant, pretrained: bool = False, registered: str = "", **kwargs: Any) -> nn.Module:
    """Make the model with timm's builder: pretrained weights, feature extraction, and timm's ``pretrained_cfg``.

    Args:
        variant: which.
        pretrained: load weights from the Hub (StarNet's are timm's) or from ``pretrained_cfg``.
        registered: timm's name whose ``pretrained_cfg`` is the default; the variant's own name if empty.
        kwargs: the model's options, and timm's :data:`TIMM_OPTIONS`.

    Raises:
        OptionError: a keyword that the model does not take.
    """
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    check_options(variant, kwargs, TIMM_OPTIONS)
    return build_model_with_cfg(
        variant.cls,
        registered or variant.name,
        pretrained,
        feature_cfg={
            "out_indices": tuple(range(-variant.cls.feature_levels, 0)),
            "feature_cls": "getter",
        },
        **{**variant.args, **kwargs},
    )


def create_plain(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Ours by name, else timm's.

    Raises:
        StarshiftError: unknown name (naming the nearest), unknown keyword, or no pretrained weights to be had.
    """
    variant = get_variant(name)
    if variant is None and not timm.is_model(name):
        raise StarshiftError(f"unknown model '{name}'.{nearest(name, [*variants(), *timm.list_models()])}")
    try:
        if variant is None:
            return timm.create_model(name, pretrained=pretrained, **kwargs)
        tag = split_model_name_tag(name)[1]
        if tag:
            kwargs.setdefault("pretrained_cfg", tag)
        return build(variant, pretrained, **kwargs)
    except TypeError as error:
        if isinstance(error, StarshiftError) or "unexpected keyword" not in str(error):
            raise
        raise OptionError(f"{name}: {error}") from error
    except (RuntimeError, OSError) as error:
        if not pretrained:
            raise
        raise StarshiftError(f"no pretrained weights for {name}: {error}") from error


def register_with_timm() -> None:
    """Make every variant known to ``timm.create_model``, where timm has no such name of its own."""
    module = sys.modules[__name__]
    for variant in variants().values():
        name = variant.timm_name
        if timm.is_model(name):
            continue
        default_cfgs.update(generate_default_cfgs({name: variant.pretrained_cfg()}))
        entrypoint = _entrypoint(variant)
        setattr(module, name, entrypoint)
        register_model(entrypoint)


def _entrypoint(variant: Variant) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(variant, pretrained, variant.timm_name, **kwargs)

    create.__name__ = create.__qualname__ = variant.timm_name
    create.__doc__ = f"{variant.paper}: {variant.cls.__name__} with {dict(variant.args)}"
    return create
