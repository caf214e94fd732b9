# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: through the interpreter on any machine; on a GPU where there is one.

With a GPU at hand: ``pytest tests/ops -k cuda``.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor

from starshift.layers import fused_star
from starshift.models import create_model
from starshift.ops import OPERATORS, _triton, star, use_kernel
from starshift.ops._case import Case
from starshift.ops._operator import forced_kernel
from starshift.ops._triton import config
from tests.layers.test_fused_star import CASES as BLOCKS
from tests.layers.test_fused_star import block, step
from tests.ops.test_every_operator import ALL, DTYPES, LAYOUTS, call, make, oracle
from tests.tolerance import assert_close

ROOT = Path(__file__).parents[2]
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CASES = [
    (name, case)
    for name, case in ALL
    if find_spec(OPERATORS[name].reference.__module__.removesuffix("reference") + "cuda") is not None
    and all(shape is None or prod(shape) for shape in case.tensors.values())
]
every_case = pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{n}-{c.name}" for n, c in CASES])
CHOICES = [config(4, 1, BLOCK=16), config(4, 2, BLOCK=32), config(8, 2, BLOCK=64)]


@pytest.mark.parametrize("operators", ["star", "shift", "depthwise", "norm", "stem"])
def test_interpreted(operators: str) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", operators]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    result = subprocess.run(
        [*command, "tests/ops/triton_interpreted.py"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


def test_importing_the_operators_imports_no_triton_without_a_gpu() -> None:
    code = "import sys, torch, starshift.ops; print(torch.cuda.is_available() or 'triton' not in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"


def test_the_fastest_configuration_that_fits_is_chosen() -> None:
    times = {16: 3.0, 32: 1.0, 64: 2.0}
    ran: list[int] = []

    def run(choice) -> None:
        ran.append(choice.blocks["BLOCK"])
        if choice.blocks["BLOCK"] == 32:
            raise MemoryError

    def milliseconds(run) -> float:
        run()
        return times[ran[-1]]

    assert _triton.fastest(CHOICES, run, milliseconds, MemoryError) == CHOICES[2]
    assert _triton.fastest(CHOICES[1:2], run, milliseconds, MemoryError) is None


def test_choices_are_remembered_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = _triton.cache_file()
    assert path.parent.parent == tmp_path and _triton.read_cache(path) == {}
    for name, choice in zip("ab", CHOICES, strict=False):
        _triton.write_cache(path, name, _triton._as_json(choice))
    assert _triton.read_cache(path) == {n: _triton._as_json(c) for n, c in zip("ab", CHOICES, strict=False)}
    assert [p.name for p in path.parent.iterdir()] == ["triton.json"]


@pytest.mark.parametrize("content", [b"{ no json", b"[1, 2]", b"\xff\xfe"])
def test_a_damaged_file_of_choices_is_replaced_with_a_warning(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "triton.json"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="tuned again"):
        assert _triton.read_cache(path) == {}
    with pytest.warns(UserWarning, match="tuned again"):
        _triton.write_cache(path, "a", _triton._as_json(CHOICES[0]))
    assert list(json.loads(path.read_text())) == ["a"]


class FakeKernel:
    """Counts compilations; what it compiles notes the grid and the values that it is handed."""

    arg_names = ("x", "size", "BLOCK")

    def __init__(self) -> None:
        self.compiled: list[dict] = []
        self.launched: list[tuple] = []

    def __getitem__(self, grid: tuple[int, ...]):
        def compile_and_run(**arguments):
            self.compiled.append(arguments)
            return self._Compiled(self)

        return compile_and_run

    class _Compiled:
        def __init__(self, kernel: FakeKernel) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]):
            return lambda *values: self.kernel.launched.append((grid, values))


def test_a_kernel_is_compiled_once_for_what_it_was_specialised_to() -> None:
    kernel, device = FakeKernel(), torch.device("cuda", 0)
    x = torch.zeros(64)

    def run(x: Tensor, size: int, block: int = 16) -> None:
        _triton._run(kernel, config(4, 1, BLOCK=block), (size,), device, {"size": size, "x": x})

    run(x, 48)
    assert kernel.compiled == [{"x": x, "size": 48, "BLOCK": 16, "num_warps": 4, "num_stages": 1}]
    run(torch.ones(64), 48)
    ((grid, values),) = kernel.launched
    assert grid == (48, 1, 1) and torch.equal(values[0], torch.ones(64)) and values[1:] == (48, 16)
    for changed in ({"x": x[1:], "size": 48}, {"x": x.bfloat16(), "size": 48}, {"x": x, "size": 1}):
        before = len(kernel.compiled)
        run(**changed)
        assert len(kernel.compiled) == before + 1
    run(x, 48, block=32)
    assert len(kernel.compiled) == 5 and len(kernel.launched) == 1


def test_parts_of_a_sum_cover_all_rows_once() -> None:
    for rows in (0, 1, 63, 64, 65, 1000, 10**7):
        parts, each = _triton.splits(3, rows, torch.device("cpu"), 64)
        assert each % 64 == 0 and parts >= 1 and parts * each >= rows and (parts - 1) * each < max(rows, 1)


@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (3, 1), (2, 3)], ids=str)
def test_filters_of_any_shape_compile(kernel: tuple[int, int]) -> None:
    """The interpreter skips loops of no rounds; a compiler sees what is in them. Needs no GPU."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from starshift.ops.depthwise import _triton_strip_kernels as kernels

    constants = {"C": 24, "KH": kernel[0], "KW": kernel[1], "SPAN": 4, "BLOCK": 64, "INDEX": triton.language.int32}
    flags = {"HAS_BIAS": True, "HAS_SCALE": True, "HAS_RESIDUAL": True, "NORMED": True, "SUMS": "products"}
    wide = ("weight", "bias", "sample_scale", "affine", "center", "parts")
    for function in (kernels.convolve, kernels.weights):
        names = function.arg_names
        given = {n: v for n, v in {**constants, **flags}.items() if n in names}
        pointers = {n: "*fp32" if n in wide else "*bf16" for n in (*wide, "x", "grad", "residual", "partner", "out")}
        signature = {n: "constexpr" if n in given else pointers.get(n, "i32") for n in names}
        source = triton.compiler.ASTSource(function, signature, {(names.index(n),): v for n, v in given.items()})
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 2}).asm["cubin"]


def to_gpu(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {k: None if t is None else t.detach().cuda().requires_grad_() for k, t in tensors.items()}


def on_gpu(case: Case) -> Case:
    """With the tensors among its options on the GPU."""
    options = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in case.options.items()}
    return dataclasses.replace(case, options=options)


def gpu_gradients(output: Tensor, tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """As ``gradients`` of test_every_operator, with the same weights."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    present = {k: t for k, t in tensors.items() if t is not None}
    loss = (output.double() * weights.to(output.device)).sum()
    return dict(zip(present, torch.autograd.grad(loss, list(present.values())), strict=True))


@on_cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_case
def test_cuda_forward_and_every_gradient(name: str, case: Case, dtype: torch.dtype, layout: str) -> None:
    expected, expected_grads = oracle(name, case, dtype)
    tensors = to_gpu(make(case, dtype, LAYOUTS[layout]))
    results = []
    for _ in range(2):
        with use_kernel("triton"):
            output = call(name, tensors, on_gpu(case))
            grads = gpu_gradients(output, tensors)
        assert output.dtype == dtype
        assert_close("output", output.cpu(), expected, dtype)
        for key, grad in grads.items():
            assert_close(f"gradient of {key}", grad.cpu(), expected_grads[key], dtype)
        results.append([output, *grads.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), "not deterministic"


@on_cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@every_case
def test_cuda_compiled_equals_eager(name: str, case: Case, layout: str) -> None:
    torch._dynamo.reset()
    tensors = to_gpu(make(case, torch.float32, LAYOUTS[layout]))
    case = on_gpu(case)
    compiled = torch.compile(lambda t: call(name, t, case), fullgraph=True)
    expected, actual = call(name, tensors, case), compiled(tensors)
    assert_close("output", actual, expected)
    expected_grads = gpu_gradients(expected, tensors)
    for key, grad in gpu_gradients(actual, tensors).items():
        assert_close(f"gradient of {key}", grad, expected_grads[key])


@on_cuda
@every_case
def test_cuda_graph_recorded_and_replayed(name: str, case: Case) -> None:
    """Forward and backward in one graph; replayed on other numbers than it was recorded with."""
    tensors = to_gpu(make(case, torch.float32, torch.channels_last))
    present = [t for t in tensors.values() if t is not None]
    case = on_gpu(case)

    def step() -> list[Tensor]:
        output = call(name, tensors, case)
        return [output, *torch.autograd.grad(output.square().sum(), present)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    with torch.no_grad():
        for t in present:
            t.mul_(0.5)
    graph.replay()
    for i, (actual, expected) in enumerate(zip(recorded, step(), strict=True)):
        assert torch.equal(actual, expected), f"result {i}"


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", BLOCKS)
def test_cuda_star_block_equals_the_layers_in_float64(
    name: str, training: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, x = block(name, training)
    kept = torch.tensor([1.5, 0.0, 1.5])[: x.shape[0]].view(-1, 1, 1, 1)  # the same images are dropped on both devices
    drop = lambda x, p, training, *rest: x * kept.to(x) if p and training else x  # noqa: E731
    monkeypatch.setattr("timm.layers.drop.drop_path", drop)
    expected_out, expected = step(copy.deepcopy(made).double(), x.double(), fused=False)
    made, x = made.cuda(), x.cuda()
    assert fused_star.why_unfused(made, x) is None
    with use_kernel("triton"), torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out, values = step(made, x, fused=True)
    assert_close("output", out.cpu(), expected_out, dtype)
    for key, value in values.items():
        if training and key in ("gradient of dwconv.conv.bias", "gradient of g.conv.bias"):
            continue  # a batch norm follows: zero but for rounding
        if dtype == torch.float32:
            assert_close(key, value.cpu().float(), expected[key], dtype)
        else:  # where an activation has a kink, rounding moves single values across
            wanted = expected[key].double()
            error = (value.cpu().double() - wanted).norm() / wanted.norm().clamp_min(1e-6)
            assert error < 0.1, f"{key}: {error:.3f}"


@on_cuda
def test_cuda_network_trains_as_by_plain_pytorch() -> None:
    """Losses of ten steps in float32, with kernels and without."""
    losses = []
    for kernel in ("triton", "reference"):
        torch.manual_seed(0)
        model = create_model("starnet_s050", num_classes=10).cuda().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)).cuda()
        x, target = x.contiguous(memory_format=torch.channels_last), torch.arange(8, device="cuda")
        found = []
        for _ in range(10):
            with nullcontext() if kernel == "triton" else use_kernel(kernel):
                loss = torch.nn.functional.cross_entropy(model(x), target)
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            found.append(loss.detach().cpu())
        losses.append(torch.stack(found))
    assert_close("losses", losses[0], losses[1].double(), torch.float16)


def test_a_forced_kernel_is_forced_in_the_backward_too() -> None:
    """Wherever that runs: a GPU's backward has a thread of its own."""
    seen: list[str | None] = []
    operator = OPERATORS["star_backward"]
    run = operator.run

    def noted(*args):
        seen.append(forced_kernel())
        return run(*args)

    x = torch.randn(4, requires_grad=True)
    with use_kernel("reference"):
        y = star(x, x.detach(), "relu", "first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator, "run", noted)
        patch.setattr(operator, "_eager", None)
        y.sum().backward()
    assert seen == ["reference"] and forced_kernel() is None
