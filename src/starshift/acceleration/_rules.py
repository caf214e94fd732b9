# SPDX-License-Identifier: Apache-2.0
"""What a rule of replacement is, and how a module is swapped in place.

A rule is one class marked with :func:`rule` in a file of this package; files are found by themselves. Most swap a
module's class for a subclass of it that computes the same by our operators: parameters, names, hooks, state dict,
pickling and copies stay as they are.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RULES: list[Rule] = []
"""Every rule. Modules are visited from outside in: an enclosing module is asked about before what it holds."""


class Rule:
    """Replaces one kind of module.

    Attributes:
        what: what runs after the swap, for the report.
        whole: the replaced module computes what its children did: they are not visited.
    """

    what: ClassVar[str]
    whole: ClassVar[bool] = False

    def match(self, module: nn.Module) -> bool | str | None:
        """True: can be swapped. A string: is of this rule's kind, but is left, and why. None: nothing to do with it."""
        raise NotImplementedError

    def swap(self, module: nn.Module) -> None:
        """Replace in place."""
        raise NotImplementedError

    def restore(self, module: nn.Module) -> bool:
        """Undo :meth:`swap`; False where the module is none of this rule's."""
        raise NotImplementedError

    def is_whole(self, module: nn.Module) -> bool:
        """Whether this rule replaced the module, and with it what it holds."""
        return False


class ClassRule(Rule):
    """Swaps ``module.__class__``, by :attr:`classes`: original class to its subclass."""

    classes: ClassVar[dict[type[nn.Module], type[nn.Module]]]

    def match(self, module: nn.Module) -> bool | str | None:
        kind = type(module)
        if kind in self.classes.values() or not isinstance(module, tuple(self.classes)):
            return None
        if kind not in self.classes:
            return f"is a {kind.__name__}, whose forward may differ"
        if "forward" in vars(module):
            return "its forward was replaced"
        return self.fits(module)

    def fits(self, module: Any) -> bool | str | None:
        """As :meth:`match`, for a module of exactly one of the classes."""
        raise NotImplementedError

    def is_whole(self, module: nn.Module) -> bool:
        return self.whole and type(module) in self.classes.values()

    def swap(self, module: nn.Module) -> None:
        module.__class__ = self.classes[type(module)]

    def restore(self, module: nn.Module) -> bool:
        for original, accelerated in self.classes.items():
            if type(module) is accelerated:
                module.__class__ = original
                return True
        return False


def rule(cls: type[Rule]) -> type[Rule]:
    """Class decorator: add the rule."""
    RULES.append(cls())
    return cls
