# SPDX-License-Identifier: Apache-2.0
"""How a shift, a star's branches and wide depthwise convolutions in int8 are best written for each target: the same
layers, written in every way, timed."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from starshift.bench.rows import provenance
from starshift.deploy import FilePredictor, Metadata, get_target, require, targets
from starshift.deploy._lower import SHIFTS, Lowering, lower_
from starshift.layers import CSC, StarBlock, fold_batchnorm
from starshift.preprocessing import Preprocessing

INT8 = "star, int8"
CHANNELS, SIDE, EXPANSION, MODULES = 64, 56, 4, 4


@dataclass(frozen=True)
class Way:
    """How layers are written.

    Attributes:
        lowering: of the shift and the branches.
        int8: the file is in int8.
        wide_kernel: what an int8 file leaves in float, see ``Target.wide_kernel``.
    """

    lowering: Lowering
    int8: bool = False
    wide_kernel: int | None = None


def _star() -> nn.Module:
    return StarBlock(CHANNELS, EXPANSION)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Way]]] = {
    "csc": (lambda: CSC(CHANNELS, CHANNELS, expansion=EXPANSION), {shift: Way(Lowering(shift)) for shift in SHIFTS}),
    "star": (_star, {"separate": Way(Lowering()), "merged": Way(Lowering(merge_branches=True))}),
    INT8: (
        _star,
        {
            "depthwise in int8": Way(Lowering(), int8=True),
            "depthwise in float": Way(Lowering(), int8=True, wide_kernel=7),
        },
    ),
}


def bench_lowerings(
    formats: Sequence[str] = (),
    *,
    threads: int = 1,
    rounds: int = 25,
    say: Callable[[str], None] = print,
) -> Iterator[dict[str, Any]]:
    """Time four modules of each kind (64 channels, 56 x 56, expansion 4), one image, written in every way; yields
    a row each.

    The ways take turns, so that whatever slows the machine slows all; medians.

    Args:
        formats: targets; default: all that can export and answer here.
        threads: of torch and of the runtime.
        rounds: that count; one goes before.
        say: told in words what was just found.

    Raises:
        StarshiftError: a target's package is missing.
    """
    here = [name for name, target in targets().items() if target.available() and target.why_not_here() is None]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name in formats or here:
            require(get_target(name))
            for kind in BLOCKS:
                if kind == INT8 and get_target(name).wide_kernel is None:
                    continue
                try:
                    times = _times(name, kind, rounds)
                except RuntimeError as error:  # of a runtime: the other formats' figures stay
                    say(f"{name} {kind}: not measured, {str(error).splitlines()[0]}")
                    continue
                ms = {way: round(1e3 * statistics.median(seconds), 4) for way, seconds in times.items()}
                say(f"{name} {kind}: " + ", ".join(f"{way} {found:.2f} ms" for way, found in ms.items()))
                for way, seconds in times.items():
                    yield {
                        "layers": kind,
                        "format": name,
                        "written": way,
                        "ms": ms[way],
                        "ratio": round(statistics.median(_ratios(times, seconds)), 3),
                        "threads": threads,
                        "rounds": rounds,
                        **provenance(),
                    }
    finally:
        torch.set_num_threads(before)


def _ratios(times: dict[str, list[float]], seconds: list[float]) -> list[float]:
    """The first way's seconds over these, round by round."""
    return [a / b for a, b in zip(next(iter(times.values())), seconds, strict=True)]


def _times(format: str, kind: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by the way the layers are written."""
    make, ways = BLOCKS[kind]
    image = torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(prefix="starshift-lowerings-") as folder:
        opened = {name: _opened(format, make, way, Path(folder) / name) for name, way in ways.items()}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(-1, rounds):
            for way in list(ways)[:: 1 if number % 2 else -1]:
                start = time.perf_counter()
                opened[way].run(image)
                if number >= 0:
                    times[way].append(time.perf_counter() - start)
    return times


def _opened(format: str, make: Callable[[], nn.Module], way: Way, stem: Path) -> FilePredictor:
    torch.manual_seed(0)
    target = copy(get_target(format))
    target.wide_kernel = way.wide_kernel
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)]
    model = nn.Sequential(*(make() for _ in range(MODULES)), *head)
    metadata = Metadata("lowerings", tuple(map(str, range(10))), Preprocessing((SIDE, SIDE)))
    path = stem.with_name(stem.name + target.suffix)
    with torch.no_grad():
        network = lower_(fold_batchnorm(model.eval()), format, way.lowering)
        images = torch.randn(2, CHANNELS, SIDE, SIDE)
        if way.int8:
            target.export_int8(network, [images], replace(metadata, precision="int8"), path)
        else:
            target.export(network, images, metadata, path)
    predictor = target.load(path)
    assert isinstance(predictor, FilePredictor)
    return predictor
