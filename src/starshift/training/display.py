# SPDX-License-Identifier: Apache-2.0
"""What a training run tells people: a progress bar with the time left on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from starshift.training.machine import process_rank

_NOISY = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric", "torch.utils.tensorboard")


class _Page:
    """A text stream that never stops a run: characters it cannot hold become ``?``, and once its terminal or reader is
    gone, what is written to it is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None)
        shown = text.encode(encoding, "replace").decode(encoding) if encoding else text
        self._unless_gone(lambda: self._stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._unless_gone(self._stream.flush)

    def _unless_gone(self, do: Callable[[], Any]) -> None:
        if self._gone:
            return
        try:
            do()
        except OSError:
            self._gone = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Display:
    """Prints to ``stream`` (default: standard output), and nothing in processes of rank above zero.

    A terminal that is closed, or a reader that goes away, does not stop the run.

    Args:
        stream: where lines and bar go.
        quiet: print nothing at all.
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.stream = cast(TextIO, _Page(stream or sys.stdout))
        self.quiet = quiet or process_rank() > 0
        self._bar: Any = None
        self._task: Any = None
        self._drawn = 0.0

    def say(self, line: str) -> None:
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.stream, flush=True)

    @contextmanager
    def bar(self, total: int) -> Iterator[None]:
        """Draw a bar over the run's ``total`` batches, if the stream is a terminal."""
        if self.quiet or not self.stream.isatty():
            yield
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=Console(file=self.stream), transient=True, refresh_per_second=4) as self._bar:
            self._task = self._bar.add_task("", total=total)
            try:
                yield
            finally:
                self._bar = None

    def batch(self, done: int, description: str) -> None:
        """Move the bar; drawn at most four times a second."""
        if self._bar is not None and time.monotonic() - self._drawn > 0.25:
            if not self._drawn:  # a resumed run starts far along: that was no speed
                self._bar.reset(self._task, completed=done)
            self._drawn = time.monotonic()
            self._bar.update(self._task, completed=done, description=description)

    def epoch(self, row: dict[str, Any], epochs: int, best: bool) -> None:
        """One line an epoch."""
        width = len(str(epochs))
        losses = f"train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}"
        accuracy = f"top-1 {row['val_top1']:6.2f}%  top-5 {row['val_top5']:6.2f}%"
        mark = "  *" if best else ""
        self.say(
            f"epoch {row['epoch']:>{width}}/{epochs}  {losses}  {accuracy}  {row['images_per_s']:.0f} images/s{mark}"
        )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence Lightning's advice and progress notes for the time of a run; errors still come through."""
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning(\.|_)")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
