# SPDX-License-Identifier: Apache-2.0
"""What int8 costs in accuracy and saves in size, format by format, on a trained run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from starshift.bench.rows import provenance
from starshift.deploy import export_checked, targets
from starshift.deploy._export import checked_target
from starshift.infer import evaluate


def bench_int8(
    run: str | Path,
    data: str | Path,
    formats: Sequence[str] = (),
    *,
    max_drop: float = 0.5,
    say: Callable[[str], None] = print,
) -> Iterator[dict[str, Any]]:
    """Export a run in float32 and in int8 and evaluate both files on the same labelled images; yields a row
    a format.

    Args:
        run: a run folder whose data are still there (its training images calibrate).
        data: as :func:`starshift.evaluate` takes it.
        formats: targets; default: all that have int8 and whose packages are installed.
        max_drop: see :func:`starshift.deploy.export_checked`.
        say: told in words what was just found.

    Raises:
        StarshiftError: a format has no int8, or its packages are missing (before anything is exported); what export and
            evaluate raise.
    """
    for name in formats:
        checked_target(name, quantize="int8")
    here = [n for n, t in targets().items() if t.int8_packages is not None and t.missing(int8=True) is None]
    for name in formats or here:
        with tempfile.TemporaryDirectory(prefix="starshift-int8-") as folder:
            say(f"{name}: fp32")
            full = export_checked(run, name, folder)
            in_float = evaluate(full.path, data)
            say(f"{name}: int8")
            small = export_checked(run, name, folder, quantize="int8", max_drop=max_drop, on_step=say)
            in_int8 = evaluate(small.path, data)
        assert small.int8 is not None and small.relative_error is not None
        yield {
            "model": small.model,
            "format": name,
            "top1_fp32": round(in_float.top1, 3),
            "top1_int8": round(in_int8.top1, 3),
            "drop": round(in_float.top1 - in_int8.top1, 3),
            "n": in_int8.n,
            "bytes_fp32": full.size,
            "bytes_int8": small.size,
            "size_ratio": round(small.size / full.size, 4),
            "max_drop": max_drop,
            "layers": small.int8.layers,
            "kept_float": json.dumps(small.int8.kept_float),
            "relative_error": float(f"{small.relative_error:.3g}"),
            **provenance(),
        }
