# SPDX-License-Identifier: Apache-2.0
"""Renders the tables of README and docs from results/*.csv and the models themselves: ``make docs``.

A page marks a table's place by ``<!-- table: NAME -->`` and ``<!-- /table -->``; NAME is a function of this file
or of ``_deploy.py``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # the files beside, and experiments/

import _targets  # noqa: E402
from _deploy import accelerated, deploy, int8, lowerings, own_onnx, predict  # noqa: E402
from _rows import NOT_MEASURED, ROOT, Row, latest, machine, rates, read, spread, table  # noqa: E402

from starshift.bench.sides import GRAPH, OURS  # noqa: E402

# Then the backward of this peer ran our kernel.
FAULTY = {("plain PyTorch, autograd", commit) for commit in ("4db9a608a1f4", "ccabd0dbdbea")}
LEAST_ROUNDS = 3  # fewer are not shown
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.S)
README_MODELS = (
    *(f"starnet_{size}" for size in ("s050", "s100", "s150", "s1", "s2", "s3", "s4")),
    *("shiftnet_a", "shiftnet_b", "shiftnet_c"),
    *("shiftresnet20", "shiftresnet56", "shiftresnet110"),
    *("demonet_d12_w192", "starnet_s050_32px"),
)


def models() -> str:
    """The models of the README: our counts beside the published accuracy."""
    from starshift.models import model_info

    rows = []
    for name in README_MODELS:
        info = model_info(name)
        top1 = published(info.published_top1)
        macs = f"{info.macs_folded / 1e6:,.0f}M"
        rows.append((f"`{name}`", f"{info.params / 1e6:.2f}M", macs, f"{info.size[0]}", top1 or "-"))
    return table(("model", "parameters", "multiply-adds", "pixels", "published top-1 %"), rows)


def published(top1: dict[str, float]) -> str:
    """Accuracy by data set, of the options that are counted: they are named first."""
    by_data: dict[str, float] = {}
    for key, value in top1.items():
        by_data.setdefault(key.split()[0], value)
    return ", ".join(f"{value} ({data})" for data, value in by_data.items())


def counts() -> str:
    """Parameters and MACs of every model, counted now: what ``starshift models`` shows without building them."""
    from starshift.models import list_models
    from starshift.models._counting import measure

    lines = ["name,params,macs,macs_folded"]
    for name in list_models():
        info = measure(name)
        lines.append(f"{name},{info.params},{info.macs},{info.macs_folded}")
    return "\n".join(lines) + "\n"


def cifar10() -> str:
    """Networks trained by ``starshift train`` on CIFAR-10 on two CPU cores."""
    rows = [
        (
            f"`{r['model']}`",
            r["evaluated"],
            f"{float(r['top1']):.2f}",
            f"{float(r['top5']):.2f}",
            r["n"],
            json.loads(r["settings"])["opt"],
            r["epochs"],
            f"{float(r['train_seconds']) / 60:.0f}",
            r["cpu"] + f", {r['cores']} cores",
            r["commit"],
        )
        for r in read("cifar10.csv")
    ]
    header = ("model", "evaluated", "top-1 %", "top-5 %", "test images", "optimiser", "epochs", "training, min")
    return table((*header, "machine", "commit"), rows)


def loader() -> str:
    """Our loaders beside torchvision's, both on one core in the same run."""
    rows = [(r["images"], r["path"], *rates(r), r["cpu"], r["commit"]) for r in read("loader.csv")]
    header = ("images", "path", "peer, images/s", "ours, images/s", "ratio", "lowest to highest", "machine", "commit")
    return table(header, rows)


def operators() -> str:
    """How many times faster each operator is than each peer, over its cases."""
    together: dict[tuple[str, ...], list[float]] = {}
    for r in operator_rows():
        kind = (f"`{r['operator']}`", r["peer"], r["dtype"], r["kernel"], machine(r))
        together.setdefault(kind, []).append(float(r["ratio"]))
    rows = [
        (operator, peer, dtype, str(len(ratios)), f"{median(ratios):.2f}", spread(ratios), kernel, where)
        for (operator, peer, dtype, kernel, where), ratios in together.items()
    ]
    header = ("operator", "peer", "dtype", "cases", "ratio, median of cases", "lowest to highest", "kernel", "machine")
    return table(header, rows) if rows else NOT_MEASURED


def operator_cases() -> str:
    """The kernels of each operator beside their peers, case by case."""
    rows = [
        (
            f"`{r['operator']}`",
            r["case"],
            r["dtype"],
            r["threads"],
            r["kernel"],
            r["ours_ms"],
            r["peer"],
            r["peer_ms"],
            f"{float(r['ratio']):.2f}",
            share(r["gflops"], r["peak_gflops"]),
            share(r["gbs"], r["peak_gbs"]),
            machine(r),
            r["commit"],
        )
        for r in operator_rows()
    ]
    header = ("operator", "case", "dtype", "threads", "kernel", "ours, ms", "peer", "peer, ms", "ratio")
    return table((*header, "GFLOP/s, of", "GB/s, of", "machine", "commit"), rows) if rows else NOT_MEASURED


def operator_rows() -> list[Row]:
    """The last time that each was measured beside a peer of today, where the peer was what it says."""
    from starshift.bench.operators import CUDA_NAMES, PEERS, PLAIN

    of_today = {
        name: {CUDA_NAMES.get(p.name, p.name) for p in peers} | {p.name for p in peers} for name, peers in PEERS.items()
    }
    rows = [
        r
        for r in read("operators.csv")
        if r["peer"] in of_today.get(r["operator"], {PLAIN.name}) and (r["peer"], r["commit"]) not in FAULTY
    ]
    return latest(rows, "operator", "case", "dtype", "threads", "peer", "cpu", "gpu")


def gpu_kernels() -> str:
    """The fastest configuration of each Triton kernel, of those that were tried."""
    rows = [
        (
            r["kernel"],
            f"{r['batch']} x {r['channels']} x {r['size']}²",
            r["dtype"],
            r["tile"],
            r["us"],
            f"{r['peer']} {r['peer_us']}".strip() or "-",
            machine(r),
            r["commit"],
        )
        for r in latest(read("gpu_kernels.csv"), "kernel", "channels", "size", "batch", "dtype")
    ]
    return table(("kernel", "tensor", "dtype", "fastest tile", "µs", "peer, µs", "machine", "commit"), rows)


def training_speed() -> str:
    """Training steps beside the best of timm's modes, and beside each other form of a ShiftNet."""
    rows = []
    for ours, peers in runs("training_speed.csv", "amp"):
        timms = [peer for peer in peers if peer["mode"].startswith("timm")]
        eager = next((peer for peer in timms if peer["mode"] == "timm channels last"), None)
        alone = {r["mode"]: r for r in (ours, *peers)}  # a graph's memory is unknown: it is that of the step alone
        ours["memory_mb"] = alone[OURS]["memory_mb"] if OURS in alone else ""
        for peer in [min(timms, key=lambda p: float(p["ratio"]))] if timms else peers:
            beside = eager or alone.get(peer["mode"].removesuffix(GRAPH), peer)
            memory = (
                f"{ours['memory_mb']} / {beside['memory_mb']}" if ours["memory_mb"] and beside["memory_mb"] else "-"
            )
            rows.append(
                (
                    f"`{ours['model']}` {ours['arguments']}".rstrip(),
                    f"{ours['batch']} of {ours['size']} px",
                    "bf16 autocast" if ours["amp"] == "bf16" else "fp32",
                    ours["threads"],
                    ours["images_per_s"],
                    peer["mode"],
                    peer["images_per_s"],
                    f"{float(peer['ratio']):.2f}",
                    range_of(peer),
                    f"{len(timms or peers)}, {peer['rounds']}",
                    memory,
                    share(ours["model_gflops"], ours["peak_gflops"]),
                    machine(ours),
                    ours["commit"],
                )
            )
    if not any("cuda" in row[-2] for row in rows):
        rows.append(
            ("`starnet_s1`, `starnet_s4`", "256 of 224 px", "bf16 autocast", *"-" * 9, "GPU: not measured", "-")
        )
    header = ("model", "step", "precision", "threads", "ours, images/s", "best peer", "peer, images/s", "ratio")
    header += ("lowest to highest", "peers, rounds", "memory, ours / timm's or peer's, MB", "GFLOP/s, of")
    return table((*header, "machine", "commit"), rows)


def targets() -> str:
    """What the kernels were to reach, and what they did."""
    return _targets.targets(runs, operator_rows())


def tries() -> str:
    """What was tried on the way, in pairs on one machine."""
    rows = [
        (
            *(r["target"], r["tried"], r["measure"], f"{r['before']} {r['unit']}", f"{r['after']} {r['unit']}"),
            *(r["kept"], machine(r), r["commit"]),
        )
        for r in read("kernel_tries.csv")
    ]
    return table(("for", "tried", "measured", "without", "with", "kept", "machine", "commit before"), rows)


def inference_speed() -> str:
    """One image's answer, in turns with each peer."""
    rows = [
        (
            f"`{r['model']}`",
            f"{r['size']}",
            r["threads"],
            r["mode"],
            r["latency_ms"],
            f"{float(r['ratio']):.2f}",
            range_of(r),
            machine(r),
            r["commit"],
        )
        for ours, peers in runs("inference_speed.csv")
        for r in (ours, *peers)
    ]
    header = ("model", "pixels", "threads", "run by", "ms", "its time / ours", "lowest to highest", "machine", "commit")
    return table(header, rows) if rows else NOT_MEASURED


def claims() -> str:
    """Which of the papers' claims held here."""
    from experiments._book import claims_table

    return claims_table()


def own_claims() -> str:
    """What came of the questions that the papers leave open, and of our own."""
    from experiments._book import claims_table

    return claims_table(own=True)


def experiments() -> str:
    """A section for every experiment."""
    from experiments._book import sections

    return sections()


def range_of(row: Row) -> str:
    """The ratio from the lowest round to the highest."""
    return f"{float(row['ratio_low']):.2f} to {float(row['ratio_high']):.2f}" if row["ratio_low"] else "-"


def runs(name: str, *also: str) -> Iterator[tuple[Row, list[Row]]]:
    """Of each kind of measurement the last run: our row, and those of the peers that were timed."""
    columns = ("model", "arguments", "batch", "size", "threads", "device", "cpu", *also)
    rows = [row for row in read(name) if row["ratio"] and int(row["rounds"]) >= LEAST_ROUNDS]
    for row in rows:
        if row["device"] == "cuda":
            row["cpu"] = ""  # on a GPU the last run counts, whatever held it
    first = [row for row in rows if row["mode"] in (OURS, OURS + GRAPH) and float(row["ratio"]) == 1]
    for ours in latest(first, *columns):
        same = ("run", *columns)
        yield ours, [row for row in rows if row is not ours and all(row[c] == ours[c] for c in same)]


def share(value: str, of: str) -> str:
    return f"{float(value):.0f} of {float(of):.0f}" if value and of else "-"


TABLES: dict[str, Callable[[], str]] = {
    made.__name__: made
    for made in (
        models,
        cifar10,
        loader,
        operators,
        operator_cases,
        gpu_kernels,
        training_speed,
        inference_speed,
        targets,
        tries,
        deploy,
        accelerated,
        claims,
        own_claims,
        experiments,
        int8,
        lowerings,
        own_onnx,
        predict,
    )
}


def rendered() -> dict[Path, str]:
    """Every page that has a table, with its tables made anew; and the models' counts."""
    pages = {ROOT / "src" / "starshift" / "models" / "counts.csv": counts()}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if MARKED.search(text):
            pages[path] = MARKED.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)
    return pages


if __name__ == "__main__":
    for page, content in rendered().items():
        changed = not page.exists() or page.read_text(encoding="utf-8") != content
        page.write_text(content, encoding="utf-8")
        print(f"{'rendered' if changed else 'fresh   '} {page.relative_to(ROOT)}")
