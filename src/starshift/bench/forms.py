# SPDX-License-Identifier: Apache-2.0
"""The ways a network can be run: three of PyTorch, and a file of each export target in each of its precisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starshift.errors import StarshiftError, nearest

if TYPE_CHECKING:
    from starshift.deploy._target import Target

EAGER, COMPILE, KERNELS = "eager", "compile", "kernels"
TORCH = {
    EAGER: "PyTorch as the network trains: norms unfolded, none of our kernels, channels last",
    COMPILE: "torch.compile of the folded network, none of our kernels, channels last",
    KERNELS: "our kernels: folded, channels last; a network of timm's is accelerated",
}
TIMM_ONNX = "onnx-by-timm"
"""timm's own networks through timm's own export, in ONNX Runtime."""
FLOAT32, INT8 = "fp32", "int8"


@dataclass(frozen=True)
class Form:
    """A way to run a network: one of :data:`TORCH`, :data:`TIMM_ONNX`, or an export target; and its precision."""

    target: str
    precision: str = FLOAT32

    @property
    def name(self) -> str:
        return self.target if self.precision == FLOAT32 else f"{self.target}-{self.precision}"

    @property
    def format(self) -> str:
        """Of its file: the name of an export target."""
        return "onnx" if self.target == TIMM_ONNX else self.target

    @property
    def is_file(self) -> bool:
        return self.target not in TORCH


def precisions(target: Target) -> tuple[str, ...]:
    """The precisions that an export target writes, int8 among them where it can quantise."""
    return (*target.precisions, *(() if target.int8_packages is None else (INT8,)))


def all_forms() -> list[Form]:
    """Every form, those of targets whose packages are missing too."""
    from starshift.deploy import targets

    files = [Form(name, precision) for name, target in targets().items() for precision in precisions(target)]
    return [*(Form(name) for name in TORCH), Form(TIMM_ONNX), *files]


def choose_forms(wanted: Sequence[str]) -> list[Form]:
    """The forms that these names mean: ``onnx`` is all precisions of it, ``onnx-int8`` one, nothing is every form.

    Raises:
        StarshiftError: there is none of that name; the message lists those there are.
    """
    there = all_forms()
    files = [form for form in there if form.is_file]
    exact = {f"{form.target}-{form.precision}": form for form in files}
    names = dict.fromkeys([*(form.target for form in there), *(form.name for form in there), *exact])
    for name in wanted:
        if name not in names:
            raise StarshiftError(f"no target '{name}'.{nearest(name, names)} There are: {', '.join(names)}")
    chosen = [exact[name] for name in wanted if name in exact]
    return [form for form in there if not wanted or form.target in wanted or form.name in wanted or form in chosen]


def missing(form: Form) -> str | None:
    """Why a form cannot be measured here; None where it can."""
    from starshift.deploy import get_target

    if form.target in TORCH:
        return None
    target = get_target(form.format)
    return target.why_not_here() or target.missing(int8=form.precision == INT8)


def whole_numbers(text: str, option: str) -> list[int]:
    """``"1,2"`` as [1, 2].

    Raises:
        StarshiftError: something else than whole numbers of at least 1.
    """
    parts: Iterable[str] = [part.strip() for part in text.split(",") if part.strip()]
    numbers = [int(part) if part.isdecimal() else 0 for part in parts]
    if not numbers or min(numbers) < 1:
        raise StarshiftError(f"{option} wants whole numbers of at least 1, such as 1,2, not '{text}'")
    return list(dict.fromkeys(numbers))
