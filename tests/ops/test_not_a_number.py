# SPDX-License-Identifier: Apache-2.0
"""NaN goes to all that depends on it, and nowhere else: no kernel multiplies it by a padding zero of its own. Infinity
stays infinite where nothing but positive numbers meet it.

PyTorch's convolutions do here and there, so that plain torch bounds what may become NaN from above only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from starshift.ops import OPERATORS, use_kernel
from starshift.ops._case import Case
from starshift.ops._operator import NATIVE, REFERENCE
from tests.ops.test_every_operator import ALL, call, make, supported

NORMED = ("batch_norm_act", "csc", "pointwise_norm_act")  # statistics take one value to all
PARTS = [
    (name, case)
    for name, case in ALL
    if name not in NORMED
    and any(kernel.name == NATIVE for kernel in OPERATORS[name].kernels)
    and all(shape is None or 0 not in shape for shape in case.tensors.values())
]


def at_each(*corners: str) -> Any:
    """Every case in both dtypes, at these places of its input or of the gradient at its result."""

    def marked(test: Any) -> Any:
        test = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)(test)
        test = pytest.mark.parametrize(("name", "case"), PARTS, ids=[f"{n}-{c.name}" for n, c in PARTS])(test)
        return pytest.mark.parametrize(
            ("where", "corner"), [(where, corner) for where in ("input", "gradient") for corner in corners]
        )(test)

    return marked


@dataclass(frozen=True)
class Place:
    """One value of a case's first tensor, or of the gradient at its result, that is replaced."""

    name: str
    case: Case
    dtype: torch.dtype
    where: str
    corner: str
    positive: bool = False

    def results(self, kernel: str, value: float, exact: bool = False) -> list[Tensor]:
        """Output and gradients with ``value`` in this place; ``exact``: in float64."""
        made = make(self.case, self.dtype, torch.channels_last)
        tensors = {k: t if t is None else self._start(t, exact) for k, t in made.items()}
        present = [t for t in tensors.values() if t is not None]
        if self.where == "input":
            _put(present[0].detach(), value, self.corner)
        with use_kernel(kernel):
            output = call(self.name, tensors, self.case)
            grad = torch.randint(1, 3, output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
            if self.where == "gradient":
                _put(grad, value, self.corner)
            return [output, *torch.autograd.grad(output, present, grad)]

    def _start(self, tensor: Tensor, exact: bool) -> Tensor:
        start = tensor.detach().abs() if self.positive else tensor.detach()
        return (start.double() if exact else start).requires_grad_()


@at_each("first", "middle", "last")
def test_it_goes_to_what_depends_on_it(name: str, case: Case, dtype: torch.dtype, where: str, corner: str) -> None:
    if not supported(name, NATIVE, make(case, dtype, torch.channels_last), case):
        pytest.skip("left to the reference")
    results = Place(name, case, dtype, where, corner).results
    high, low, exact = (results(REFERENCE, value, exact=True) for value in (1e3, -2e3, torch.nan))
    for i, (actual, plain) in enumerate(zip(results(NATIVE, torch.nan), results(REFERENCE, torch.nan), strict=True)):
        lost = actual.isnan()
        assert not (lost & ~plain.isnan()).any(), f"result {i}: NaN spreads to what does not depend on it"
        assert lost[(high[i] != low[i]) & exact[i].isnan() & plain.isnan()].all(), f"result {i}: NaN is lost"


@at_each("last")
def test_infinity_stays(name: str, case: Case, dtype: torch.dtype, where: str, corner: str) -> None:
    if not supported(name, NATIVE, make(case, dtype, torch.channels_last), case):
        pytest.skip("left to the reference")
    results = Place(name, case, dtype, where, corner, positive=True).results
    for i, (actual, plain, exact) in enumerate(
        zip(
            results(NATIVE, torch.inf),
            results(REFERENCE, torch.inf),
            results(REFERENCE, torch.inf, exact=True),
            strict=True,
        )
    ):
        undefined = plain.isnan() | exact.isnan()  # infinity times zero
        assert not (actual.isnan() & ~undefined).any(), f"result {i}: infinity became NaN"
        assert actual[plain.isposinf() & exact.isposinf()].isposinf().all(), f"result {i}: infinity is lost"


def _put(tensor: Tensor, value: float, corner: str) -> None:
    """At the first, the middle or the last place of each dimension."""
    tensor[tuple({"first": 0, "middle": size // 2, "last": size - 1}[corner] for size in tensor.shape)] = value
