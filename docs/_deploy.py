# SPDX-License-Identifier: Apache-2.0
"""Tables of exported files: what they cost and how fast they are."""

from __future__ import annotations

import json

from _rows import NOT_MEASURED, Row, latest, machine, rates, read, spread, table

DEVICES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Server or PC, any processor", "onnx", ("onnx",)),
    ("the same, smallest file", "onnx --quantize int8", ("onnx-int8",)),
    ("Intel or AMD processor, fastest", "openvino --quantize int8", ("openvino-int8",)),
    ("Processor with bfloat16 instructions, without int8", "openvino --precision bf16", ("openvino-bf16",)),
    ("A program that has OpenVINO", "openvino", ("openvino",)),
    ("Python with PyTorch", "no export: `starshift predict RUN`", ("kernels",)),
    ("C++ with PyTorch, no Python", "aotinductor", ("aotinductor",)),
    ("Android, embedded Linux (PyTorch's way)", "executorch", ("executorch",)),
    ("Android, embedded Linux (TensorFlow's way)", "litert", ("litert",)),
    ("A browser", "onnx", ("onnx-web-wasm", "onnx-web-webgpu")),
    ("iPhone, iPad, Mac", "coreml", ("coreml",)),
)
"""What a reader has; the format to ask for; the forms of ``starshift bench`` that measure it."""


def deploy() -> str:
    """Device, format, command, and how much faster it was measured to be: a row for each machine."""
    rows = []
    for device, form, measured in DEVICES:
        spoken = form.startswith("no export")
        command = form.partition(": ")[2] if spoken else f"`starshift export RUN --format {form}`"
        by_machine: dict[str, list[Row]] = {}
        for row in (row for name in measured for row in measured_as(name)):
            by_machine.setdefault(row.get("user_agent") or machine(row), []).append(row)
        found = [measured_on(where, own) for where, own in by_machine.items()]
        if not found:
            never = "not measurable here: it runs on Apple hardware alone" if form == "coreml" else "not measured"
            found = [(never, "-", "-", "-")]
        rows += [(device, "-" if spoken else f"`{form.split()[0]}`", command, *cells) for cells in found]
    header = (
        "your device",
        "format",
        "command",
        "times as fast as eager",
        "times as fast as float32 ONNX",
        "top-1 lost, points",
    )
    return table((*header, "measured on"), rows)


def accelerated() -> str:
    """Networks of timm's through ``accelerate`` beside eager and float32 ONNX: one image, the same turns."""
    rows = [r for r in timed() if r["batch"] == "1" and r["target"] == "kernels"]
    of_timm = [row for row in rows if row["model"].startswith("timm:") and not row["model"].startswith("timm:starnet")]
    found = []
    for row in latest(of_timm, "model", "threads", "size", "cpu"):
        same = beside(row)
        ratios = [
            spread([float(r["latency_ms"]) / float(row["latency_ms"]) for r in same if form_of(r) == form])
            for form in ("eager", "onnx")
        ]
        found.append((f"`{row['model'].removeprefix('timm:')}`", row["threads"], *ratios, machine(row), row["commit"]))
    header = ("network", "threads", "accelerated, times as fast as eager", "as float32 ONNX", "machine", "commit")
    return table(header, found) if found else NOT_MEASURED


def timed() -> list[Row]:
    """The rows that were timed, on as many cores as the runtime was told."""
    from starshift.bench.recommend import TOLD

    return [row for row in read("deploy.csv") if row["latency_ms"] and TOLD not in row["note"]]


def beside(row: Row) -> list[Row]:
    """The rows of the same network in the same turns, the row itself too."""
    columns = ("run", "group", "model", "batch", "threads")
    return [r for r in timed() if r.get("run") and all(r[c] == row[c] for c in columns)]


def measured_as(name: str) -> list[Row]:
    """The last rows of a form at batch 1, one of each network of ours, number of threads and machine."""
    rows = [row for row in timed() if row["batch"] == "1" and form_of(row) == name]
    ours = [row for row in rows if not row["model"].startswith("timm:")]
    return latest(ours, "model", "threads", "size", "cpu", "user_agent")


def form_of(row: Row) -> str:
    return row["target"] + ("" if row["precision"] == "fp32" else f"-{row['precision']}")


def measured_on(where: str, rows: list[Row]) -> tuple[str, str, str, str]:
    """From the lowest to the highest ratio to the eager and the ONNX row of the same turns, the accuracy lost, and on
    what: the networks and threads of those ratios. Where there is no such row, as of a browser, the time itself."""
    eager, onnx, lost, compared = [], [], [], []
    for row in rows:
        same = beside(row)
        for name, ratios in (("eager", eager), ("onnx", onnx)):
            ratios += [float(r["latency_ms"]) / float(row["latency_ms"]) for r in same if form_of(r) == name]
        if any(form_of(r) in ("eager", "onnx") and form_of(r) != form_of(row) for r in same):
            compared.append(row)
        known = [float(r["top1"]) for r in same if r["top1"]]
        lost += [max(known) - float(row["top1"])] if row.get("top1") else []
    times = [float(row["latency_ms"]) for row in rows]
    first = spread(eager) if eager else f"{spread(times)} ms"
    networks = ", ".join(f"`{name}`" for name in dict.fromkeys(row["model"] for row in compared or rows))
    threads = "/".join(dict.fromkeys(row["threads"] for row in compared or rows))
    plural = "" if threads == "1" else "s"
    return first, spread(onnx), spread(lost), f"{networks}, {threads} thread{plural}, {where}"


def int8() -> str:
    """int8 files beside the float32 files of the same format, on CIFAR-10's test images."""
    rows = [
        (
            f"`{r['model']}`",
            r["format"],
            f"{float(r['top1_fp32']):.2f}",
            f"{float(r['top1_int8']):.2f}",
            f"{int(r['bytes_fp32']) / 1e3:,.0f}",
            f"{int(r['bytes_int8']) / 1e3:,.0f}",
            f"{float(r['size_ratio']):.2f}",
            ", ".join(f"`{layer}`" for layer in json.loads(r["kept_float"])) or f"none of {r['layers']}",
            machine(r),
            r["commit"],
        )
        for r in latest(read("int8.csv"), "model", "format")
    ]
    header = (
        "model",
        "format",
        "fp32 top-1 %",
        "int8 top-1 %",
        "fp32 kB",
        "int8 kB",
        "ratio",
        "layers in float",
        "machine",
    )
    return table((*header, "commit"), rows) if rows else NOT_MEASURED


def lowerings() -> str:
    """Ways to write a shift and a star's branches, by export format."""
    rows = [
        (r["format"], r["layers"], r["written"], f"{float(r['ms']):.2f}", f"{float(r['ratio']):.2f}", machine(r))
        for r in latest(read("lowerings.csv"), "format", "layers", "written", "threads", "cpu")
    ]
    header = ("format", "layers", "written", "ms", "times as fast as the first way", "machine")
    return table(header, rows) if rows else NOT_MEASURED


def own_onnx() -> str:
    """StarNet through our export beside timm's network through timm's own, both in ONNX Runtime, in turns: of each
    network, batch, number of threads and machine the last pair."""
    columns = ("run", "group", "batch", "threads", "size")
    peers = {(r["model"], *(r[c] for c in columns)): r for r in timed() if r["target"] == "onnx-by-timm"}
    pairs = {}
    for ours in timed():
        peer = peers.get((f"timm:{ours['model']}", *(ours[c] for c in columns)))
        if peer is not None and form_of(ours) == "onnx":
            pairs[ours["model"], ours["batch"], ours["threads"], ours["cpu"]] = ours, peer
    rows = []
    for ours, peer in pairs.values():
        times = [float(row["latency_ms"]) for row in (ours, peer)]
        cells = (ours["threads"], *(f"{time:.2f}" for time in times), f"{times[1] / times[0]:.2f}")
        rows.append((f"`{ours['model']}`", *cells, machine(ours), ours["commit"]))
    header = ("network", "threads", "ours, ms", "timm's, ms", "times as fast", "machine", "commit")
    return table(header, rows) if rows else NOT_MEASURED


def predict() -> str:
    """``starshift predict`` with an exported file beside timm's script, whole processes in turns."""
    rows = [
        (
            f"`{r['model']}`",
            r["format"],
            f"{int(r['count']):,} {r['images']}",
            *rates(r),
            machine(r),
            r["commit"],
        )
        for r in latest(read("predict.csv"), "model", "format", "images", "cpu")
    ]
    header = ("network", "format", "images", "timm's, images/s", "ours, images/s", "ratio", "lowest to highest")
    return table((*header, "machine", "commit"), rows) if rows else NOT_MEASURED
