# SPDX-License-Identifier: Apache-2.0
"""An object in a process of its own: its memory is its own then, and so is its end.

Calls go over a pipe; an answer comes back, or the reason why there is none. The process ignores Ctrl-C, which is meant
for the one that measures, and writes what it has to say into a file, since compilers and exporters talk much.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from starshift.errors import StarshiftError

LIMIT_S = 900.0  # for one call, unless it says otherwise: compiling takes minutes, hanging takes for ever


class RemoteError(Exception):
    """A call that failed, in one line. Where the process itself ended, the object is gone."""


class Remote:
    """``factory(*arguments)`` in a new process; :meth:`call` calls a method of what it made.

    Args:
        factory: a function or class that the other process can import.
        arguments: for it; they are pickled, as are the arguments and answers of calls.
        environment: variables of the new process beside this one's.
        cores: processors that it may use from its first import on, the same each time; default: all. Some runtimes
            take as many threads as they find processors, whatever they are told.
    """

    def __init__(
        self,
        factory: Callable[..., Any],
        *arguments: Any,
        environment: dict[str, str] | None = None,
        cores: int | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        descriptor, name = tempfile.mkstemp(prefix="starshift-bench-", suffix=".log")
        os.close(descriptor)
        self._log = Path(name)
        self._process = context.Process(
            target=_serve, args=(theirs, name, environment or {}, factory, arguments), daemon=True
        )
        with _kept_to(cores):
            self._process.start()
        theirs.close()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def call(self, method: str, *arguments: Any, limit_s: float | None = LIMIT_S) -> Any:
        """The method's answer; ``limit_s`` of None waits for it however long it takes.

        Raises:
            RemoteError: the factory or the method raised, the process ended, or no answer came in time (the process is
                ended then).
            StarshiftError: what was raised there was one.
        """
        try:
            self._pipe.send((method, arguments))
            if not self._pipe.poll(limit_s):
                self.end()
                raise RemoteError(f"no answer within {limit_s:.0f} s")
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            raise RemoteError(self._last_words()) from None
        if kind == "mistake":
            raise StarshiftError(value)
        if kind == "failed":
            raise RemoteError(value)
        return value

    def end(self) -> None:
        """Close the pipe, at which an idle process ends by itself; a busy one is ended."""
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._log.unlink(missing_ok=True)

    def _last_words(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"code {code}"
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        said = next((line.strip()[:160] for line in reversed(lines) if line.strip()), "")
        killed = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"its process ended with {how}{killed}" + (f": {said}" if said else "")


@contextlib.contextmanager
def _kept_to(count: int | None) -> Iterator[None]:
    """Processes started in here have so many processors, where the system can tell them; None leaves them all."""
    if count is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _apart(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _apart(processors: set[int]) -> list[int]:
    """In order, but those that share a core with an earlier one after all that do not."""
    met: Counter[str] = Counter()
    shared = []
    for processor in sorted(processors):
        siblings = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        core = siblings.read_text() if siblings.exists() else str(processor)
        shared.append((met[core], processor))
        met[core] += 1
    return [processor for _, processor in sorted(shared)]


def _serve(
    pipe: Connection, log: str, environment: dict[str, str], factory: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """The other process's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    made: Any = None
    with contextlib.suppress(EOFError):  # the other side closed the pipe
        while True:
            method, values = pipe.recv()
            try:
                if made is None:
                    made = factory(*arguments)
                answer = ("answer", getattr(made, method)(*values))
            except Exception as error:  # whatever it is, it is told to the other process, which writes it into a row
                traceback.print_exc()
                kind = "mistake" if isinstance(error, StarshiftError) else "failed"
                answer = (kind, _one_line(error))
            pipe.send(answer)


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, StarshiftError):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
