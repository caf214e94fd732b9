# SPDX-License-Identifier: Apache-2.0
"""What is shown never stops a run: not a closed terminal, and not a name that the terminal cannot show."""

from __future__ import annotations

import errno
import io
import os
import signal
from pathlib import Path

import pytest

from starshift.training import TrainingInterrupted
from starshift.training.display import Display
from tests.training.conftest import Train


class Gone(io.StringIO):
    """A terminal that is closed after some writes."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().write(text)


@pytest.mark.parametrize("writes", [0, 7])
def test_a_run_outlives_its_terminal(writes: int, tiny_train: Train) -> None:
    assert tiny_train(quiet=False, stream=Gone(writes)).status == "finished"


@pytest.mark.usefixtures("with_a_terminal")
def test_a_closed_terminal_leaves_a_checkpoint(
    tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = os.openpty()
    show = Display.batch
    seen = []

    def batch(self: Display, done: int, description: str) -> None:
        seen.append(1)
        if len(seen) == 2:
            os.close(ours)
            signal.raise_signal(signal.SIGHUP)
        self._drawn = 0.0  # draw at once
        show(self, done, description)

    monkeypatch.setattr(Display, "batch", batch)
    with os.fdopen(theirs, "w") as terminal, pytest.raises(TrainingInterrupted) as stop:
        tiny_train(quiet=False, stream=terminal)
    assert stop.value.exit_code == 129
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_what_a_stream_cannot_hold_is_replaced() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    Display(stream).say("caf\xe9 \udcff.png")
    stream.seek(0)
    assert stream.read() == "caf? ?.png\n"
