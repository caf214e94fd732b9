# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-accumulates (MACs), counted on the meta device: shapes run, numbers don't.

What counts: convolutions and linear layers, ``Cin/groups * kh * kw`` for each value of the output (biases free), and
two for each value that a batch norm scales and shifts, as fvcore counts. Shifts, activations, poolings, layer norms,
the star's own product and residual sums count nothing. ``macs`` is the network as it trains, ``macs_folded`` the same
after :func:`starshift.layers.fold_batchnorm`.

How the published figures compare:

* StarNet: 425M (s1), 547M (s2) and 757M (s3) equal ``macs``, which is fvcore's count of the unfolded network; folded it
  is 422M, 544M and 754M. For s4 the paper states 1075M, fvcore and we count 1054M: unresolved. The 539M that users get
  for s1 is the same count at 244 instead of 224 pixels, the size in the reference script's usage line.
* ShiftResNet and its baselines: the reference code's own counter ignores batch norm and miscounts the stem;
  ``model.reference_macs()`` gives its figures (16,581,248 for shiftresnet20 with expansion 3, where ``macs_folded`` is
  16,433,792).
* ShiftNet: A 1.42G, B 371M ignore batch norm, as ``count_macs(model, size, norms=False)``; most of ShiftNet's norms
  cannot be folded, so ``macs_folded`` is above (1.45G, 382M).
"""

from __future__ import annotations

import csv
import math
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from starshift.errors import StarshiftError
from starshift.layers import fold_batchnorm
from starshift.models._build import create_plain
from starshift.models._registry import get_variant

Shape = Any
COUNTS = Path(__file__).with_name("counts.csv")
_NORMS = (
    torch.ops.aten.native_batch_norm,
    torch.ops.aten.cudnn_batch_norm,
    torch.ops.aten._native_batch_norm_legit_no_training,
)


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model without running it.

    Attributes:
        name, family: of the model; the family of timm's is ``timm``.
        params: trainable parameters.
        macs, macs_folded: multiply-accumulates for one image of ``size``, before and after folding batch norms.
        size: (height, width) in pixels.
        published_top1: the paper's accuracy in percent, by data set and options.
        paper: where it comes from.
    """

    name: str
    family: str
    params: int
    macs: int
    macs_folded: int
    size: tuple[int, int]
    published_top1: dict[str, float] = field(default_factory=dict)
    paper: str = ""


@lru_cache(maxsize=256)
def model_info(name: str) -> ModelInfo:
    """What is known about a model of ours, or of timm's, as its name alone makes it.

    The counts of our own stand in ``counts.csv`` beside this file, since to count a network is to build it.

    Raises:
        StarshiftError: unknown name.
    """
    variant = get_variant(name)
    if variant is None or variant.name not in _recorded():
        return measure(name)
    params, macs, macs_folded = _recorded()[variant.name]
    top1 = dict(variant.published_top1)
    return ModelInfo(name, variant.family, params, macs, macs_folded, variant.size, top1, variant.paper)


def measure(name: str) -> ModelInfo:
    """As :func:`model_info`, but built and counted now.

    Raises:
        StarshiftError: unknown name.
    """
    with torch.device("meta"):
        model = create_plain(name, pretrained=False)
    variant = get_variant(name)
    config = getattr(model, "pretrained_cfg", {})
    size = variant.size if variant else tuple(config.get("input_size", (3, 224, 224))[1:])
    products, norms = _count(model, size)
    folded = fold_batchnorm(model)
    left = any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    return ModelInfo(
        name=name,
        family=variant.family if variant else "timm",
        params=count_params(model),
        macs=products + norms,
        macs_folded=count_macs(folded, size) if left else products,
        size=size,
        published_top1=dict(variant.published_top1) if variant else {},
        paper=variant.paper if variant else str(config.get("paper_name") or ""),
    )


@lru_cache(maxsize=1)
def _recorded() -> dict[str, tuple[int, int, int]]:
    """(params, macs, macs_folded) by name."""
    if not COUNTS.is_file():
        return {}
    with COUNTS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {row["name"]: (int(row["params"]), int(row["macs"]), int(row["macs_folded"])) for row in rows}


def count_params(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, input_size: tuple[int, int], norms: bool = True) -> int:
    """MACs of ``model`` in eval mode for one image; this module's text says what counts.

    The model itself is left alone: a copy runs on the meta device.

    Args:
        model: one of ours or of timm's.
        input_size: (height, width) in pixels.
        norms: count batch norms, at two for each value.

    Raises:
        StarshiftError: the image does not fit the model.
    """
    products, normalised = _count(model, input_size)
    return products + normalised if norms else products


def _count(model: nn.Module, input_size: tuple[int, int]) -> tuple[int, int]:
    """MACs of convolutions and linear layers, and of batch norms."""
    ghost = deepcopy(model).to("meta").eval()
    image = torch.empty(1, getattr(model, "in_chans", 3), *input_size, device="meta")
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
            ghost(image)
    except StarshiftError:
        raise
    except (RuntimeError, AssertionError) as error:
        raise StarshiftError(f"images of {input_size[0]}x{input_size[1]} do not fit this model: {error}") from error
    counts = counter.get_flop_counts()["Global"]
    norms = sum(flops for operator, flops in counts.items() if operator in _NORMS)
    return (sum(counts.values()) - norms) // 2, norms // 2


def _star_mlp(x: Shape, w1: Shape, b1: Shape, w2: Shape, b2: Shape, wg: Shape, *rest: Any, **kw: Any) -> int:
    positions = math.prod(x) // w1[1]
    return 2 * positions * sum(math.prod(weight) for weight in (w1, w2, wg))


def _shift_conv(x: Shape, weight: Shape, *rest: Any, out_shape: Shape, **kw: Any) -> int:
    return conv_flop_count(list(x), list(weight), list(out_shape))


def _nothing(*args: Any, **kw: Any) -> int:
    return 0


def _norm(x: Shape, *rest: Any, **kw: Any) -> int:
    return 4 * math.prod(x)


def _formulas() -> dict[Any, Any]:
    """Flops (two for each MAC) of what torch's counter does not know."""
    ours, aten = torch.ops.starshift, torch.ops.aten
    return {
        ours.star_mlp: _star_mlp,
        ours.shift_conv2d: _shift_conv,
        ours.depthwise_conv2d: _shift_conv,
        ours.shift2d: _nothing,
        ours.star: _nothing,
        aten.native_layer_norm: _nothing,
        **dict.fromkeys(_NORMS, _norm),
    }
