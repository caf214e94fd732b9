# SPDX-License-Identifier: Apache-2.0
"""Work recorded as a CUDA graph, so that launching its kernels takes no time."""

from __future__ import annotations

from collections.abc import Callable

WARMUPS = 3  # in which kernels are compiled and chosen


def recorded(work: Callable[[], object]) -> Callable[[], None]:
    """``work`` as a CUDA graph: run a few times, recorded once; each call of the result replays it, and does not wait.

    Raises:
        RuntimeError: something in it cannot be recorded, such as a result that the CPU waits for.
    """
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()

    def replay() -> None:
        graph.replay()

    replay.kept = work, kept  # type: ignore[attr-defined]  # the memory that is read and written again
    return replay
