# SPDX-License-Identifier: Apache-2.0
"""Every operator x kernel x case: forward and every gradient against plain autograd of the reference in float64."""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import Tensor

import starshift.ops
from starshift.ops import OPERATORS, use_kernel
from starshift.ops._case import Case
from starshift.ops._operator import REFERENCE
from tests.tolerance import assert_close

FOLDERS = [m.name for m in pkgutil.iter_modules(starshift.ops.__path__) if m.ispkg]
ALL = [
    (name, case)
    for folder in FOLDERS
    for name, cases in import_module(f"starshift.ops.{folder}.cases").CASES.items()
    for case in cases
    if not case.bench
]
FIRST = {name: next(case for n, case in ALL if n == name) for name in dict.fromkeys(n for n, _ in ALL)}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

every_case = pytest.mark.parametrize(("name", "case"), ALL, ids=[f"{n}-{c.name}" for n, c in ALL])


def kernels(name: str) -> list[str]:
    return [REFERENCE, *(k.name for k in OPERATORS[name].kernels if k.device == "cpu")]


every_kernel_case = pytest.mark.parametrize(
    ("name", "case", "kernel"),
    [(n, c, k) for n, c in ALL for k in kernels(n)],
    ids=[f"{n}-{c.name}-{k}" for n, c in ALL for k in kernels(n)],
)


def make(
    case: Case, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format
) -> dict[str, Tensor | None]:
    """The case's tensors, seeded; the same numbers for every layout.

    Low precision gets small integers: linear branches are then exact in every dtype, so that no rounding moves a value
    across an activation's kink, where the gradient jumps.
    """
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Tensor | None] = {}
    for key, shape in case.tensors.items():
        if shape is None:
            made[key] = None
            continue
        if dtype in (torch.float32, torch.float64):
            tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        else:
            tensor = torch.randint(-2, 3, shape, generator=generator).to(dtype)
        if tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=layout)
        made[key] = tensor.requires_grad_()
    return made


def call(name: str, tensors: dict[str, Tensor | None], case: Case) -> Tensor:
    return getattr(starshift.ops, name)(**tensors, **case.options)


def gradients(output: Tensor, tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    present = {k: t for k, t in tensors.items() if t is not None}
    grads = torch.autograd.grad((output.double() * weights).sum(), list(present.values()))
    return dict(zip(present, grads, strict=True))


def arguments(name: str, tensors: dict[str, Tensor | None], case: Case) -> tuple:
    """What the public function hands to the operator."""
    operator = OPERATORS[name]
    with pytest.MonkeyPatch.context() as patch:
        seen: list[tuple] = []
        run = operator.run
        patch.setattr(operator, "run", lambda *args: (seen.append(args), run(*args))[1])
        call(name, tensors, case)
    return seen[0]


def supported(name: str, kernel: str, tensors: dict[str, Tensor | None], case: Case) -> bool:
    args = arguments(name, tensors, case)
    return all(k.supports(*args) for k in OPERATORS[name].kernels if (k.name, k.device) == (kernel, "cpu"))


def oracle(name: str, case: Case, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients in float64 by plain autograd of the reference, on inputs rounded to ``dtype``."""
    tensors = {k: None if t is None else t.detach().double().requires_grad_() for k, t in make(case, dtype).items()}
    output = OPERATORS[name].reference(*arguments(name, tensors, case))
    output = output[0] if isinstance(output, tuple) else output
    return output, gradients(output, tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_kernel_case
def test_forward_and_every_gradient(name: str, case: Case, kernel: str, dtype: torch.dtype, layout: str) -> None:
    expected, expected_grads = oracle(name, case, dtype)
    tensors = make(case, dtype, LAYOUTS[layout])
    if not supported(name, kernel, tensors, case):
        assert dtype == torch.float16 or any(t is not None and t.numel() == 0 for t in tensors.values())
        pytest.skip("left to the reference")
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN, so that an unwritten output shows
    try:
        with use_kernel(kernel):
            output = call(name, tensors, case)
            grads = gradients(output, tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert output.dtype == dtype
    assert_close("output", output, expected, dtype)
    for key, grad in grads.items():
        assert grad.dtype == dtype
        assert_close(f"gradient of {key}", grad, expected_grads[key], dtype)


@pytest.mark.parametrize("dim", [2, 3], ids=["no rows", "no columns"])
@pytest.mark.parametrize("name", [name for name, cases in FIRST.items() if len(cases.tensors.get("x") or ()) == 4])
def test_an_image_without_pixels(name: str, dim: int) -> None:
    """What plain PyTorch makes of it: nothing, or an error."""
    shapes = {k: (*v[:dim], 0, *v[dim + 1 :]) if k == "x" and v else v for k, v in FIRST[name].tensors.items()}
    case = replace(FIRST[name], tensors=shapes)

    def outcome() -> list[Tensor] | type:
        tensors = make(case, torch.float32, torch.channels_last)
        try:
            output = call(name, tensors, case)
            return [output, *gradients(output, tensors).values()]
        except (RuntimeError, ValueError) as error:
            return type(error)

    with use_kernel(REFERENCE):
        expected = outcome()
    actual = outcome()
    if isinstance(expected, type) or isinstance(actual, type):
        assert actual == expected
    else:
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@every_case
def test_gradcheck_in_float64(name: str, case: Case) -> None:
    tensors = make(case, torch.float64)
    if any(t is not None and t.numel() == 0 for t in tensors.values()):
        pytest.skip("nothing to differentiate")
    present = [k for k, t in tensors.items() if t is not None]

    def function(*values: Tensor) -> Tensor:
        return call(name, {**tensors, **dict(zip(present, values, strict=True))}, case)

    assert torch.autograd.gradcheck(function, tuple(tensors[k] for k in present), fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_case
def test_opcheck(name: str, case: Case, dtype: torch.dtype, layout: str) -> None:
    """All checks for the layout and dtype that kernels like best; schema and shapes for the others."""
    tensors = make(case, dtype, LAYOUTS[layout])
    best = (dtype, layout) == (torch.float32, "channels_last")
    checks = {} if best else {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(OPERATORS[name].overload, arguments(name, tensors, case), **checks)


@every_case
def test_compiled_equals_eager(name: str, case: Case) -> None:
    torch._dynamo.reset()
    tensors = make(case, torch.float32)
    compiled = torch.compile(lambda t: call(name, t, case), backend="aot_eager", fullgraph=True)
    expected, actual = call(name, tensors, case), compiled(tensors)
    assert_close("output", actual, expected)
    expected_grads = gradients(expected, tensors)
    for key, grad in gradients(actual, tensors).items():
        assert_close(f"gradient of {key}", grad, expected_grads[key])


@every_case
def test_non_contiguous_and_exported(name: str, case: Case) -> None:
    """A strided view gives the same result, and an exported graph holds plain operators only."""
    tensors = make(case, torch.float32)
    expected = call(name, tensors, case)
    views = {k: None if t is None else t.detach().repeat_interleave(2, -1)[..., ::2] for k, t in tensors.items()}
    assert_close("strided", call(name, views, case), expected)
    if any(t is not None and t.numel() == 0 for t in tensors.values()):
        return

    class Module(torch.nn.Module):
        def forward(self, **kwargs):
            return call(name, kwargs, case)

    program = torch.export.export(Module(), (), {k: None if t is None else t.detach() for k, t in tensors.items()})
    assert not [n for n in program.graph.nodes if "starshift" in str(n.target)]
