# SPDX-License-Identifier: Apache-2.0
"""The one place that makes a ``torch.library`` operator of a schema, a reference, kernels and a backward.

The reference (plain torch) is the operator's default kernel and its meaning. A kernel for one device is added with
:meth:`Operator.add_kernel`; where it does not support the arguments, the reference answers. PyTorch's dispatcher
chooses by device; for plain tensors the same choice is made here, since its round through Python costs more than a
small kernel. The only way to force a kernel is the context manager :func:`use_kernel`. ``starshift train
--no-kernels`` turns all of them off for its process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from starshift.errors import StarshiftError
from starshift.ops import _native

NAMESPACE = "starshift"
REFERENCE = "reference"
NATIVE = "native"
"""The name of every kernel of the compiled library."""
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_forced: ContextVar[str | None] = ContextVar("starshift_forced_kernel", default=None)
_PLAIN = (Tensor, torch.nn.Parameter)
_default: str | None = None  # of the process, where no context forces one

OPERATORS: dict[str, Operator] = {}
"""Every operator by name; filled as the operators' folders are imported."""


@dataclass(frozen=True)
class Kernel:
    """One implementation for one device: ``run`` takes the operator's arguments, ``supports`` says whether it can."""

    name: str
    device: str
    run: Callable[..., Any]
    supports: Callable[..., bool]


class Operator:
    """A ``torch.library`` operator whose default kernel is its reference.

    Args:
        name: name inside the ``starshift`` namespace.
        schema: arguments and results, e.g. ``"(Tensor x, int[] offsets) -> Tensor"``.
        reference: plain-torch definition; also the fake (shape) function, since plain torch runs on fake tensors.
    """

    def __init__(self, name: str, schema: str, reference: Callable[..., Any]) -> None:
        self.name = name
        self.reference = reference
        self.kernels: list[Kernel] = []
        self._eager: Any = None
        self._below: dict[str, Callable[..., Any]] = {}
        _LIBRARY.define(name + schema)
        _LIBRARY.impl(name, _without_autocast(reference), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", reference, lib=_LIBRARY)
        self.overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        OPERATORS[name] = self

    def __call__(self, *args: Any) -> Any:
        """Run the operator; while a graph is traced for export, the reference, so that only plain operators appear."""
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return self.reference(*args)
        if torch.compiler.is_compiling():
            return self.overload(*args)
        if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
            return _without_autocast(self.reference)(*args)  # vmap, jvp and their like know plain operators
        if not _wants_gradient(args) and is_plain(args):
            return self.run(*args)
        return self.overload(*args) if self._eager is None else self._eager.apply(*args)

    def run(self, *args: Any) -> Any:
        """Below autograd: what PyTorch's dispatcher would call, called by it where it might have more to do."""
        with torch._C._AutoDispatchBelowADInplaceOrView():  # to autograd a result is no view of what a kernel wrote
            if not is_plain(args):
                return self.overload(*args)
            device = "cpu" if args[0].is_cpu else "cuda"
            below = self._below.get(device)
            if below is None:
                below = self._below[device] = _without_autocast(self._dispatcher(device))
            return below(*args)

    def differentiable(
        self, setup_context: Callable[..., None], backward: Callable[..., Any], twice: bool = False
    ) -> None:
        """Register the backward: ``setup_context(ctx, inputs, output)`` and ``backward(ctx, *grads)``.

        Args:
            twice: the backward is made of differentiable operators; otherwise differentiating it raises.
        """
        count = len(self.overload._schema.arguments)

        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.forced_kernel = _forced.get()  # a GPU's backward runs in a thread of its own, which has no context
            setup_context(ctx, inputs, output)

        def guarded(ctx: Any, *grads: Tensor | None) -> Any:
            if all(grad is None for grad in grads):  # nobody differentiates any of the outputs
                return (None,) * count
            with nullcontext() if ctx.forced_kernel is None else use_kernel(ctx.forced_kernel):
                return backward(ctx, *grads)

        checked = guarded if twice else once_differentiable(guarded)
        torch.library.register_autograd(f"{NAMESPACE}::{self.name}", checked, setup_context=setup, lib=_LIBRARY)

        def forward(ctx: Any, *args: Any) -> Any:
            output = self.run(*args)
            setup(ctx, args, output)
            return output

        # What register_autograd made, without its bookkeeping, which costs more than a small kernel.
        functions = {"forward": staticmethod(forward), "backward": staticmethod(checked)}
        self._eager = type(self.name, (torch.autograd.Function,), functions)

    def add_kernel(self, name: str, device: str, run: Callable[..., Any], supports: Callable[..., bool]) -> None:
        """Add a kernel for ``device`` (``"cpu"`` or ``"cuda"``); the first added that supports a call runs it."""
        first_for_device = all(kernel.device != device for kernel in self.kernels)
        self.kernels.append(Kernel(name, device, run, supports))
        if first_for_device:
            _LIBRARY.impl(self.name, _without_autocast(self._dispatcher(device)), device.upper())

    def _dispatcher(self, device: str) -> Callable[..., Any]:
        def dispatch(*args: Any) -> Any:
            forced = forced_kernel()
            for kernel in self.kernels:
                if kernel.device == device and forced in (None, kernel.name) and kernel.supports(*args):
                    return kernel.run(*args)
            if forced not in (None, REFERENCE):
                raise RuntimeError(f"{self.name}: no kernel '{forced}' on {device} for these arguments")
            return self.reference(*args)

        return dispatch


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Force the kernel of this name (``"reference"`` or an added one) inside the block: for tests and benchmarks.

    Raises:
        RuntimeError: inside the block, when an operator with kernels of its own has none of this name for a call.
    """
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def kernels_switched(on: bool) -> Iterator[None]:
    """Kernels used or not by the whole process, all its threads, inside the block. What :func:`use_kernel` forces stays
    forced."""
    global _default
    before, _default = _default, None if on else REFERENCE
    try:
        yield
    finally:
        _default = before


def forced_kernel() -> str | None:
    """The kernel that must run (:func:`use_kernel`; the reference where kernels are switched off); None: the best."""
    return _forced.get() or _default


def kernel_status() -> dict[str, dict[str, str]]:
    """What runs for each operator and device: a kernel's name, or the reference and why it does."""
    status = {}
    for name, operator in OPERATORS.items():
        row = {device: f"{REFERENCE} ({_why_reference(device)})" for device in ("cpu", "cuda")}
        for kernel in reversed(operator.kernels if _default is None else ()):
            of = _native.instruction_set() if kernel.name == NATIVE else None
            row[kernel.device] = f"{kernel.name} ({of})" if of else kernel.name
        status[name] = row
    return status


def _why_reference(device: str) -> str:
    if _default is not None:
        return "kernels are switched off"
    if device == "cpu" and not _native.available():
        return "no compiled kernels here"
    from starshift.ops import _triton

    return (_triton.why_not() if device == "cuda" else None) or f"no kernel for {device}"


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on ``x``'s device, or None where autocast is off (or ``x`` is float64)."""
    device = x.device.type
    if x.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def cast(dtype: torch.dtype | None, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast each tensor to ``dtype``; None stays None, and so does everything when ``dtype`` is None."""
    return tuple(t if t is None or dtype is None else t.to(dtype) for t in tensors)


def check_bias(name: str, bias: Tensor | None, weight: Tensor) -> None:
    """
    Raises:
        StarshiftError: the bias has not one value for each row of the weight.
    """
    if bias is not None and bias.shape != weight.shape[:1]:
        raise StarshiftError(f"{name}: a bias must be ({weight.shape[0]},) beside its weight, not {tuple(bias.shape)}")


def is_plain(args: tuple[Any, ...]) -> bool:
    """Whether all tensors are on one device, of no subclass, and no mode of PyTorch's waits for operators."""
    on_cpu, on_gpu = args[0].is_cpu, args[0].is_cuda
    return (
        (on_cpu or on_gpu)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and all(type(a) in _PLAIN and a.is_cpu == on_cpu and a.is_cuda == on_gpu for a in args if isinstance(a, Tensor))
    )


def _wants_gradient(args: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


def _without_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    """The public functions have cast already: inside an operator autocast must not cast again."""

    def call(*args: Any) -> Any:
        device = args[0].device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return run(*args)
        with torch.autocast(device, enabled=False):
            return run(*args)

    return call
