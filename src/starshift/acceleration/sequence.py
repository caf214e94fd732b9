# SPDX-License-Identifier: Apache-2.0
"""Convolution, batch norm and activation that stand behind one another in a sequence."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torchvision
from torch import Tensor, nn

from starshift.acceleration._rules import ClassRule, rule
from starshift.acceleration.expansion import widen, widens
from starshift.acceleration.norm import AcceleratedBatchNorm2d, activation_name
from starshift.layers.norm import can_normalise, is_watched, normalise

_NORMS = (nn.BatchNorm2d, AcceleratedBatchNorm2d)


class _FusingSequence(nn.Sequential):
    """Runs a batch norm and the activation right after it as one, with the convolution before it where that widens.

    A module that a hook watches is called on its own.
    """

    def forward(self, input: Tensor) -> Tensor:
        modules = list(self)
        while modules:
            module = modules.pop(0)
            if modules and type(modules[0]) in _NORMS and widens(module, modules[0]):
                act = _activation_of(modules[1:])
                y = widen(module, modules[0], input, act or "none")
                if y is not None:
                    input, modules = y, modules[1 if act is None else 2 :]
                    continue
            act = _activation_of(modules)
            ours = isinstance(module, AcceleratedBatchNorm2d) and not is_watched(module)
            if act is not None and ours and can_normalise(module, input):
                input = normalise(module, input, act)
                del modules[0]
            else:
                input = module(input)
        return input


def _activation_of(modules: list[nn.Module]) -> str | None:
    """The name of the activation that comes next; None where none does, or a hook watches it."""
    return None if not modules or is_watched(modules[0]) else activation_name(modules[0])


class AcceleratedSequential(_FusingSequence):
    """A plain ``nn.Sequential`` with a batch norm and an activation, or a widening convolution and a batch norm."""


class AcceleratedConv2dNormActivation(_FusingSequence, torchvision.ops.Conv2dNormActivation):
    """torchvision's convolution, norm and activation."""


@rule
class Sequence(ClassRule):
    what = "norm and activation in a sequence as one"
    classes: ClassVar = {
        nn.Sequential: AcceleratedSequential,
        torchvision.ops.Conv2dNormActivation: AcceleratedConv2dNormActivation,
    }

    def match(self, module: nn.Module) -> bool | str | None:
        return super().match(module) if type(module) in self.classes else None

    def fits(self, module: nn.Sequential) -> bool | str | None:
        return (
            any(
                (type(a) in _NORMS and activation_name(b) is not None) or (type(b) in _NORMS and widens(a, b))
                for a, b in pairwise(module)
            )
            or None
        )
