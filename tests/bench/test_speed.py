# SPDX-License-Identifier: Apache-2.0
"""The suites of operators and of whole networks: rows, peers, and when a slow peer is let go."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import starshift.bench.operators as operators
from starshift.bench import read_rows
from starshift.bench.ceiling import ceiling
from starshift.bench.operators import OPERATIONS, PEERS, PLAIN, Call, bench_cases
from starshift.bench.sides import REFERENCE_SHIFTS, RUNTIME, Side, Spec, _inference, shifts_to_depthwise
from starshift.bench.training import _take_turns
from starshift.cli.main import app
from starshift.deploy import FilePredictor, load_exported
from starshift.errors import StarshiftError
from starshift.layers import Shift2d, ShiftConv2d
from starshift.models import create_model
from starshift.ops._case import Case
from starshift.ops._operator import forced_kernel
from tests.tolerance import assert_close

EVERY = dict(reversed(bench_cases()))


def small(case: Case) -> Case:
    """The same call on one image of at most 8 pixels."""
    shrunk = {
        name: (1, shape[1], min(shape[2], 8), min(shape[3], 8)) if name == "x" and shape and len(shape) == 4 else shape
        for name, shape in case.tensors.items()
    }
    return Case(case.name, case.why, shrunk, case.options, bench=True)


@pytest.mark.parametrize("kernels", [True, False])
def test_ceilings_are_measured_with_and_without_kernels(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ceiling.cache_clear()
    if not kernels:
        monkeypatch.setattr("starshift.ops._native.available", lambda: False)
    before = torch.get_num_threads()
    found = ceiling(2)
    assert found.gflops > 0.5 and found.gbs > 0.1 and torch.get_num_threads() == before
    assert ceiling(2) is found
    ceiling.cache_clear()


@pytest.mark.parametrize("name", EVERY)
def test_peers_of_the_same_work_compute_the_same(name: str) -> None:
    call = Call(name, small(EVERY[name]), torch.float32)
    ours = call.step(call.forward)()
    for peer in PEERS.get(name, (PLAIN,)):
        theirs = peer.make(call)()
        if peer.name not in ("copy", "1x1 conv alone"):
            for a, b in zip(ours, theirs, strict=True):
                assert_close(f"{name} beside {peer.name}", a, b)


def test_operations_of_forward_and_backward_are_counted() -> None:
    shape = (2, 4, 8, 8)
    assert OPERATIONS["depthwise_conv2d"](shape, shape, tensors={"weight": (4, 1, 3, 3)}) == 3 * 2 * 9 * 2 * 4 * 64
    pointwise = {"weight": (5, 4, 1, 1)}
    assert OPERATIONS["shift_conv2d"](shape, (2, 5, 4, 4), tensors=pointwise) == 3 * 2 * 4 * 5 * 2 * 16
    weights = {"w1": (6, 4, 1, 1), "wg": (4, 6, 1, 1)}
    assert OPERATIONS["star_mlp"]((2, 4, 3, 3), (2, 4, 3, 3), tensors=weights) == 3 * 2 * 3 * 4 * 6 * 2 * 9


def test_bench_operators_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "bench_cases", lambda *_: [(n, small(c)) for n, c in EVERY.items()])
    monkeypatch.setattr(operators, "LEAST_S", 1e-5)
    out = tmp_path / "operators.csv"
    result = CliRunner().invoke(app, ["bench", "operators", "--threads=1", "--rounds=1", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert {r["operator"] for r in rows} == set(EVERY)
    assert {r["dtype"] for r in rows} == {"fp32", "bf16"}
    for row in rows:
        assert row["ours_ms"] > 0 and row["peer_ms"] > 0 and row["ratio"] > 0 and row["gbs"] >= 0
        assert (
            row["kernel"] in ("reference", "avx512_bf16", "avx512", "avx2", "generic")
            and row["peak_gflops"] > 0
            and row["torch"]
        )
    assert len(read_rows(out)[1]) == len(rows)
    result = CliRunner().invoke(app, ["bench", "operators", "--threads=1", "--rounds=1", "--dtypes=fp32"])
    assert result.exit_code == 0 and "ceilings on 1 thread" in result.stdout and "F.conv2d (oneDNN)" in result.stdout


def test_mistakes() -> None:
    with pytest.raises(StarshiftError, match="Did you mean 'shift2d'"):
        bench_cases(["shift2"])
    with pytest.raises(StarshiftError, match="no case to measure fits"):
        bench_cases(["shift2d"], ["nothing*"])
    for arguments, message in (
        (["operators", "--dtypes=fp8"], "dtype is one of"),
        (["training", "starnet_s1", "--amp=fp16"], "amp is one of"),
        (["training", "starnet_s1", "--modes=tim"], "Did you mean 'timm'"),
        (["training", "starnet_s9"], "starnet_s9"),
        (["training", "starnet_s1", "--inference", "--amp=bf16"], "leave out --amp"),
        (["training", "starnet_s1", "--inference", "--device=cuda"], "leave out --amp"),
        (["training", "starnet_s1", "--device=mps"], "device is one of cpu, cuda"),
        (["operators", "--device=mps"], "device is one of cpu, cuda"),
    ):
        result = CliRunner().invoke(app, ["bench", *arguments])
        assert result.exit_code == 2 and message in result.output, result.output


def test_a_gpu_that_is_not_there_or_has_no_kernel_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for suite in ("operators", "training"):
        result = CliRunner().invoke(app, ["bench", suite, "--device=cuda"])
        assert result.exit_code == 2 and "no CUDA device here: use --device cpu" in result.output, result.output
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    result = CliRunner().invoke(app, ["bench", "operators", "--device=cuda", "--operators=pointwise_norm_act"])
    assert result.exit_code == 2 and "no kernel for cuda among: pointwise_norm_act" in result.output, result.output


def test_peers_of_inference_are_what_they_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ran.append(forced_kernel())
            return x

    ran: list[str | None] = []
    for mode in ("starshift", REFERENCE_SHIFTS):
        with monkeypatch.context() as patch:
            patch.setattr("starshift.bench.sides._builder", lambda spec: Network)
            _inference(Spec("shiftresnet20", mode, 1, 32, 1, inference=True), tmp_path)[0]()
    assert set(ran[: len(ran) // 2]) == {None} and set(ran[len(ran) // 2 :]) == {"reference"}
    _inference(Spec("shiftresnet20", RUNTIME, 1, 32, 1, inference=True), tmp_path)[0]()
    file = load_exported(tmp_path / "model.onnx")
    assert isinstance(file, FilePredictor) and len(file.classes) == 10 and file.metadata.model_args["expansion"] == 6


class Timed(Side):
    """A side whose steps take what they are told, without a process."""

    def __init__(self, mode: str, seconds: float) -> None:
        super().__init__(Spec("a", mode, 1, 8, 1))
        self.seconds = seconds

    running = property(lambda self: not self.note)

    def start(self) -> None: ...

    def step(self) -> float:
        self.times.append(self.seconds)
        return self.seconds

    def end(self) -> None:
        self.memory_mb = 1.0


def test_a_peer_far_behind_the_best_takes_one_step() -> None:
    sides = [Timed("starshift", 1.0), Timed("timm", 2.0), Timed("timm compile", 7.0), Timed("other", 5.0)]
    _take_turns(sides, 4, lambda text: None)
    assert [len(side.times) for side in sides] == [4, 4, 1, 4]
    assert [bool(side.note) for side in sides] == [False, False, True, False]
    failed = Timed("starshift", math.inf)
    failed.note = "failed: no memory"
    with pytest.raises(StarshiftError, match="no memory"):
        _take_turns([failed], 2, lambda text: None)


def test_a_side_that_cannot_be_built_says_why() -> None:
    side = Side(Spec("starnet_s9", "starshift", 1, 32, 1))
    side.start()
    assert not side.running and side.note.startswith("failed: ") and "starnet_s9" in side.note
    side.end()
    assert side.memory_mb is None and side.times == []


def test_shifts_become_depthwise_convolutions_of_the_same_shapes() -> None:
    model = create_model("shiftresnet20", expansion=2, num_classes=10)
    images = torch.randn(2, 3, 32, 32)
    expected = model(images).shape
    changed = shifts_to_depthwise(model)
    kinds = [type(module) for module in changed.modules()]
    assert Shift2d not in kinds and ShiftConv2d not in kinds
    assert sum(getattr(m, "groups", 1) > 1 for m in changed.modules()) == 9
    assert changed(images).shape == expected


@pytest.mark.parametrize("options", [[], ["--inference"]], ids=["training", "inference"])
def test_bench_training_from_the_command_line(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "speed.csv"
    peer = "timm channels last"
    few = ["--batch=2", "--size=32", "--threads=1", "--rounds=2", f"--modes={peer}", "--json", "--out", str(out)]
    result = CliRunner().invoke(app, ["bench", "training", "starnet_s050", *few, *options])
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    assert [r["mode"] for r in rows] == ["starshift", peer]
    assert rows[0]["ratio"] == 1 and rows[1]["ratio"] > 0 and all(r["rounds"] == 2 and not r["note"] for r in rows)
    if options:
        assert all(r["latency_ms"] > 0 for r in rows)
    else:
        assert all(r["images_per_s"] > 0 and r["memory_mb"] > 0 and r["model_gflops"] > 0 for r in rows)
    assert len(read_rows(out)[1]) == 2
