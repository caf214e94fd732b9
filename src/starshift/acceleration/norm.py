# SPDX-License-Identifier: Apache-2.0
"""Batch norm, with the activation that follows it, by our operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from timm.layers import BatchNormAct2d, activations
from torch import Tensor, nn

from starshift.acceleration._rules import DTYPES, ClassRule, rule
from starshift.layers.norm import can_normalise, is_watched, normalise

# Class of an activation (exactly this one): its name, and whether its options are those that the name stands for.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, Callable[[Any], bool]]] = {
    nn.Identity: ("none", lambda m: True),
    nn.ReLU: ("relu", lambda m: True),
    nn.ReLU6: ("relu6", lambda m: (m.min_val, m.max_val) == (0, 6)),
    nn.GELU: ("gelu", lambda m: m.approximate == "none"),
    activations.GELU: ("gelu", lambda m: True),
    nn.Hardswish: ("hardswish", lambda m: True),
    activations.HardSwish: ("hardswish", lambda m: True),
    nn.SiLU: ("silu", lambda m: True),
    activations.Swish: ("silu", lambda m: True),
    nn.LeakyReLU: ("leaky_relu", lambda m: m.negative_slope == 0.01),
}


def activation_name(module: nn.Module) -> str | None:
    """The operators' name of this activation, or None where they have none."""
    name, fits = _ACTIVATIONS.get(type(module), ("", lambda m: False))
    return name if fits(module) else None


class AcceleratedBatchNorm2d(nn.BatchNorm2d):
    """An ``nn.BatchNorm2d`` that runs :func:`starshift.ops.batch_norm_act`."""

    def forward(self, input: Tensor) -> Tensor:
        return normalise(self, input) if can_normalise(self, input) else super().forward(input)


class AcceleratedBatchNormAct2d(BatchNormAct2d):
    """A ``timm.layers.BatchNormAct2d`` whose norm and activation are one operator."""

    def forward(self, x: Tensor) -> Tensor:
        if not can_normalise(self, x):
            return super().forward(x)
        act = activation_name(self.act)
        if act is None or type(self.drop) is not nn.Identity or is_watched(self.act) or is_watched(self.drop):
            return super().forward(x)
        return normalise(self, x, act)


@rule
class BatchNorm(ClassRule):
    what = "batch norm with its activation"
    classes: ClassVar = {nn.BatchNorm2d: AcceleratedBatchNorm2d, BatchNormAct2d: AcceleratedBatchNormAct2d}

    def match(self, module: nn.Module) -> bool | str | None:
        return (
            "shares its statistics between processes" if isinstance(module, nn.SyncBatchNorm) else super().match(module)
        )

    def fits(self, module: nn.BatchNorm2d) -> bool | str | None:
        if module.weight is not None and module.weight.dtype not in DTYPES:
            return str(module.weight.dtype).removeprefix("torch.")
        if isinstance(module, BatchNormAct2d):
            if type(module.drop) is not nn.Identity:
                return f"{type(module.drop).__name__} stands between norm and activation"
            if activation_name(module.act) is None:
                return f"activation {type(module.act).__name__}"
        return True
