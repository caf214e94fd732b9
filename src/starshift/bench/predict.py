# SPDX-License-Identifier: Apache-2.0
"""``starshift predict`` with an exported file, beside timm's way to predict a folder: whole processes in turns."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from starshift.bench import _timm_inference
from starshift.bench.clock import paired
from starshift.bench.rows import provenance
from starshift.errors import StarshiftError, nearest

PEER = "timm's inference.py"
OURS = "from starshift.cli.main import main; main()"


def bench_predict(
    folder: Path,
    *,
    model: str = "starnet_s1",
    formats: Sequence[str] = ("onnx",),
    rounds: int = 3,
    label: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """Time both from the start of the process to the file of answers, imports and loading included; yields a row
    a format.

    Args:
        folder: images, below it at any depth.
        model: a network that timm has too; with random weights, which are as fast as trained ones.
        formats: export targets.
        rounds: pairs of timings after one that does not count; medians are reported.
        label: what to call the images in the rows.
        say: called with a line of progress.

    Raises:
        StarshiftError: timm has no such network, the folder has no images, a target is missing, or a process failed.
    """
    from timm.models import is_model, list_models

    from starshift.deploy import export
    from starshift.infer.paths import expand

    if not is_model(model):
        raise StarshiftError(f"timm has no model '{model}' to compare with.{nearest(model, list_models())}")
    count = sum(found.error is None for found in expand([folder]))
    if not count:
        raise StarshiftError(f"no images below {folder}")
    for format in formats:
        with tempfile.TemporaryDirectory(prefix="starshift-predict-") as below:
            file = export(model, format, Path(below))
            say(f"{format}: {rounds} rounds of {count} images")
            ours = [sys.executable, "-c", OURS, "predict", str(file), str(folder), "--out", f"{below}/ours.jsonl"]
            peer = [sys.executable, str(_timm_inference.__file__), model, str(folder), f"{below}/peer.csv"]
            result = paired(partial(_run, ours), partial(_run, peer), rounds)
            answered = [len(Path(f"{below}/{name}").read_bytes().splitlines()) for name in ("ours.jsonl", "peer.csv")]
        if answered != [count, count]:
            raise StarshiftError(f"of {count} images {answered[0]} and {answered[1]} were answered")
        yield {
            "suite": "predict",
            "model": model,
            "format": format,
            "images": label or str(folder),
            "count": count,
            "rounds": rounds,
            **result.rates(count, PEER),
            **provenance(),
        }


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise StarshiftError(f"a process that was to predict failed: {last}")
