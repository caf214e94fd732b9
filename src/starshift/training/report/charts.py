# SPDX-License-Identifier: Apache-2.0
"""Line charts as inline SVG, styled by the page's colours, so that they follow its light and dark theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend and its points (x, y), in order of x; those not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]

    def finite(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


def line_chart(title: str, lines: Sequence[Line], *, mark: float | None = None) -> str:
    """An SVG figure of one or two curves over epochs; ``mark`` draws a dashed line at that one (the best).

    Returns an empty string where no curve has a finite point.
    """
    drawn = [(i, line, line.finite()) for i, line in enumerate(lines)]
    points = [p for _, _, found in drawn for p in found]
    if not points:
        return ""
    x_ticks = _integer_ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = nice_ticks(min(y for _, y in points), max(y for _, y in points))
    x_low, x_high = min(x_ticks[0], *(x for x, _ in points)), max(x_ticks[-1], *(x for x, _ in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(x_ticks, y_ticks, place)]
    if mark is not None and x_low <= mark <= x_high:
        x, _ = place(mark, y_ticks[0])
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts += [_curve(i, line.name, found, place) for i, line, found in drawn if found]
    legend = "".join(f'<span class="key s{i}">{escape(line.name)}</span>' for i, line, _ in drawn)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    caption = f'<figcaption>{escape(title)}<span class="keys">{legend}</span></figcaption>'
    return f'<figure class="chart">{caption}{svg}</figure>'


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], place) -> str:  # type: ignore[no-untyped-def]
    parts = []
    for y in y_ticks:
        _, py = place(x_ticks[0], y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{py + 3.5:.1f}" text-anchor="end">{y:.4g}</text>')
    for x in x_ticks:
        px, _ = place(x, y_ticks[0])
        parts.append(f'<text class="tick" x="{px:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">epoch</text>')
    return "".join(parts)


def _curve(index: int, name: str, points: Sequence[tuple[float, float]], place) -> str:  # type: ignore[no-untyped-def]
    placed = [place(x, y) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    # Small circles: the only sign of a curve of one point, and what shows its value under the pointer.
    radius = 2.5 if len(points) <= 60 else 1.2
    dots = "".join(
        f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius}"><title>{escape(name)} {x:g}: {y:.4g}</title></circle>'
        for (px, py), (x, y) in zip(placed, points, strict=True)
    )
    return f'<g class="s{index}"><polyline points="{path}"/>{dots}</g>'


def nice_ticks(low: float, high: float) -> list[float]:
    """About five round values (1, 2 or 5 times a power of ten apart) that enclose [low, high]."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _integer_ticks(low: float, high: float) -> list[float]:
    """About six whole numbers inside [low, high]; both are epochs."""
    first, last = math.ceil(low), math.floor(high)
    if last <= first:
        return [first]
    step = max(1, round((last - first) / 6))
    for nice in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000):
        if nice >= step:
            step = nice
            break
    start = math.ceil(first / step) * step
    return [float(x) for x in range(start, last + 1, step)] or [float(first)]
