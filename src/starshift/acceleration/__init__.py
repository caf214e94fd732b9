# SPDX-License-Identifier: Apache-2.0
"""Faster layers for any model, in place: :func:`accelerate`, and back: :func:`decelerate`."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

import torch
from torch import nn

from starshift.acceleration._report import AccelerationReport, Left, Replaced
from starshift.acceleration._rules import RULES, Rule
from starshift.ops import _native

__all__ = ["AccelerationReport", "accelerate", "decelerate"]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def accelerate(model: nn.Module, channels_last: bool = True) -> AccelerationReport:
    """Let the layers that our operators are faster at run them; everything else about the model stays.

    Works on any model (timm's, torchvision's, your own), in place, and can be taken back. Parameters, their names,
    hooks, state dict, pickling and copying stay as they were; an optimizer made before keeps working.

    Args:
        model: trained or not, in training or evaluation.
        channels_last: also lay the weights out channels last, the layout that convolutions and our kernels are fastest
            in. Inputs need no conversion.

    Returns:
        What was replaced, what was left and why; its ``undo()`` takes everything back.

    Example:
        >>> import starshift, timm
        >>> model = timm.create_model("mobilenetv3_small_050")
        >>> report = starshift.accelerate(model)
        >>> len(report.replaced)
        96
        >>> report.undo()
    """
    replaced, left = [], []
    for name, module, rule, answer in list(_answers(model)):
        kind = type(module).__name__
        if answer is True:
            rule.swap(module)
            replaced.append(Replaced(name, kind, rule.what, module, rule))
        else:
            left.append(Left(name, kind, str(answer)))
    moved = _move(model) if channels_last else []
    return AccelerationReport(replaced, left, _native.why_not(), moved)


def decelerate(model: nn.Module) -> int:
    """Give every layer that :func:`accelerate` replaced its own class back; returns how many.

    The weights' layout stays; ``report.undo()`` takes that back too.
    """
    return sum(any(rule.restore(module) for rule in RULES) for module in model.modules())


def _answers(
    module: nn.Module, name: str = "", seen: set[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module, Rule, bool | str]]:
    """(name, module, rule, its answer) for every module that a rule has an opinion of, from outside in."""
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    if type(module).__module__.startswith("starshift.layers."):
        return  # our own layers run our operators already
    if any(rule.is_whole(module) for rule in RULES):
        return  # replaced before, with all that it holds
    answers = [(rule, answer) for rule in RULES if (answer := rule.match(module))]
    for rule, answer in sorted(answers, key=lambda given: given[1] is not True)[:1]:  # a yes, or the first reason
        yield name, module, rule, answer
    whole = any(answer is True and rule.whole for rule, answer in answers)
    if not whole:
        for child, part in module.named_children():
            yield from _answers(part, f"{name}.{child}" if name else child, seen)


def _move(model: nn.Module) -> list[nn.Parameter]:
    """Lay 4-D parameters out channels last; returns those that were not."""
    moved = [p for p in model.parameters() if p.dim() == 4 and not p.is_contiguous(memory_format=torch.channels_last)]
    for parameter in moved:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return moved
