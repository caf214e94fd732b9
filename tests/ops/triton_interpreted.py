# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel x case on the CPU, through Triton's interpreter. ``test_triton.py`` runs this file in a process
of its own, since the interpreter must be chosen before Triton is imported.
"""

from __future__ import annotations

import copy
import os
from importlib import import_module
from math import prod

import pytest
import torch
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from starshift.ops import OPERATORS, _triton_parts, grouped_offsets, interleaved_offsets, shift2d, use_kernel
from starshift.ops._case import Case
from starshift.ops.depthwise import _triton_forward, _triton_strips
from starshift.ops.shift import _triton_conv, _triton_shift
from starshift.ops.star import _triton_backward
from starshift.ops.stem import _triton_stem
from tests.layers.test_fused_star import assert_values, block, step
from tests.ops.test_every_operator import ALL, DTYPES, LAYOUTS, arguments, call, gradients, make, oracle
from tests.tolerance import assert_close

assert os.environ.get("TRITON_INTERPRET") == "1", "run by tests/ops/test_triton.py"
MOST_WORK = 100_000
"""Elements of the input times taps: the interpreter is slow."""
FILTERED_IN_LOW_PRECISION = ("k3-dilation2",)

for folder in ("star", "shift", "depthwise", "norm", "star_block", "stem"):
    import_module(f"starshift.ops.{folder}.cuda").register("cpu")


def taps(case: Case) -> int:
    return max((prod(shape[2:]) for key, shape in case.tensors.items() if key == "weight" and shape), default=1)


def dtypes(case: Case) -> list[torch.dtype]:
    """All, but for filters, where loads and stores alone differ by dtype and the interpreter takes seconds."""
    return DTYPES if taps(case) == 1 or case.name in FILTERED_IN_LOW_PRECISION else [torch.float32]


def work(case: Case) -> int:
    return prod(next(iter(case.tensors.values())) or ()) * taps(case)


CASES = [
    (name, case)
    for name, case in ALL
    if any(k.name == "triton" for k in OPERATORS[name].kernels) and 0 < work(case) <= MOST_WORK
]
EACH = [(name, case, dtype) for name, case in CASES for dtype in dtypes(case)]
SMALL = {name: min((c for n, c in CASES if n == name and work(c) > 500), key=work) for name in dict(CASES)}
MOVING = {name: case for name, case in SMALL.items() if not name.startswith("star")}


@pytest.mark.parametrize(("name", "case", "dtype"), EACH, ids=[f"{n}-{c.name}-{d}" for n, c, d in EACH])
def test_forward_and_every_gradient(name: str, case: Case, dtype: torch.dtype) -> None:
    expected, expected_grads = oracle(name, case, dtype)
    layout = LAYOUTS["contiguous" if dtype == torch.float16 else "channels_last"]
    tensors = make(case, dtype, layout)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN, so that an unwritten output shows
    try:
        with use_kernel("triton"):
            output = call(name, tensors, case)
            grads = gradients(output, tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert output.dtype == dtype
    assert_close("output", output, expected, dtype)
    for key, grad in grads.items():
        assert grad.dtype == dtype
        assert_close(f"gradient of {key}", grad, expected_grads[key], dtype)


def strides(results: Tensor | tuple[Tensor, ...]) -> list[list[int]]:
    """Of the dimensions with more than one element: others mean nothing."""
    results = (results,) if isinstance(results, Tensor) else results
    return [[s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in results]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "case"), SMALL.items(), ids=SMALL)
def test_results_lie_as_the_reference_says_they_do_on_a_gpu(name: str, case: Case, layout: str) -> None:
    """torch.compile plans with the strides of the reference; forward and backward."""
    args = arguments(name, make(case, torch.float32, LAYOUTS[layout]), case)
    args = [a.detach() if isinstance(a, Tensor) else a for a in args]
    output = OPERATORS[name].reference(*args)
    calls = [(name, args)]
    if name == "batch_norm_act":
        output = output[0]
        statistics = [torch.zeros(args[0].shape[1]), torch.ones(args[0].shape[1])]
        for last in (torch.contiguous_format, torch.channels_last):
            grad = output.contiguous(memory_format=last)
            calls.append((f"{name}_backward", [grad, *args[:4], *statistics, *args[7:], True]))
    elif f"{name}_backward" in OPERATORS:
        biased = ("bg",) if name == "star_mlp" else ("bias",)
        names = [a.name for a in OPERATORS[name].overload._schema.arguments]
        kept = [a for key, a in zip(names, args, strict=True) if key not in biased]
        calls.append((f"{name}_backward", [output, *kept]))
    for operator, values in calls:
        with use_kernel("triton"):
            actual = OPERATORS[operator](*values)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fakes = [
                torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device="cuda") if isinstance(v, Tensor) else v
                for v in values
            ]
            assert strides(actual) == strides(OPERATORS[operator].reference(*fakes)), operator


@pytest.mark.parametrize("offsets", [grouped_offsets(20), interleaved_offsets(20)])
def test_shift_of_many_runs_reads_a_table(offsets, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 20, 5, 4)
    expected = shift2d(x, offsets)
    monkeypatch.setattr(_triton_shift, "MOST_RUNS", 0)
    _triton_shift._runs.cache_clear()
    with use_kernel("triton"):
        assert torch.equal(shift2d(x, offsets), expected)
    _triton_shift._runs.cache_clear()


@pytest.mark.parametrize(("name", "case"), MOVING.items(), ids=MOVING)
def test_elements_beyond_int32_are_addressed_in_int64(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _triton_parts.index_type(2**31) == tl.int64 and _triton_parts.index_type(2**30) == tl.int32
    for module in (_triton_shift, _triton_conv, _triton_forward, _triton_strips, _triton_stem):
        monkeypatch.setattr(module, "index_type", lambda *sizes: tl.int64)
    tensors = make(case, torch.float32)
    expected = call(name, tensors, case)
    with use_kernel("triton"):
        assert_close("output", call(name, tensors, case), expected)


@pytest.mark.parametrize("span", [4, 7])
def test_depthwise_lanes_sum_over_several_images(span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a batch has more strips than a GPU has lanes; the last lanes have fewer images than the others."""
    monkeypatch.setattr(_triton_strips, "LANES", 10)
    monkeypatch.setattr(_triton_strips, "SPANS", (span,))
    case = Case("images", "", {"x": (7, 3, 5, 9), "weight": (3, 1, 5, 3), "bias": (3,)}, {"padding": (2, 1)})
    _, expected = oracle("depthwise_conv2d", case, torch.float32)
    tensors = make(case, torch.float32, torch.channels_last)
    with use_kernel("triton"):
        grads = gradients(call("depthwise_conv2d", tensors, case), tensors)
    for key, grad in grads.items():
        assert_close(f"gradient of {key}", grad, expected[key])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["kernel3", "product", "no-vector-fits"])
def test_star_block_equals_the_layers_in_float64(name: str, training: bool) -> None:
    made, x = block(name, training)
    expected_out, expected = step(copy.deepcopy(made).double(), x.double(), fused=False)
    torch.use_deterministic_algorithms(True)
    try:
        with use_kernel("triton"):
            out, values = step(made, x, fused=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close("output", out, expected_out, torch.float32)
    assert_values(values, expected, training)


def test_a_mean_far_from_the_running_one_costs_no_digits() -> None:
    made, x = block("kernel3", True)
    with torch.no_grad():
        made.dwconv.conv.bias += 1000
    expected = step(copy.deepcopy(made).double(), x.double(), fused=False)[1]["dwconv.bn.running_var"]
    with use_kernel("triton"):
        actual = step(made, x, fused=True)[1]["dwconv.bn.running_var"]
    assert ((actual - expected) / expected).abs().max() < 1e-3


@pytest.mark.parametrize("name", [case.name for n, case in CASES if n == "star_mlp" and case.tensors["bg"]][:3])
def test_star_mlp_by_stored_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton_backward, "STORED_FROM", 1)
    (case,) = [case for n, case in CASES if (n, case.name) == ("star_mlp", name)]
    _, expected = oracle("star_mlp", case, torch.bfloat16)
    tensors = make(case, torch.bfloat16, torch.channels_last)
    with use_kernel("triton"):
        grads = gradients(call("star_mlp", tensors, case), tensors)
    for key, grad in grads.items():
        assert_close(f"gradient of {key}", grad, expected[key])
