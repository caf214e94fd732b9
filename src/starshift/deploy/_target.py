# SPDX-License-Identifier: Apache-2.0
"""The protocol of an export target, and how targets are found.

A target is a file in this folder, without a leading underscore, that holds a ``TARGET``; nothing keeps a list.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from starshift.deploy._metadata import Metadata
from starshift.deploy._predictor import Predictor
from starshift.errors import StarshiftError, nearest


class Target(ABC):
    """One file format and the runtime that answers from it.

    Attributes:
        name: what ``--format`` takes: the name of the target's file.
        suffix: of the exported file, with its dot.
        extra: the optional extra of this package that installs what the target needs.
        packages: import names of what it needs. They are imported in the target's file alone, inside its methods.
        tolerance: largest relative error against PyTorch for which a file counts as right.
    """

    name: str
    suffix: str
    extra: str
    packages: tuple[str, ...]
    tolerance: float = 1e-5

    def missing(self) -> str | None:
        """Why this target cannot run here and what to do about it; None if it can."""
        absent = [p for p in self.packages if importlib.util.find_spec(p) is None]
        if not absent:
            return None
        return f"{self.name} needs {', '.join(absent)}: pip install 'starshift[{self.extra}]'"

    def available(self) -> bool:
        return self.missing() is None

    @abstractmethod
    def export(self, model: nn.Module, example: Tensor, metadata: Metadata, path: Path) -> None:
        """Write ``model`` (eval mode, folded) with ``metadata`` to ``path``; any batch size must work afterwards.

        ``example`` is a float32 batch (2, C, H, W) to trace with. Whatever is written before an error arises is removed
        by the caller, who passes a temporary ``path``.
        """

    @abstractmethod
    def load(self, path: Path, *, device: str = "cpu") -> Predictor:
        """Open an exported file.

        Raises:
            StarshiftError: not a file of this format, or one without our metadata.
        """

    def check(self, model: nn.Module, path: Path, images: Tensor) -> float:
        """Return the largest :func:`relative_error` against ``model`` on batches of 1 and of all ``images``."""
        predictor = self.load(path)
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


def require(target: Target) -> None:
    """Raise StarshiftError with the install command unless the target can run here."""
    missing = target.missing()
    if missing:
        raise StarshiftError(missing)


def target_of(path: Path) -> Target | None:
    """The target whose suffix ``path`` has, or None."""
    return next((t for t in targets().values() if path.name.endswith(t.suffix)), None)
