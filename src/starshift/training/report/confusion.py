# SPDX-License-Identifier: Apache-2.0
"""The confusion matrix as HTML: a table while it can be read, else an image; and the pairs most often mixed up."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

READABLE = 24  # classes up to which a table of numbers is shown
PAIRS = 15
RIGHT, WRONG = (47, 111, 223), (224, 96, 38)  # also in the template


def confusion_matrix(targets: Sequence[int], predicted: Sequence[int], classes: int) -> NDArray[np.int64]:
    """``matrix[target, predicted]``, number of images."""
    cells = np.asarray(targets, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def render(matrix: NDArray[np.int64], names: Sequence[str]) -> str:
    """The matrix and its most frequent mistakes."""
    picture = _table(matrix, names) if len(names) <= READABLE else _image(matrix)
    return f'<div class="confusion">{picture}{_pairs(matrix, names)}</div>'


def _shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row divided by its sum; rows without images stay zero."""
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _table(matrix: NDArray[np.int64], names: Sequence[str]) -> str:
    shares = _shares(matrix)
    heads = "".join(f'<th class="col" title="{escape(n)}"><span>{escape(shorten(n))}</span></th>' for n in names)
    rows = []
    for i, name in enumerate(names):
        cells = "".join(_cell(matrix[i, j], shares[i, j], name, other, i == j) for j, other in enumerate(names))
        rows.append(f'<tr><th title="{escape(name)}">{escape(shorten(name))}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="matrix"><thead><tr><th class="corner">target \\ predicted</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(count: int, share: float, target: str, predicted: str, right: bool) -> str:
    if not count:
        return "<td></td>"
    # The square root keeps rare mistakes visible beside a diagonal near 1.
    strength = float(np.sqrt(share))
    classes = ("right" if right else "wrong") + (" strong" if strength > 0.6 else "")
    title = f"{target} taken for {predicted}: {count} ({share:.1%})"
    return f'<td class="{classes}" style="--v:{strength:.2f}" title="{escape(title)}">{count}</td>'


def _image(matrix: NDArray[np.int64]) -> str:
    """One pixel a cell, coloured by its share of the row; transparent where empty, so that it suits either theme."""
    strength = np.sqrt(_shares(matrix))
    pixels = np.zeros((*matrix.shape, 4), np.uint8)
    pixels[..., :3] = WRONG
    diagonal = np.arange(len(matrix))
    pixels[diagonal, diagonal, :3] = RIGHT
    pixels[..., 3] = np.where(matrix > 0, 40 + 215 * strength, 0).astype(np.uint8)
    encoded = png(pixels)
    return (
        f'<figure class="heat"><img src="{encoded}" alt="confusion matrix of {len(matrix)} classes">'
        f"<figcaption>{len(matrix)} x {len(matrix)} classes in the network's order: rows are targets, columns"
        " predictions; strength is the share of the row.</figcaption></figure>"
    )


def png(pixels: NDArray[np.uint8]) -> str:
    """A data address with (H, W, 3 or 4) uint8 pixels as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pairs(matrix: NDArray[np.int64], names: Sequence[str]) -> str:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    totals = matrix.sum(axis=1)
    rows = []
    for flat in order:
        i, j = divmod(int(flat), len(names))
        if not wrong[i, j]:
            break
        share = wrong[i, j] / totals[i]
        rows.append(
            f"<tr><td>{escape(names[i])}</td><td>{escape(names[j])}</td>"
            f'<td class="n">{wrong[i, j]}</td><td class="n">{share:.1%}</td></tr>'
        )
    if not rows:
        return '<p class="note">No image was classified wrongly.</p>'
    return (
        '<table class="plain"><caption>Most often mixed up</caption><thead><tr><th>target</th><th>taken for</th>'
        '<th class="n">images</th><th class="n">of the class</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def shorten(text: str, length: int = 16) -> str:
    """At most ``length`` characters, the last an ellipsis if some are gone."""
    return text if len(text) <= length else text[: length - 1] + "…"
