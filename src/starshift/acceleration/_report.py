# SPDX-License-Identifier: Apache-2.0
"""What an acceleration did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rich.table import Table
from torch import nn

from starshift.acceleration._rules import Rule


@dataclass(frozen=True)
class Replaced:
    """One replaced layer: its name in the model, the class it had, and what runs now."""

    name: str
    kind: str
    what: str
    module: nn.Module = field(repr=False)
    rule: Rule = field(repr=False)


@dataclass(frozen=True)
class Left:
    """One layer of a kind that a rule knows, left as it is, and why."""

    name: str
    kind: str
    reason: str


@dataclass
class AccelerationReport:
    """What :func:`starshift.accelerate` did. ``print(report)`` sums it up.

    Attributes:
        replaced, left: every layer by name.
        no_kernels: why no compiled kernels run on this machine, so that nothing becomes faster; None when they do.
        moved: parameters laid out channels last.
    """

    replaced: list[Replaced]
    left: list[Left]
    no_kernels: str | None
    moved: list[nn.Parameter] = field(repr=False)

    def undo(self) -> None:
        """Take everything back: classes, and the layout of the weights."""
        for entry in self.replaced:
            entry.rule.restore(entry.module)
        for parameter in self.moved:
            parameter.data = parameter.data.contiguous()
        self.replaced, self.moved = [], []

    def _rows(self) -> list[tuple[int, str, str]]:
        """(how many, class, what happened), the most frequent first."""
        replaced = Counter((r.kind, f"now: {r.what}") for r in self.replaced)
        left = Counter((e.kind, f"left: {e.reason}") for e in self.left)
        return [(n, kind, what) for counter in (replaced, left) for (kind, what), n in counter.most_common()]

    def _title(self) -> str:
        title = f"{len(self.replaced)} layers replaced" if self.replaced else "nothing was replaced"
        return f"{title}; no kernel runs, so nothing is faster: {self.no_kernels}" if self.no_kernels else title

    def __str__(self) -> str:
        return "\n".join([self._title(), *(f"{n:6} {kind}, {what}" for n, kind, what in self._rows())])

    def __rich__(self) -> Table:
        table = Table(title=self._title(), title_justify="left")
        table.add_column("layers", justify="right")
        table.add_column("class")
        table.add_column("what happened")
        for n, kind, what in self._rows():
            table.add_row(str(n), kind, what)
        return table
