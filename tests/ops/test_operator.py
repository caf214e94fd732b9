# SPDX-License-Identifier: Apache-2.0
"""How an operator chooses its kernel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from starshift.ops import _native, kernel_status, kernels_switched, use_kernel
from starshift.ops._operator import OPERATORS, Operator


@pytest.fixture(scope="module")
def doubled() -> Operator:
    operator = Operator("test_double", "(Tensor x) -> Tensor", lambda x: x * 2)
    operator.add_kernel("exact", "cpu", lambda x: x + x, lambda x: x.dtype == torch.float32)
    operator.add_kernel("wrong", "cpu", lambda x: x * 5, lambda x: True)
    yield operator
    del OPERATORS["test_double"]


def test_first_supporting_kernel_runs_and_reference_answers_otherwise(doubled) -> None:
    assert doubled(torch.ones(1)).item() == 2
    assert doubled(torch.ones(1, dtype=torch.float64)).item() == 5


def test_forcing_a_kernel(doubled) -> None:
    with use_kernel("wrong"):
        assert doubled(torch.ones(1)).item() == 5
    with use_kernel("reference"):
        assert doubled(torch.ones(1, dtype=torch.float64)).item() == 2
    with use_kernel("exact"), pytest.raises(RuntimeError, match="no kernel 'exact'"):
        doubled(torch.ones(1, dtype=torch.float64))


def test_kernels_switched_off_for_the_process(doubled) -> None:
    def elsewhere() -> float:
        with ThreadPoolExecutor(1) as other:
            return other.submit(lambda: doubled(torch.full((1,), 3.0)).item()).result()

    with use_kernel("wrong"):
        assert elsewhere() == 6, "use_kernel is for the code inside its block, not for other threads"
    reference, doubled.reference = doubled.reference, lambda x: x * 7
    try:
        with kernels_switched(False):
            assert doubled(torch.ones(1)).item() == elsewhere() / 3 == 7
            with use_kernel("wrong"):
                assert doubled(torch.ones(1)).item() == 5
            assert kernel_status()["test_double"]["cpu"] == "reference (kernels are switched off)"
            with kernels_switched(True):
                assert doubled(torch.ones(1)).item() == 2
        assert doubled(torch.ones(1)).item() == 2
    finally:
        doubled.reference = reference


def test_status_names_the_active_kernel(doubled) -> None:
    status = kernel_status()["test_double"]
    assert status["cpu"] == "exact" and status["cuda"].startswith("reference")
    assert set(kernel_status()) >= {"star", "star_mlp", "shift2d", "shift_conv2d", "depthwise_conv2d"}


def test_what_pytorchs_dispatcher_has_to_see_goes_through_it(doubled, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Subclass(torch.Tensor):
        pass

    x = torch.ones(3, 1)
    with Mode():
        doubled(x)
    assert seen == ["test_double.default"] or "starshift.test_double.default" in seen
    assert torch.vmap(doubled)(x).tolist() == [[2.0]] * 3
    assert doubled(torch.empty(2, device="meta")).device.type == "meta"
    with FakeTensorMode() as mode:
        assert isinstance(doubled(mode.from_tensor(x)), FakeTensor)

    overload, calls = doubled.overload, []
    monkeypatch.setattr(doubled, "overload", lambda *args: (calls.append(args), overload(*args))[1])
    doubled(x)
    assert not calls
    doubled(x.as_subclass(Subclass))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("capability", "amd", "pairs", "best"),
    [
        ("AVX512", True, True, "avx512_bf16"),
        ("AVX512", True, False, "avx512"),
        ("AVX512", False, True, "avx512"),
        ("AVX2", True, True, "avx2"),
        ("DEFAULT", True, True, "generic"),
    ],
)
def test_the_library_fits_the_processor(
    capability: str, amd: bool, pairs: bool, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: pairs)
    monkeypatch.setattr(_native, "is_amd", lambda: amd)
    choices = _native._choices()
    assert choices[0] == best and choices[-1] == "generic"
