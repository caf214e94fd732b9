# SPDX-License-Identifier: Apache-2.0
"""Channels given to shifts by what the shifts contribute, which "Shift" (CVPR 2018) leaves as future work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from starshift.analysis.shift_groups import Displacement, GroupContribution
from starshift.errors import StarshiftError
from starshift.layers.activation import one_of
from starshift.ops import Offsets

MEASURES = ("lost", "weight_norm")


def allocate(shares: Mapping[Displacement, float], channels: int, least: int = 0) -> Offsets:
    """Whole numbers of channels in proportion to ``shares``, by the method of largest remainders.

    Args:
        shares: of each displacement (dy, dx); below zero counts as zero, all zero as equal.
        channels: to hand out.
        least: channels that every displacement gets in any case.

    Returns:
        Runs (channels, dy, dx) in the order of ``shares``, without empty ones.

    Raises:
        StarshiftError: nothing to share among, a share that is no finite number, or too few channels for ``least``.

    Example:
        >>> from starshift.analysis import allocate
        >>> allocate({(0, 0): 2.0, (0, 1): 1.0, (1, 0): 0.6}, 10)
        ((5, 0, 0), (3, 0, 1), (2, 1, 0))
    """
    spare = channels - least * len(shares)
    if not shares or spare < 0 or not all(math.isfinite(s) for s in shares.values()):
        raise StarshiftError(
            f"cannot share {channels} channels among {len(shares)} displacements with at least {least} each: "
            "shares must be finite, and the channels enough"
        )
    weights = [max(0.0, share) for share in shares.values()]
    if sum(weights) == 0:
        weights = [1.0] * len(shares)
    exact = [spare * weight / sum(weights) for weight in weights]
    counts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: spare - sum(counts)]:
        counts[i] += 1
    return tuple((n + least, *d) for n, d in zip(counts, shares, strict=True) if n + least)


def allocations(
    rows: Sequence[GroupContribution], by: str = "lost", smooth: float = 0.0, least: int = 0
) -> list[list[list[int]]]:
    """The option ``offsets`` of a network whose channels are given to shifts by measured contribution.

    Args:
        rows: of all modules, from :func:`group_contributions`.
        by: ``lost`` or ``weight_norm``. Zeroing tells nothing of the channels that stay: by ``lost`` they keep their
            number, and the rest is shared.
        smooth: from 0 (by contribution alone) to 1 (as the channels are now).
        least: channels that every displacement gets in any case.

    Returns:
        Runs [channels, dy, dx] for each module.

    Raises:
        StarshiftError: an unknown measure, or as :func:`allocate`.
    """
    one_of("by", by, MEASURES)
    modules: dict[str, list[GroupContribution]] = {}
    for row in rows:
        modules.setdefault(row.module, []).append(row)
    found = []
    for groups in modules.values():
        fixed = [g for g in groups if by == "lost" and (g.dy, g.dx) == (0, 0)]
        shared = [g for g in groups if g not in fixed]
        total = sum(max(0.0, getattr(g, by)) for g in shared) or 1.0
        now = sum(g.channels for g in shared)
        shares = {
            (g.dy, g.dx): (1 - smooth) * max(0.0, getattr(g, by)) / total + smooth * g.channels / now for g in shared
        }
        runs = [*allocate(shares, now, least), *((g.channels, g.dy, g.dx) for g in fixed)] if shared else []
        runs = runs or [(g.channels, g.dy, g.dx) for g in fixed]
        found.append([list(run) for run in sorted(runs, key=lambda run: run[1:])])
    return found
