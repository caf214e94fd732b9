# SPDX-License-Identifier: Apache-2.0
"""Accuracy against latency, drawn from a file of rows: as PNG, and as one HTML page that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starshift.bench.forms import FLOAT32
from starshift.bench.recommend import accuracy_of, form_name, pareto_front
from starshift.bench.rows import read_rows
from starshift.bench.subjects import TIMM, published_top1
from starshift.training.folder import write_bytes

TEMPLATE = Path(__file__).with_name("pareto.html")
PANELS = 4  # of the PNG at most: pairs of batch and threads
SHOWN = (
    *("model", "target", "precision", "batch", "threads", "size", "latency_ms", "p5_ms", "p95_ms", "images_per_s"),
    *("first_ms", "load_ms", "memory_mb", "file_mb", "params", "macs", "top1", "published_top1", "note", "date"),
)
Row = dict[str, str]


def draw(path: Path) -> list[Path]:
    """Draw the rows of a CSV file into PNG and HTML beside it, and return their paths; none where nothing was timed.

    Of rows that measured the same thing the last counts.

    Raises:
        StarshiftError: the file is no table.
    """
    rows = _one_accuracy(latest(read_rows(path)[1]))
    if not rows:
        return []
    picture, page = path.with_suffix(".png"), path.with_suffix(".html")
    write_bytes(picture, _png(rows))
    write_bytes(page, html(rows).encode())
    return [picture, page]


def latest(rows: Sequence[Row]) -> list[Row]:
    """The last timed row of each network, form, batch, threads, size and machine."""
    found = {}
    for row in rows:
        if row.get("latency_ms"):
            key = (
                *(row.get(name) for name in ("model", "target", "precision", "batch", "threads", "size")),
                machine(row),
            )
            found[key] = row
    return list(found.values())


def _one_accuracy(rows: Sequence[Row]) -> list[Row]:
    """Accuracy measured on the user's images and that published for ImageNet belong on no common axis: of the two, only
    the kind of the last row that has one is kept, and networks without it are plotted apart. What was published for an
    architecture says nothing about one that was trained on other images, nor about a file of lower precision."""
    rows = [row if _as_published(row) else {**row, "published_top1": ""} for row in rows]
    with_any = [row for row in rows if accuracy_of(row) is not None]
    if not with_any:
        return rows
    measured = bool(with_any[-1].get("top1"))
    return [row if bool(row.get("top1")) == measured else {**row, "top1": "", "published_top1": ""} for row in rows]


def _as_published(row: Row) -> bool:
    """Whether it is of a network by its bare name, which has no weights of its own, in float32."""
    return row["precision"] == FLOAT32 and row["model"].removeprefix(TIMM) in published_top1()


def machine(row: Row) -> str:
    """What a row was measured on: a browser's own words, or this machine's processor."""
    return row.get("user_agent") or row.get("cpu", "")


def html(rows: Sequence[Row]) -> str:
    """The page: rows as JSON inside it, in which no ``<`` could end the script."""
    points = [
        {
            **{name: row.get(name, "") for name in SHOWN},
            "form": form_name(row),
            "machine": machine(row),
            "accuracy": accuracy_of(row),
            "measured": bool(row.get("top1")),
        }
        for row in rows
    ]
    data = json.dumps(points).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return TEMPLATE.read_text(encoding="utf-8").replace('"ROWS"', data)


def _png(rows: Sequence[Row]) -> bytes:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    here = machine(rows[-1])
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if machine(row) == here:
            cases.setdefault((row["batch"], row["threads"]), []).append(row)
    shown = list(cases.items())[:PANELS]
    across = min(2, len(shown))
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(5.4 * across + 1.6, 4.6 * down), layout="constrained")
    FigureCanvasAgg(figure)
    forms = list(dict.fromkeys(form_name(row) for row in rows))
    panels = figure.subplots(2 * down, across, squeeze=False, height_ratios=(6, 1) * down)
    for number, ((batch, threads), found) in enumerate(shown):
        top, bottom = (panels[2 * (number // across) + part][number % across] for part in (0, 1))
        bottom.sharex(top)
        _panel(top, bottom, found, forms)
        top.set_title(f"batch {batch}, {threads} thread{'s' if threads != '1' else ''}", fontsize=10)
    for spare in range(len(shown), across * down):
        for part in (0, 1):
            panels[2 * (spare // across) + part][spare % across].set_axis_off()
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(here[:90], fontsize=9)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=150)
    return target.getvalue()


def _panel(top: Any, bottom: Any, rows: Sequence[Row], forms: list[str]) -> None:
    """Networks of known accuracy above, with the front that nothing betters; the others on a strip below."""
    from matplotlib import colormaps
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    known = [row for row in rows if accuracy_of(row) is not None]
    for form in dict.fromkeys(form_name(row) for row in rows):
        colour = colormaps["tab20"](forms.index(form) % 20)
        for axes, which in ((top, known), (bottom, [row for row in rows if row not in known])):
            own = [row for row in which if form_name(row) == form]
            if own:
                y = [accuracy_of(row) or 0 for row in own] if axes is top else [0] * len(own)
                axes.scatter([float(row["latency_ms"]) for row in own], y, s=26, color=colour, label=form, zorder=3)
    points = [(float(row["latency_ms"]), accuracy_of(row) or 0) for row in known]
    front = pareto_front(points)
    if front:
        top.step(*zip(*(points[i] for i in front), strict=True), where="post", color="0.6", linewidth=1, zorder=1)
    for i in {known[i]["model"]: i for i in reversed(front)}.values():  # the fastest form of each network
        top.annotate(known[i]["model"], points[i], xytext=(4, 4), textcoords="offset points", fontsize=7)
    top.set_xscale("log")
    top.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    top.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    top.xaxis.set_minor_formatter(NullFormatter())
    top.tick_params(labelbottom=False)
    top.set_ylabel("top-1 accuracy, %")
    top.grid(alpha=0.25)
    bottom.set_yticks([])
    bottom.grid(alpha=0.25, axis="x")
    bottom.set_xlabel("median latency, ms" + ("" if len(known) == len(rows) else "   (strip: accuracy not known)"))
