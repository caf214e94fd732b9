# SPDX-License-Identifier: Apache-2.0
"""Every operator's kernels beside their peers: forward and backward, paired, with what the machine can give at most."""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from importlib import import_module
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import starshift.ops
from starshift.bench.ceiling import ceiling, gpu_ceiling, require_device
from starshift.bench.clock import paired
from starshift.bench.graph import recorded
from starshift.bench.rows import provenance
from starshift.errors import StarshiftError, nearest
from starshift.ops import OPERATORS, _native, batch_norm_act, pointwise_conv2d, use_kernel
from starshift.ops._case import Case
from starshift.ops._operator import NATIVE, REFERENCE
from starshift.ops.shift.offsets import flatten
from starshift.ops.shift.reference import shift2d as reference_shift2d
from starshift.ops.star.reference import ACTIVATIONS
from starshift.training.machine import keep_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEAST_S = 0.01  # of one timing: shorter calls are repeated in it
BUDGET_S = 20.0  # of one pair; a slow peer gets fewer rounds, never less than LEAST_ROUNDS
LEAST_ROUNDS = 3
Step = Callable[[], object]


class Call:
    """A case with its tensors made: normal numbers, images channels last, weights that keep the variance."""

    def __init__(self, operator: str, case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
        self.device = device
        generator = torch.Generator().manual_seed(0)
        self.operator, self.options = operator, dict(case.options)
        self.tensors: dict[str, Tensor | None] = {}
        for name, shape in case.tensors.items():
            if shape is None:
                self.tensors[name] = None
                continue
            tensor = torch.randn(shape, generator=generator)
            if name.startswith("w") and len(shape) > 1:
                tensor /= prod(shape[1:]) ** 0.5
            layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
            self.tensors[name] = tensor.to(device, dtype).contiguous(memory_format=layout).requires_grad_()
        output = self.forward()
        self.grad = torch.empty_like(output).copy_(torch.randn(output.shape, generator=generator))

    def forward(self) -> Any:
        return getattr(starshift.ops, self.operator)(**self.tensors, **self.options)

    def step(self, forward: Callable[[], Tensor]) -> Step:
        """Forward and every gradient."""
        present = [t for t in self.tensors.values() if t is not None]
        return lambda: torch.autograd.grad(forward(), present, self.grad)


@dataclass(frozen=True)
class Peer:
    """Something to compare with: its name in the tables, and the step that does it for a call."""

    name: str
    make: Callable[[Call], Step]


def _plain(call: Call) -> Step:
    @contextmanager
    def reference_only() -> Iterator[None]:
        operator: Any = OPERATORS[call.operator]
        kept = operator.overload, operator._eager  # the latter has our backward
        operator.overload, operator._eager = operator.reference, None
        try:
            yield
        finally:
            operator.overload, operator._eager = kept

    def forward() -> Tensor:
        with reference_only():
            return call.forward()

    return call.step(forward)


def _reference(call: Call) -> Step:
    step = call.step(call.forward)

    def forced() -> object:
        with use_kernel(REFERENCE):
            return step()

    return forced


def _depthwise(call: Call) -> Step:
    x, weight, bias = call.tensors.values()
    assert x is not None and weight is not None
    return call.step(partial(F.conv2d, x, weight, bias, groups=x.shape[1], **call.options))


def _conv_alone(call: Call) -> Step:
    x, weight, bias = call.tensors.values()
    assert x is not None and weight is not None
    return call.step(partial(F.conv2d, x, weight, bias, call.options.get("stride", 1)))


def _two_copies(call: Call) -> Step:
    """Of the tensor and of its gradient, each into a tensor of its own, as the operator's results are."""
    (x,) = (t.detach() for t in call.tensors.values() if t is not None)
    return lambda: (x.clone(), call.grad.clone())


def _norm(call: Call, x: Tensor, act: str) -> Tensor:
    wanted = call.tensors["weight"], call.tensors["bias"]
    return ACTIVATIONS[act][0](F.batch_norm(x, None, None, *wanted, training=True, eps=call.options.get("eps", 1e-5)))


def _norm_act(call: Call) -> Step:
    x = call.tensors["x"]
    assert x is not None
    return call.step(lambda: _norm(call, x, call.options["act"]))


def _conv_norm_act(call: Call) -> Step:
    x, w, *_ = call.tensors.values()
    assert x is not None and w is not None
    return call.step(lambda: _norm(call, F.conv2d(x, w), call.options["act"]))


def _conv_norm_shift_conv(call: Call) -> Step:
    x, w1, w2 = (call.tensors[name] for name in ("x", "w1", "w2"))
    assert x is not None and w1 is not None and w2 is not None
    offsets, stride = flatten(call.options["offsets"]), call.options["stride"]
    return call.step(
        lambda: F.conv2d(reference_shift2d(_norm(call, F.conv2d(x, w1), "relu"), offsets), w2, None, stride)
    )


def _apart(call: Call) -> Step:
    """Our operators for the parts."""
    x, w, weight, bias = call.tensors.values()
    assert x is not None and w is not None
    act = call.options["act"]
    return call.step(lambda: batch_norm_act(pointwise_conv2d(x, w, None), weight, bias, training=True, act=act))


PLAIN = Peer("plain PyTorch, autograd", _plain)
"""The operator's definition in plain torch, differentiated by autograd: the peer where the table names no other. Of
norms that would be nobody's code; there PyTorch's own layers are the peer."""
CONV = "F.conv2d (oneDNN)"
CUDA_NAMES = {CONV: "F.conv2d (cuDNN)"}
PEERS: Mapping[str, tuple[Peer, ...]] = {
    "depthwise_conv2d": (Peer(CONV, _depthwise),),
    "batch_norm_act": (Peer("F.batch_norm, activation", _norm_act),),
    "csc": (Peer("F.conv2d, F.batch_norm, ReLU, pad + slices + concat, F.conv2d", _conv_norm_shift_conv),),
    "pointwise_norm_act": (
        Peer("F.conv2d, F.batch_norm, activation", _conv_norm_act),
        Peer("pointwise_conv2d, batch_norm_act", _apart),
    ),
    "shift2d": (Peer("copy", _two_copies),),
    "shift_conv2d": (Peer("1x1 conv alone", _conv_alone), Peer("pad + slices + concat, conv", _reference)),
}


def _conv_operations(x: tuple[int, ...], output: tuple[int, ...], tensors: Mapping[str, Any]) -> int:
    return 6 * prod(output) * prod(tensors["weight"][1:])


def _star_mlp_operations(x: tuple[int, ...], output: tuple[int, ...], tensors: Mapping[str, Any]) -> int:
    return 6 * prod(x) * 2 * tensors["w1"][0] + 6 * prod(output) * tensors["wg"][1]


OPERATIONS: Mapping[str, Callable[..., int]] = {
    "conv2d": _conv_operations,
    "depthwise_conv2d": _conv_operations,
    "shift_conv2d": _conv_operations,
    "star_mlp": _star_mlp_operations,
}
"""Operations of forward and backward (three times the forward's; what a kernel computes anew is not counted)."""


def _bytes(call: Call) -> int:
    """The least that forward and backward move: inputs read by both, their gradients written, the output written and
    its gradient read. A shift's backward needs no input."""
    inputs = sum(t.numel() * t.element_size() for t in call.tensors.values() if t is not None)
    output = call.grad.numel() * call.grad.element_size()
    return (2 if call.operator == "shift2d" else 3) * inputs + 2 * output


def bench_cases(operators: Sequence[str] = (), cases: Sequence[str] = ()) -> list[tuple[str, Case]]:
    """Every operator's cases that are worth timing.

    Args:
        operators: names; none means all.
        cases: patterns of case names, as of a shell (``starnet*``); none means all.

    Raises:
        StarshiftError: an operator that is not there, or nothing left to measure.
    """
    folders = [m.name for m in pkgutil.iter_modules(starshift.ops.__path__) if m.ispkg]
    found: dict[str, list[Case]] = {}
    for folder in folders:
        for name, listed in import_module(f"starshift.ops.{folder}.cases").CASES.items():
            found[name] = [case for case in listed if case.bench]
    for name in operators:
        if name not in found:
            raise StarshiftError(f"there is no operator '{name}'.{nearest(name, list(found))}")
    chosen = [
        (name, case)
        for name, listed in found.items()
        for case in listed
        if name in (operators or found) and any(fnmatch(case.name, pattern) for pattern in cases or ("*",))
    ]
    if not chosen:
        raise StarshiftError(
            f"no case to measure fits; there are: {', '.join(c.name for v in found.values() for c in v)}"
        )
    return chosen


def bench_operators(
    operators: Sequence[str] = (),
    cases: Sequence[str] = (),
    *,
    dtypes: Sequence[str] = ("fp32", "bf16"),
    threads: int | None = None,
    rounds: int = 15,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """Time forward + backward of our operators and of their peers in turns; yields a row for each case, dtype and
    peer.

    Args:
        operators, cases: see :func:`bench_cases`.
        dtypes: of ``fp32`` and ``bf16``.
        threads: of torch and of the kernels; default: torch's own number.
        rounds: pairs of timings; the medians are reported.
        device: ``cpu``, or ``cuda``: each side is then a CUDA graph, and operators without a kernel there are left out.

    Raises:
        StarshiftError: an unknown operator or dtype, a device that is not here, or no case.
    """
    require_device(device)
    dtypes = dtypes or tuple(DTYPES)
    for name in dtypes:
        if name not in DTYPES:
            raise StarshiftError(f"dtype is one of {', '.join(DTYPES)}, not '{name}'.{nearest(name, list(DTYPES))}")
    chosen = bench_cases(operators, cases)
    if device != "cpu":
        torch.backends.cudnn.allow_tf32 = False  # as PyTorch has it for matrix products: float32 means float32
        there = [name for name, operator in OPERATORS.items() if any(k.device == device for k in operator.kernels)]
        if not any(name in there for name, _ in chosen):
            asked = ", ".join(dict.fromkeys(name for name, _ in chosen))
            raise StarshiftError(f"no kernel for {device} among: {asked}. There are for: {', '.join(there)}")
        chosen = [(name, case) for name, case in chosen if name in there]
    keep_freed_memory()
    before = torch.get_num_threads()
    threads = threads or before
    torch.set_num_threads(threads)
    try:
        for operator, case in chosen:
            for dtype in dtypes:
                call = Call(operator, case, DTYPES[dtype], device)
                for peer in PEERS.get(operator, (PLAIN,)):
                    yield _measure(call, case, peer, dtype, threads, rounds)
    finally:
        torch.set_num_threads(before)


def _measure(call: Call, case: Case, peer: Peer, dtype: str, threads: int, rounds: int) -> dict[str, Any]:
    ours, theirs = call.step(call.forward), peer.make(call)
    on_gpu = call.device != "cpu"
    if on_gpu:
        ours, theirs = recorded(ours), recorded(theirs)
    once = [_seconds(_repeat(step, 1, on_gpu)) for step in (ours, theirs, ours, theirs)][2:]
    repeats = [max(1, round(LEAST_S / seconds)) for seconds in once]
    pair = sum(n * seconds for n, seconds in zip(repeats, once, strict=True))
    rounds = min(rounds, max(LEAST_ROUNDS, round(BUDGET_S / pair)))
    result = paired(_repeat(ours, repeats[0], on_gpu), _repeat(theirs, repeats[1], on_gpu), rounds)
    share = repeats[0] / repeats[1]
    ours_s, peer_s = result.ours_s / repeats[0], result.peer_s / repeats[1]
    x = next(iter(call.tensors.values()))
    operations = OPERATIONS.get(call.operator)
    shapes = {"x": tuple(x.shape) if x is not None else (), "output": tuple(call.grad.shape)}
    flops = operations(**shapes, tensors=case.tensors) if operations else None
    most = gpu_ceiling(DTYPES[dtype]) if on_gpu else ceiling(threads, DTYPES[dtype])
    return {
        "suite": "operators",
        "operator": call.operator,
        "case": case.name,
        "dtype": dtype,
        "threads": threads,
        "device": call.device,
        "rounds": rounds,
        "kernel": _kernel(call),
        "ours_ms": round(ours_s * 1e3, 3),
        "peer": CUDA_NAMES.get(peer.name, peer.name) if on_gpu else peer.name,
        "peer_ms": round(peer_s * 1e3, 3),
        "ratio": round(result.ratio * share, 3),
        "ratio_low": round(min(result.ratios) * share, 3),
        "ratio_high": round(max(result.ratios) * share, 3),
        "gflops": round(flops / ours_s / 1e9, 1) if flops else "",
        "gbs": round(_bytes(call) / ours_s / 1e9, 2),
        "peak_gflops": round(most.gflops, 1),
        "peak_gbs": round(most.gbs, 2),
        **provenance(),
    }


def _kernel(call: Call) -> str:
    """What runs for this call: the instruction set of the compiled kernel, Triton, or the reference."""
    if call.device != "cpu":
        try:
            with use_kernel("triton"):
                call.forward()
        except RuntimeError:  # it has none for these arguments
            return REFERENCE
        return "triton"
    if not any(kernel.name == NATIVE for kernel in OPERATORS[call.operator].kernels):
        return REFERENCE
    try:
        with use_kernel(NATIVE):
            call.forward()
    except RuntimeError:  # it has none for these arguments
        return REFERENCE
    return str(_native.instruction_set())


def _repeat(step: Step, times: int, waited: bool) -> Step:
    def repeated() -> None:
        for _ in range(times):
            step()
        if waited:
            torch.cuda.synchronize()

    return repeated


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
