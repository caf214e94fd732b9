# SPDX-License-Identifier: Apache-2.0
"""Converters tell of their own inner workings by warnings, log lines and output; errors still come through."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """No warnings, and of the loggers of these ``names`` errors alone."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def silent(*names: str) -> Iterator[None]:
    """As :func:`quiet`, and nothing of what the process writes to stdout and stderr, compiled code included."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in kept:
            os.dup2(null, number)
        with (
            quiet(*names),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        os.close(null)


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """OpenVINO and NNCF report their use to their makers unless the user has refused, from a forked process. Not from
    here: nobody was asked, and forking a process that has threads can end it."""
    if importlib.util.find_spec("openvino_telemetry") is None:
        yield
        return
    from openvino_telemetry.utils.sender import TelemetrySender

    send = TelemetrySender.send
    TelemetrySender.send = lambda self, backend, message: None  # else it goes to a thread, which forks
    try:
        yield
    finally:
        TelemetrySender.send = send
