# SPDX-License-Identifier: Apache-2.0
"""``report.html``: one file, readable by anybody, that tells how a run went. It loads nothing and runs no script."""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from starshift.data import ImageSet
from starshift.training.folder import write_bytes
from starshift.training.report import sections
from starshift.training.report.files import RunFiles, read_run

TEMPLATE = Path(__file__).parent / "template.html"


def write_report(run: Path, images: ImageSet | None) -> Path:
    """Write ``report.html`` into a run folder, from the files in it, and return its path.

    Args:
        run: the folder; its summary.json has to be there, and what else is absent leaves its section out.
        images: the validation images that validation.csv is about (its ``index`` counts in them); None: no pictures.

    Raises:
        StarshiftError: no summary.json, or a file of the run cannot be parsed.
    """
    files = read_run(Path(run))
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(_fields(files, images))
    report = files.path / "report.html"
    write_bytes(report, page.encode(errors="replace"))
    return report


def _fields(files: RunFiles, images: ImageSet | None) -> dict[str, str]:
    summary, config = files.summary, files.config
    model = str(config.get("model") or summary.get("model") or "model")
    data = str(summary.get("data") or config.get("data") or "data")
    parts = (
        ("Curves", sections.curves(files)),
        ("Confusion matrix", sections.confusion(files)),
        ("Classes", sections.classes(files)),
        ("Worst-classified validation images", sections.worst(files, images)),
        ("Skipped images", sections.skipped(files)),
        ("Go on", f"<pre>{_commands(files.path)}</pre>"),
        ("Settings and machine", sections.settings(files)),
    )
    return {
        "title": escape(f"{model} on {data}"),
        "heading": escape(f"{model} on {data}"),
        "sub": escape(_sub(files)),
        "tiles": _tiles(summary),
        "sections": "\n".join(f"<section><h2>{title}</h2>{body}</section>" for title, body in parts if body),
        "footer": escape(f"Written by starshift {summary.get('versions', {}).get('starshift', '')}".rstrip()),
    }


def _sub(files: RunFiles) -> str:
    n = len(files.classes)
    facts = [f"{n} classes" if n else "", f"{len(files.outcomes)} validation images" if files.outcomes else ""]
    status = str(files.summary.get("status") or "")
    facts += [f"recipe {files.config['recipe']}" if files.config.get("recipe") else "", status, str(files.path)]
    return " · ".join(f for f in facts if f)


def _tiles(summary: dict[str, Any]) -> str:
    tiles = (
        ("main", _percent(summary.get("best_top1")), "top-1 on validation"),
        ("", _text(summary.get("best_epoch")), f"best epoch, of {_text(summary.get('epochs'))}"),
        ("", duration(summary.get("seconds")), "training time"),
        ("", _text(summary.get("images_per_s"), ".0f"), "images/s"),
        ("", count(summary.get("params")), "parameters"),
        ("", count(summary.get("macs")), "MACs an image"),
    )
    return "".join(
        f'<div class="tile {kind}"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for kind, value, label in tiles
    )


def _commands(run: Path) -> str:
    folder = shlex.quote(str(run))
    lines = (
        f"starshift eval {folder} DATA              # accuracy on other labelled images",
        f"starshift predict {folder} PHOTO.jpg      # or folders, patterns, - for names on stdin",
        f"starshift export {folder} --format onnx   # one checked file for another runtime",
    )
    return escape("\n".join(lines))


def _text(value: Any, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _percent(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}%"


def count(value: Any) -> str:
    """1234567 as 1.23M; a dash for None."""
    if value is None:
        return "-"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return str(value)


def duration(seconds: Any) -> str:
    """Seconds as 42s, 3m 05s or 2h 10m; a dash for None."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
