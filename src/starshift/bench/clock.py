# SPDX-License-Identifier: Apache-2.0
"""Comparing two ways of doing the same work on a machine that is never quite still."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """Seconds of each round, ours and the peer's, taken in turns so that whatever slows the machine slows both.

    ``ratio`` is the median over rounds of peer / ours: how many times faster ours is.
    """

    ours: tuple[float, ...]
    peer: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        return [p / o for o, p in zip(self.ours, self.peer, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def ours_s(self) -> float:
        return statistics.median(self.ours)

    @property
    def peer_s(self) -> float:
        return statistics.median(self.peer)

    def rates(self, count: int, peer: str) -> dict[str, float | str]:
        """Columns of a row about ``count`` images a round: each side's images per second, and the ratio's range."""
        return {
            "ours_images_per_s": round(count / self.ours_s, 1),
            "peer": peer,
            "peer_images_per_s": round(count / self.peer_s, 1),
            "ratio": round(self.ratio, 3),
            "ratio_low": round(min(self.ratios), 3),
            "ratio_high": round(max(self.ratios), 3),
        }


def paired(ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> Paired:
    """Time both, ``rounds`` times after one round that does not count; who goes first alternates."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, rounds):
        order = (0, 1) if number % 2 else (1, 0)
        for which in order:
            start = time.perf_counter()
            (ours, peer)[which]()
            if number >= 0:
                times[which].append(time.perf_counter() - start)
    return Paired(tuple(times[0]), tuple(times[1]))
