# SPDX-License-Identifier: Apache-2.0
"""Measures the cells of an experiment that have no row yet, one after the other or side by side."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from experiments._book import load, read
from experiments._cells import Context, as_text, missing
from starshift.bench.rows import append_row, provenance
from starshift.errors import StarshiftError, nearest


def run_experiment(
    name: str,
    data: str | None,
    budget: str,
    runs: Path,
    results: Path,
    *,
    jobs: int = 1,
    threads: int | None = None,
    say: Callable[[str], Any] = print,
) -> None:
    """Measure what is missing, a row as soon as it is there.

    Args:
        name: of the experiment.
        data: its images; may be left out for ``smoke`` (handwritten digits) and where none are needed.
        budget: of those that the experiment has: smoke, small, paper, and gpu for some.
        runs, results: folders of trained networks and of rows.
        jobs: cells measured side by side, each in a process of its own.
        threads: of each; default: the cores divided by the jobs.
        say: takes a line of news.

    Raises:
        StarshiftError: no such experiment or budget, or data are missing.
    """
    experiment = load(name)
    there = list(experiment.COST)
    if budget not in there:
        raise StarshiftError(
            f"--budget of {name} is one of {', '.join(there)}; not '{budget}'.{nearest(budget, there)}"
        )
    if data is None and budget != "smoke" and experiment.NEEDS_DATA:
        raise StarshiftError(f"{name} needs images: --data FOLDER, with train/ and test/ class folders (CIFAR-10)")
    cells = experiment.cells(budget)
    todo = missing(cells, read(name, results), budget)
    say(f"{name} ({budget}): {len(cells)} cells, {len(todo)} to measure. Expected in all: {experiment.COST[budget]}")
    context = Context(data or "digits", budget, runs)
    began = time.monotonic()
    for done, (i, found) in enumerate(_measured(name, context, todo, jobs, threads), 1):
        cell = cells[i]
        row = {"budget": budget, **cell.key, **found, "settings": as_text(cell.settings), **provenance()}
        append_row(results / f"{name}.csv", row)
        left = (time.monotonic() - began) / done * (len(todo) - done) / 60
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in found.items() if isinstance(value, float))
        say(f"  {done}/{len(todo)} {cell.label}: {numbers[:100]} (about {left:.0f} min left)")


def _measured(
    name: str, context: Context, todo: list[int], jobs: int, threads: int | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or max(1, cores // jobs)
    if jobs == 1 or len(todo) < 2:
        _set_threads(threads)
        for i in todo:
            yield i, _measure(name, context, i)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_set_threads, initargs=(threads,)) as pool:
        waiting = {pool.submit(_measure, name, context, i): i for i in todo}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool:
            raise StarshiftError("a job was killed (out of memory?): run again with fewer --jobs") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _measure(name: str, context: Context, number: int) -> dict[str, Any]:
    cell = load(name).cells(context.budget)[number]
    return dict(cell.measure(context))
