# SPDX-License-Identifier: Apache-2.0
"""What the tests of remote objects put into another process; it imports nothing heavy."""

from __future__ import annotations

import os
import sys
import time

from starshift.errors import StarshiftError


class Room:
    def twice(self, x: int) -> int:
        print("a line that must not reach the terminal")
        return 2 * x

    def fail(self, kind: str) -> None:
        raise StarshiftError("mend it") if kind == "mistake" else ValueError("first line\nsecond line")

    def die(self, how: int) -> None:
        os.write(2, b"last words\n")
        os.kill(os.getpid(), how)

    def hang(self) -> None:
        time.sleep(60)

    def processors(self) -> int:
        return len(os.sched_getaffinity(0))

    def imported_in_loading(self, target: str, source: str) -> list[str]:
        """Modules that a form loads only as it is opened: ``source`` is its file, or a network's name."""
        from starshift.bench import timed
        from starshift.bench.forms import Form
        from starshift.bench.subjects import Subject

        form = Form(target)
        timed._import(form)
        make = timed._torch_form if target in timed.TORCH else timed._exported
        load = make(Subject(source), form, source, 1, None)
        before = set(sys.modules)
        load()
        return sorted(set(sys.modules) - before)
