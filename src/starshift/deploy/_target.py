# SPDX-License-Identifier: Apache-2.0
"""The protocol of an export target, and how targets are found.

A target is a file in this folder, without a leading underscore, that holds a ``TARGET``; nothing keeps a list.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from starshift.deploy._file import FilePredictor
from starshift.deploy._metadata import Metadata
from starshift.errors import StarshiftError, nearest


class Target(ABC):
    """One file format and the runtime that answers from it.

    Attributes:
        name: what ``--format`` takes: the name of the target's file.
        suffix: of the exported file, with its dot.
        extra: the optional extra of this package that installs what the target needs.
        packages: import names of what an export needs. They are imported in the target's file alone, inside its
            methods.
        runtime: those of them that opening a file needs.
        torch_below: (major, minor) of the first torch that ``packages`` cannot work with.
        precisions: what it can be exported in, the first by default; with each, the largest relative error against
            PyTorch for which a file counts as right.
        int8_packages: import names of what quantising needs beside; None where the target has no int8.
        wide_kernel: depthwise convolutions with a kernel this large, and the sums around them, compute in float in an
            int8 file, on int8 weights, where that was measured to be faster (``starshift bench lowerings``): with one
            channel a group there are no sums of products for int8 instructions to take. None: they are in int8.
    """

    name: str
    suffix: str
    extra: str
    packages: tuple[str, ...]
    runtime: tuple[str, ...]
    torch_below: tuple[int, int] | None = None
    precisions: Mapping[str, float] = MappingProxyType({"fp32": 1e-5})
    int8_packages: tuple[str, ...] | None = None
    wide_kernel: int | None = None

    def missing(self, *, to_load: bool = False, int8: bool = False) -> str | None:
        """Why this target cannot export (or, ``to_load``, answer) here and what to do about it; None if it can."""
        needed = self.runtime if to_load else self.packages + ((self.int8_packages or ()) if int8 else ())
        absent = [p for p in needed if importlib.util.find_spec(p) is None]
        too_new = self.torch_below is not None and not to_load and _torch_version() >= self.torch_below
        if not absent and not too_new:
            return None
        install = f"pip install 'starshift[{self.extra}]'"
        if not too_new:
            return f"{self.name} needs {', '.join(absent)}: {install}"
        below = ".".join(map(str, self.torch_below or ()))
        return (
            f"{self.name} needs a torch below {below} to export, and here is {torch.__version__}:"
            f" make an environment of its own (python3 -m venv) and there {install}; the files answer everywhere"
        )

    def available(self) -> bool:
        return self.missing() is None

    def why_not_here(self) -> str | None:
        """Why no file of this format can answer on this kind of machine, whatever is installed; None if it can."""
        return None

    @abstractmethod
    def export(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        """Write ``model`` (eval mode, folded) with ``metadata`` to ``path``; any batch size must work afterwards.

        ``example`` is a float32 batch (2, C, H, W) to trace with, ``metadata.precision`` one of :attr:`precisions`.
        Whatever is written before an error arises is removed by the caller, who passes a temporary ``path`` with
        :attr:`suffix`; it may become a folder.
        """

    def export_int8(self, model: nn.Module, images: list[Tensor], metadata: Metadata, path: Path) -> None:
        """As :meth:`export`, in int8 with ranges found on ``images`` (float32 batches).

        The layers that ``metadata.kept_float`` names stay in float, by their names in ``model.state_dict()``.
        """
        raise NotImplementedError

    @abstractmethod
    def load(self, path: Path, *, device: str = "cpu") -> FilePredictor:
        """Open an exported file.

        Raises:
            StarshiftError: not a file of this format, or one without our metadata.
        """

    def check(self, model: nn.Module, path: Path, images: Tensor) -> float | None:
        """Return the largest :func:`relative_error` against ``model`` on batches of 1 and of all ``images``.

        None where no file of this format can answer here; it is opened all the same.
        """
        predictor = self.load(path)
        if self.why_not_here():
            return None
        with torch.inference_mode():
            return max(relative_error(predictor.logits(x), model(x)) for x in (images[:1], images))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value; infinite for other shapes or a NaN."""
    if found.shape != expected.shape:
        return float("inf")
    difference = (found.double() - expected.double()).abs().max()
    error = (difference / expected.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)).item()
    return error if error == error else float("inf")


@cache
def targets() -> dict[str, Target]:
    """Every target, by name."""
    names = sorted(f.stem for f in Path(__file__).parent.glob("*.py") if not f.stem.startswith("_"))
    return {name: import_module(f"starshift.deploy.{name}").TARGET for name in names}


def get_target(name: str) -> Target:
    """The target of that name, whether or not its packages are installed.

    Raises:
        StarshiftError: there is none; the message lists those there are.
    """
    if name not in targets():
        raise StarshiftError(f"no export format '{name}'.{nearest(name, targets())} There are: {', '.join(targets())}")
    return targets()[name]


def require(target: Target, *, to_load: bool = False, int8: bool = False) -> None:
    """Raise StarshiftError with the install command unless the target can export (or, ``to_load``, answer) here."""
    missing = target.missing(to_load=to_load, int8=int8)
    if missing:
        raise StarshiftError(missing)


def target_of(path: Path) -> Target | None:
    """The target whose suffix ``path`` has (the longest, where several end it), or None."""
    found = [t for t in targets().values() if path.name.endswith(t.suffix)]
    return max(found, key=lambda t: len(t.suffix), default=None)


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])
