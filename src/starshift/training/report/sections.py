# SPDX-License-Identifier: Apache-2.0
"""The sections of the report. Each returns HTML, or an empty string where the run has nothing for it.

Class and file names come from strangers: every string goes through :func:`html.escape` on its way in.
"""

from __future__ import annotations

import base64
import io
import math
from html import escape
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from starshift.data import BadImageError, ImageSet
from starshift.training.report.charts import Line, line_chart
from starshift.training.report.confusion import confusion_matrix, png, render
from starshift.training.report.files import Outcome, RunFiles

SHOWN_IMAGES = 24
THUMBNAIL = 160  # pixels on the longer side
SHOWN_SKIPPED = 200


def curves(files: RunFiles) -> str:
    """Loss, accuracy and learning rate over the epochs."""
    rows = files.metrics
    best = files.summary.get("best_epoch")

    def line(column: str, name: str) -> Line:
        return Line(name, [(row.get("epoch", math.nan), row.get(column, math.nan)) for row in rows])

    charts = (
        line_chart("Loss", [line("train_loss", "training"), line("val_loss", "validation")], mark=best),
        line_chart("Accuracy, %", [line("val_top1", "top-1"), line("val_top5", "top-5")], mark=best),
        line_chart("Learning rate", [line("lr", "learning rate")]),
    )
    if not any(charts):
        return ""
    note = (
        '<p class="note">The dashed line marks the best epoch, whose weights were kept.</p>' if best is not None else ""
    )
    return f'<div class="charts">{"".join(charts)}</div>{note}'


def confusion(files: RunFiles) -> str:
    """The matrix of targets and predictions on the validation images."""
    if not files.outcomes or not files.classes:
        return ""
    matrix = confusion_matrix(
        [o.target for o in files.outcomes], [o.predicted for o in files.outcomes], len(files.classes)
    )
    return render(matrix, files.classes)


def classes(files: RunFiles) -> str:
    """Accuracy of every class, the weakest first."""
    if not files.outcomes or not files.classes:
        return ""
    n = np.bincount([o.target for o in files.outcomes], minlength=len(files.classes))
    right = np.bincount([o.target for o in files.outcomes if o.target == o.predicted], minlength=len(files.classes))
    # Classes without a validation image come last: nothing is known of them.
    order = sorted(range(len(n)), key=lambda i: (n[i] == 0, right[i] / n[i] if n[i] else 0.0, i))
    rows = "".join(_class_row(files.classes[i], int(n[i]), int(right[i])) for i in order)
    return (
        '<div class="scroll long"><table class="plain"><thead><tr><th>class</th><th class="n">images</th>'
        f'<th class="n">right</th><th class="n">top-1</th><th></th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _class_row(name: str, n: int, right: int) -> str:
    percent = f"{100 * right / n:.1f}%" if n else "-"
    bar = f'<i style="--v:{100 * right / n:.1f}"></i>' if n else ""
    return (
        f'<tr><td>{escape(name)}</td><td class="n">{n}</td><td class="n">{right}</td>'
        f'<td class="n">{percent}</td><td class="bar">{bar}</td></tr>'
    )


def worst(files: RunFiles, images: ImageSet | None) -> str:
    """The wrongly classified images of highest loss."""
    if not files.outcomes:
        return ""
    wrong = [o for o in files.outcomes if o.target != o.predicted]
    if not wrong:
        return '<p class="note">Every validation image was classified rightly.</p>'
    wrong.sort(key=lambda o: -o.loss if math.isfinite(o.loss) else -math.inf)
    shown = wrong[:SHOWN_IMAGES]
    figures = "".join(_worst_figure(o, files.classes, images) for o in shown)
    note = f"{len(wrong)} of {len(files.outcomes)} are wrong; shown by falling loss, with the network's certainty."
    return f'<div class="worst">{figures}</div><p class="note">{note}</p>'


def _worst_figure(outcome: Outcome, names: list[str], images: ImageSet | None) -> str:
    target, predicted = names[outcome.target], names[outcome.predicted]
    certainty = "" if math.isnan(outcome.probability) else f" {outcome.probability:.0%}"
    return (
        f"<figure>{_thumbnail(outcome, images)}<figcaption><b>{escape(target)}</b> taken for"
        f" <em>{escape(predicted)}</em>{certainty}"
        f'<small title="{escape(outcome.name)}">{escape(PurePath(outcome.name).name)}</small></figcaption></figure>'
    )


def _thumbnail(outcome: Outcome, images: ImageSet | None) -> str:
    if images is None or not 0 <= outcome.index < len(images):
        return '<div class="gone">no picture</div>'
    try:
        pixels = images.read(outcome.index).permute(1, 2, 0).numpy()
    except BadImageError as error:
        return f'<div class="gone" title="{escape(str(error))}">cannot be read</div>'
    if max(pixels.shape[:2]) <= THUMBNAIL // 2:  # small images (digits, CIFAR) keep their pixels
        return f'<img class="small" alt="" src="{png(np.ascontiguousarray(pixels.squeeze()))}">'
    picture = Image.fromarray(pixels.squeeze())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{encoded}">'


def skipped(files: RunFiles) -> str:
    """Images that could not be read, with the reason."""
    if not files.skipped:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(reason)}</td></tr>" for name, reason in files.skipped[:SHOWN_SKIPPED]
    )
    more = len(files.skipped) - SHOWN_SKIPPED
    note = f'<p class="note">... and {more} more in skipped.csv</p>' if more > 0 else ""
    return (
        f"<p>{len(files.skipped)} image(s) could not be read and were left out.</p>"
        '<div class="scroll long"><table class="plain"><thead><tr><th>file</th><th>reason</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def settings(files: RunFiles) -> str:
    """The run's config (what is set in it), the machine, and the versions."""
    given = {k: v for k, v in files.config.items() if v is not None and v != {} and v != ""}
    parts = [_facts("Settings", given), _facts("Machine", files.summary.get("machine"))]
    parts.append(_facts("Versions", files.summary.get("versions")))
    return f'<div class="columns">{"".join(parts)}</div>' if any(parts) else ""


def _facts(title: str, facts: Any) -> str:
    if not facts:
        return ""
    table = facts if isinstance(facts, dict) else {title.lower(): facts}
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(_value(v))}</td></tr>" for k, v in table.items())
    return (
        f'<div><h3>{title}</h3><div class="scroll long"><table class="plain"><tbody>{rows}</tbody></table></div></div>'
    )


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_value(v)}" for k, v in value.items())
    return str(value)
