# SPDX-License-Identifier: Apache-2.0
"""Tables of the docs that are drawn from rows of ``starshift bench``."""

from __future__ import annotations

import csv
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COLUMNS = ("run", "group", "model", "target", "precision", "batch", "size", "threads", "latency_ms", "top1", "note")


def row(run: str, model: str, target: str, latency: float, threads: int = 1, **more: str) -> dict[str, Any]:
    values = (run, "1", model, target, "fp32", "1", "224", threads, latency, "", "")
    return dict(zip(COLUMNS, values, strict=True)) | {"cpu": "one", "cores": "2", "commit": run} | more


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``docs/_deploy.py``; ``tables.write(rows)`` makes the results that it reads."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    module: Any = import_module("_deploy")
    monkeypatch.setattr(import_module("_rows"), "ROOT", tmp_path)
    (tmp_path / "results").mkdir()

    def write(*rows: dict[str, Any]) -> None:
        with (tmp_path / "results" / "deploy.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, [*COLUMNS, "cpu", "cores", "commit", "user_agent"])
            table.writeheader()
            table.writerows(rows)

    monkeypatch.setattr(module, "write", write, raising=False)
    return module


def test_only_what_gave_a_ratio_is_named(tables: Any) -> None:
    tables.write(
        row("a", "starnet_s1", "eager", 20.0),
        row("a", "starnet_s1", "onnx", 10.0),
        row("b", "starnet_s2", "onnx", 15.0, threads=2),
    )
    text = tables.deploy()
    assert "| 2.00 | 1.00 | - | `starnet_s1`, 1 thread, one, 2 cores |" in text and "starnet_s2" not in text
    tables.write(row("b", "starnet_s2", "litert", 15.0, threads=2))
    assert "| 15.00 ms | - | - | `starnet_s2`, 2 threads, one, 2 cores |" in tables.deploy()


def test_a_row_that_took_more_cores_than_it_was_told_is_in_no_table(tables: Any) -> None:
    over = {"note": "used 1.95 cores, though told 1"}
    tables.write(row("a", "starnet_s1", "eager", 20.0), row("a", "starnet_s1", "executorch", 10.0, **over))
    assert "executorch` | not measured |" in tables.deploy()


def test_a_later_row_without_its_peer_hides_no_pair(tables: Any) -> None:
    tables.write(
        row("a", "starnet_s1", "onnx", 10.0),
        row("a", "timm:starnet_s1", "onnx-by-timm", 12.0),
        row("b", "starnet_s1", "onnx", 5.0),
    )
    assert "| `starnet_s1` | 1 | 10.00 | 12.00 | 1.20 | one, 2 cores | a |" in tables.own_onnx()
