# SPDX-License-Identifier: Apache-2.0
"""What the tests of remote objects put into another process; it imports nothing heavy."""

from __future__ import annotations

import os
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
