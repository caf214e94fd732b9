# SPDX-License-Identifier: Apache-2.0
"""What the kernels were to reach, and what the last rows of results/*.csv say of it, machine by machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from statistics import geometric_mean

from _rows import Row, machine, read, spread, table

from starshift.bench.sides import OURS

Found = Iterator[tuple[Row, list[float], list[float]]]
"""A row of the machine; what was reached there, one number or one a case; and what each would be if our side ran at the
machine's ceiling, of operations or bytes: as far as anybody could come there (none: not a question of speed)."""
FOLDED = "starshift, norms folded"
COMPILED = "timm compile channels last"
Runs = Callable[..., Iterator[tuple[Row, list[Row]]]]


@dataclass(frozen=True)
class Target:
    """What is measured, beside what, the bound, whether it is one from above, and where the numbers are."""

    what: str
    peer: str
    bound: float
    found: Found
    at_most: bool = False
    unit: str = "×"

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The lines of the table, one a machine; where the target is met, the number stands in bold."""
        bound = f"{'≤' if self.at_most else '≥'} {self.bound:g}{self.unit}"
        found = list(self.found)
        for row, values, most in found:
            met = max(values) <= self.bound if self.at_most else min(values) >= self.bound
            reached = f"**{spread(values)}**" if met else spread(values)
            yield self.what, self.peer, bound, reached, spread(most) if most else "-", machine(row), row["commit"]
        if not found:
            yield self.what, self.peer, bound, "not measured", "-", "-", "-"


def _room(row: Row, flops: str) -> float | None:
    """How many times faster ours would be at the ceiling that it is nearest to; None: neither was measured."""
    pairs = [(row.get(f"peak_{name}"), row.get(of)) for name, of in (("gflops", flops), ("gbs", "gbs"))]
    return min((float(peak) / float(reached) for peak, reached in pairs if peak and reached), default=None)


def targets(runs: Runs, operator_rows: list[Row]) -> str:
    """The table; ``runs`` and ``operator_rows`` are those of render.py."""
    steps = list(runs("training_speed.csv", "amp"))
    answers = list(runs("inference_speed.csv"))

    def step(model: str, amp: str, peer: str, gpu: bool = False) -> Found:
        """The peer's time over ours; of several peers of one kind, the fastest's."""
        for ours, peers in _of(steps, model, amp, gpu):
            ratios = [float(p["ratio"]) for p in peers if p["mode"].startswith(peer)]
            if ratios:
                room = _room(ours, "model_gflops")
                yield ours, [min(ratios)], [min(ratios) * room] if room else []

    def memory(model: str, amp: str, peer: str = "timm channels last", gpu: bool = False) -> Found:
        for ours, peers in _of(steps, model, amp, gpu):
            alone = {r["mode"]: r["memory_mb"] for r in (ours, *peers)}  # a graph's is unknown
            mine, timms = alone.get(OURS), alone.get(peer)
            if mine and timms:
                yield ours, [float(mine) / float(timms)], []

    def operator(name: str, dtype: str, peer: str, *ends: str, mean: bool = False, time: bool = False) -> Found:
        """Ratios over cases whose names have one of the ends; ``time``: ours over the peer's."""
        cases: dict[str, list[Row]] = {}
        for row in operator_rows:
            same = (row["operator"], row["dtype"], row["peer"]) == (name, dtype, peer)
            if same and any(end in row["case"] for end in ends):
                cases.setdefault(machine(row), []).append(row)
        for rows in cases.values():
            ratios = [float(r["ratio"]) for r in rows]
            rooms = [_room(r, "gflops") for r in rows]
            most = [ratio * room for ratio, room in zip(ratios, rooms, strict=True) if room]
            if time:
                ratios, most = [1 / ratio for ratio in ratios], []
            yield rows[-1], *([geometric_mean(x)] if mean and x else x for x in (ratios, most))

    def answer(model: str, peer: str) -> Found:
        """The peer's latency over that of the folded network."""
        for ours, peers in answers:
            if ours["model"] == model:
                ms = {r["mode"]: float(r["latency_ms"]) for r in (ours, *peers)}
                if peer in ms and FOLDED in ms:
                    yield ours, [ms[peer] / ms[FOLDED]], []

    def accuracy(minutes: float) -> Found:
        """The best of each machine that took no longer, in per cent."""
        best: dict[str, Row] = {}
        for row in read("cifar10.csv"):
            settings = json.loads(row["settings"])
            kind = row["model"], row["evaluated"], settings["model_args"].get("expansion")
            inside = kind == ("shiftresnet20", "PyTorch", 6) and float(row["train_seconds"]) <= 60 * minutes
            if inside and float(row["top1"]) > float(best.get(machine(row), {"top1": "0"})["top1"]):
                best[machine(row)] = row
        for row in best.values():
            yield row, [float(row["top1"])], []

    oneDNN = "F.conv2d (oneDNN)"
    names, dtypes = {"none": "float32", "bf16": "bfloat16"}, {"fp32": "float32", "bf16": "bfloat16"}
    lines = [
        *(
            Target(f"training step, {model}, {names[amp]}", "timm's best mode", 2.5, step(model, amp, "timm"))
            for amp in names
            for model in ("starnet_s1", "starnet_s4")
        ),
        *(
            Target(
                f"its peak memory, {model}, {names[amp]}", "timm channels last", 0.6, memory(model, amp), at_most=True
            )
            for amp in names
            for model in ("starnet_s1", "starnet_s4")
        ),
        *(
            Target(
                f"depthwise {sizes}, {dtype}, geometric mean",
                oneDNN,
                bound,
                operator("depthwise_conv2d", d, oneDNN, *k, mean=True),
            )
            for sizes, bound, k in (("7×7", 4, ("-k7",)), ("3×3 and 5×5", 3, ("-k3", "-k5")))
            for d, dtype in dtypes.items()
        ),
        *(
            Target(
                f"`accelerate`, training step, {model}, {names[amp]}",
                "the same in channels last",
                1.5,
                step(model, amp, "timm"),
            )
            for model in ("convnext_atto", "mobilenetv3_large_100", "efficientnet_lite0")
            for amp in names
        ),
        *(
            Target(f"`shift2d`, bytes a second, {dtype}", "copies", 0.9, operator("shift2d", d, "copy", ""))
            for d, dtype in dtypes.items()
        ),
        *(
            Target(
                f"`shift_conv2d`, time, {dtype}",
                "1x1 convolution alone",
                1.15,
                operator("shift_conv2d", d, "1x1 conv alone", "", time=True),
                at_most=True,
            )
            for d, dtype in dtypes.items()
        ),
        *(
            Target(f"training step, shiftresnet20, {names[amp]}", peer, bound, step("shiftresnet20", amp, peer))
            for peer, bound in (("pad + slices + concat", 4), ("3x3 depthwise convs", 3))
            for amp in names
        ),
        Target("CIFAR-10 (JPEG), shiftresnet20, 45 minutes on two cores, top-1", "–", 88, accuracy(45), unit="%"),
        Target(
            "one image, starnet_s1 folded", "timm eager channels last", 2.5, answer("starnet_s1", "timm channels last")
        ),
        *(
            Target(
                f"training step on a GPU, 256 images, {model}, bfloat16",
                "timm's best mode",
                2,
                step(model, "bf16", "timm", gpu=True),
            )
            for model in ("starnet_s1", "starnet_s4")
        ),
        *(
            Target(f"its peak memory, {model}", COMPILED, 0.5, memory(model, "bf16", COMPILED, gpu=True), at_most=True)
            for model in ("starnet_s1", "starnet_s4")
        ),
    ]
    header = ("what", "beside", "to reach", "reached", "at the ceiling", "machine", "commit")
    return table(header, chain.from_iterable(line.rows() for line in lines))


def _of(steps: list[tuple[Row, list[Row]]], model: str, amp: str, gpu: bool) -> Iterator[tuple[Row, list[Row]]]:
    """Our row and the peers' of the steps of one model and precision, on CPUs or on GPUs."""
    for ours, peers in steps:
        if (ours["model"], ours["amp"], ours["device"]) == (model, amp, "cuda" if gpu else "cpu"):
            yield ours, peers
