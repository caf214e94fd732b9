# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from starshift.bench import int8, lowerings
from starshift.deploy import Exported
from starshift.deploy._int8 import Quantised


def test_every_way_of_writing_a_layer_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowerings, "SIDE", 7)
    monkeypatch.setattr(lowerings, "MODULES", 1)
    said: list[str] = []
    rows = list(lowerings.bench_lowerings(["onnx"], rounds=2, say=said.append))
    assert [(r["layers"], r["written"]) for r in rows] == [
        ("csc", "depthwise"),
        ("csc", "slices"),
        ("star", "separate"),
        ("star", "merged"),
        ("star, int8", "depthwise in int8"),
        ("star, int8", "depthwise in float"),
    ]
    assert all(r["ms"] > 0 and r["commit"] is not None for r in rows)
    assert [r["ratio"] for r in rows[::2]] == [1, 1, 1] and len(said) == 3


def test_a_row_says_what_int8_lost_and_saved(small_model: Path, labelled: Path, onnx_file: Path, monkeypatch) -> None:
    """The export of int8 has tests of its own; here the file in float32 stands for both."""

    def exported(run: Path, name: str, folder: str, quantize: str | None = None, **options: object) -> Exported:
        found = Quantised(("head",), 9, 80.0, 79.5, 15) if quantize else None
        size = 300 if quantize else 1000
        return Exported("starnet_s050", onnx_file, name, size, quantize or "fp32", 0.01, "x", 1.0, found)

    monkeypatch.setattr(int8, "export_checked", exported)
    (row,) = int8.bench_int8(small_model, labelled, ["onnx"], say=lambda text: None)
    assert row["size_ratio"] == 0.3 and json.loads(row["kept_float"]) == ["head"] and row["layers"] == 9
    assert row["n"] == 15 and row["top1_fp32"] == row["top1_int8"] and row["drop"] == 0
