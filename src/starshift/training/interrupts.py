# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, SIGTERM and a closed terminal as a wish noted at once and granted at the next place where a checkpoint can be
written."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed; Windows has no such signal
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if HANGUP is None else [HANGUP]))


class StopAsked(Exception):
    """Raised inside the loop once the checkpoint is written. No KeyboardInterrupt: on these Lightning exits."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal; its checkpoint is written.

    Attributes:
        run: the run folder, which ``train(resume=run)`` goes on with.
        exit_code: what a command should end with: 128 + the signal's number.
    """

    def __init__(self, message: str, run: Any, signum: int) -> None:
        super().__init__(message)
        self.run = run
        self.exit_code = 128 + signum


class StopSignal:
    """While installed, the first signal is noted in ``received``; a second Ctrl-C interrupts where it stands.

    A closed terminal is none of its business where it is ignored, as under ``nohup``. Data workers inherit the handler
    when they are forked and ignore the signals in it: they end with their parent.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._owner = os.getpid()

    def install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only: there the caller's own handling stays
        for signum in SIGNALS:
            if signum == HANGUP and signal.getsignal(signum) is signal.SIG_IGN:
                continue
            before = signal.signal(signum, self._handle)
            self._before.setdefault(signum, before)

    def remove(self) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before if before is not None else signal.SIG_DFL)
        self._before = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum

    def __enter__(self) -> StopSignal:
        self.install()
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()
