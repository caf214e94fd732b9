# SPDX-License-Identifier: Apache-2.0
"""Folded modules whose weights are laid out once and then serve many calls without gradients.

A :class:`starshift.layers.Foldable` may say how (``prepare``). What was prepared is kept as long as the module stays
what it was: its parts, their settings and weights, and no hook on a part, which would not be called.
"""

from __future__ import annotations

from operator import attrgetter, is_, itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from starshift.layers.folding import Foldable, Run
from starshift.layers.norm import has_global_hooks
from starshift.ops import _native
from starshift.ops._operator import NATIVE, autocast_dtype, forced_kernel, is_plain

_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")  # of a convolution
_OPTIONS = ("act", "placement", "mode", "offsets", "relu")  # of our layers
_HOOKS = attrgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_VERSION, _TRAINING, _ADDRESS = attrgetter("_version"), attrgetter("training"), Tensor.data_ptr


def run_prepared(module: Foldable, x: Tensor, parts: tuple[nn.Module, ...] | None = None) -> Tensor | None:
    """What ``module.prepare()`` gave, applied to x; None where that cannot be: then it runs by its layers.

    That is so in training mode, with gradients, off the CPU, without kernels, while a graph is traced, and where
    ``prepare`` gives None. It is called again when something has changed.

    Args:
        module: a folded one.
        x: (N, C, H, W).
        parts: the submodules that are not called; None: all.
    """
    if (
        module.training
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
        or not (x.is_cpu and is_plain((x,)))
        or forced_kernel() not in (None, NATIVE)
        or not _native.available()
    ):
        return None
    dtype = autocast_dtype(x) or x.dtype
    if dtype not in _native.DTYPES or x.dim() != 4 or x.numel() == 0:
        return None
    ready = _READY.get(module)
    if ready is None or not ready.holds():
        ready = _READY[module] = _Ready(module, tuple(module.children()) if parts is None else parts)
    return None if ready.run is None else ready.run(x if x.dtype == dtype else x.to(dtype))


def chain(*modules: nn.Module) -> Run | None:
    """One prepared module after another; None if one of them cannot be."""
    runs = [_run_of(module) for module in modules if type(module) is not nn.Identity]
    if not all(runs):
        return None

    def run(x: Tensor) -> Tensor:
        for one in runs:
            x = one(x)  # type: ignore[misc]
        return x

    return run


def can_chain(*modules: nn.Module) -> bool:
    """Whether all of them are of kinds that may be prepared."""
    return all(
        can_chain(*module) if type(module) is nn.Sequential else type(module) is nn.Identity or _may(module)
        for module in modules
    )


def _may(module: nn.Module) -> bool:
    return isinstance(module, Foldable) and type(module).prepare is not Foldable.prepare


def _run_of(module: nn.Module) -> Run | None:
    if type(module) is nn.Sequential:
        return chain(*module)
    return module.prepare() if isinstance(module, Foldable) else None


class _Ready:
    """A module prepared, and what it was prepared from, in lists that are quickly compared."""

    def __init__(self, module: Foldable, skipped: tuple[nn.Module, ...]) -> None:
        self.parts = [part for child in skipped for part in child.modules()]
        self.tables = [vars(part) for part in self.parts]
        self.hooks = [hooks for part in self.parts for hooks in _HOOKS(part)]
        self.children = [part._modules for part in (module, *self.parts)]
        self.settings = _by_names((module, *self.parts))
        self.slots = [(part._parameters, name) for part in self.parts for name in part._parameters]
        self.kept = [of[name] for of, name in self.slots]
        # Inference tensors do not tell when they change; weights elsewhere are for the layers to complain of.
        unfit = any(w is not None and (w.is_inference() or not w.is_cpu) for w in self.kept)
        self.weights = [w for w in self.kept if w is not None and not unfit]
        self.was = [dict(children) for children in self.children], self._state()
        self.watched = self._watched()
        self.run = None if self.watched or unfit else module.prepare()

    def _watched(self) -> bool:
        return any(self.hooks) or has_global_hooks() or any("forward" in table for table in self.tables)

    def _state(self) -> tuple[list[Any], ...]:
        return (
            list(map(type, self.parts)),
            list(map(_TRAINING, self.parts)),
            [list(map(read, tables)) for read, tables in self.settings],
            list(map(_VERSION, self.weights)),
            list(map(_ADDRESS, self.weights)),
        )

    def holds(self) -> bool:
        """Whether all is as it was. Weights written through ``.data`` are not seen."""
        return (
            self._watched() == self.watched
            and self.children == self.was[0]
            and all(map(is_, [of.get(name) for of, name in self.slots], self.kept))
            and self._state() == self.was[1]
        )


def _by_names(parts: tuple[nn.Module, ...]) -> list[tuple[Any, list[dict[str, Any]]]]:
    """What settings the modules have: a getter of the same ones, and the modules' tables that it reads."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for part in parts:
        table = vars(part)
        names = tuple(name for name in (*_SETTINGS, *_OPTIONS) if name in table)
        if names:
            found.setdefault(names, []).append(table)
    return [(itemgetter(*names), tables) for names, tables in found.items()]


_READY: WeakKeyDictionary[nn.Module, _Ready] = WeakKeyDictionary()
