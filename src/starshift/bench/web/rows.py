# SPDX-License-Identifier: Apache-2.0
"""What a browser posts, checked, as a row of the same table that ``starshift bench`` writes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from starshift.errors import StarshiftError

BACKENDS = ("wasm", "webgpu")
TIMES = ("latency_ms", "p5_ms", "p95_ms", "first_ms", "load_ms")
MOST_MS = 1e7
MOST_TEXT = 200
_FORMULA = "=+-@\t\r"  # what a spreadsheet would take for one


def checked(posted: Any, models: int) -> dict[str, Any]:
    """``model`` (an index), ``backend``, ``threads``, ``cores``, ``calls``, the :data:`TIMES`, and ``gpu``.

    Raises:
        StarshiftError: a field is missing, unknown, of another type, or out of range.
    """
    if not isinstance(posted, Mapping):
        raise StarshiftError("a row is a JSON object")
    known = {"model", "backend", "threads", "cores", "calls", "gpu", *TIMES}
    if set(posted) - known or known - {"gpu"} - set(posted):
        raise StarshiftError(f"a row has the fields {', '.join(sorted(known))}")
    if posted["backend"] not in BACKENDS:
        raise StarshiftError(f"backend is one of {', '.join(BACKENDS)}")
    times = {name: _number(posted[name], name) for name in TIMES}
    if not times["p5_ms"] <= times["latency_ms"] <= times["p95_ms"]:
        raise StarshiftError("p5, median and p95 are not in order")
    return {
        "model": _whole(posted["model"], "model", 0, models - 1),
        "backend": posted["backend"],
        "threads": _whole(posted["threads"], "threads", 1, 1024),
        "cores": _whole(posted["cores"], "cores", 0, 1024),
        "calls": _whole(posted["calls"], "calls", 1, 1_000_000),
        "gpu": clean(posted.get("gpu", "")),
        **times,
    }


def clean(text: Any) -> str:
    """One line of printable characters, not too long, that no spreadsheet takes for a formula."""
    line = re.sub(r"\s+", " ", "".join(c for c in str(text) if c.isprintable() or c.isspace())).strip()[:MOST_TEXT]
    return f"'{line}" if line[:1] in _FORMULA and line else line


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST_MS:
        raise StarshiftError(f"{name} is a number of milliseconds from 0 to {MOST_MS:g}")
    return round(float(value), 4) if math.isfinite(value) else 0.0


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise StarshiftError(f"{name} is a whole number from {low} to {high}")
    return value
