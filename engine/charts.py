"""Charts as inline SVG, drawn for the report's page: its fonts, and its colors by CSS variables, so dark mode is free.

Written by hand rather than with matplotlib, whose SVG brings fixed colors and fonts, ten times the size and a second of
imports; every mark carries its value as a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

_LABEL_GAP = 13.0  # pixels between the baselines of two labels


@dataclass(frozen=True)
class Series:
    """A line of a chart, or a row of bars.

    Attributes:
        name: its direct label.
        x, y: points; those whose y is None or not finite are left out.
        color: name of a CSS variable, without the dashes.
        labeled: write name and last value at the end of the line.
        marks: mark the points, with tooltips.
        bars: draw a bar over the epoch that ends at each x in place of a line, for what was measured over it.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: str
    labeled: bool = True
    marks: bool = True
    bars: bool = False

    def points(self) -> list[tuple[float, float]]:
        pairs = zip(self.x, self.y, strict=True)
        return [(x, float(y)) for x, y in pairs if y is not None and math.isfinite(y)]


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis that is shaded and named."""

    start: float
    end: float
    name: str


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about ``count`` round numbers that span [low, high] from outside."""
    span = high - low or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= span / count * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, max(last, first + 1) + 1)]


def number(value: float, unit: str = "") -> str:
    """Write a number for people: three significant digits, thousands separated, no exponent unless tiny."""
    if value and abs(value) < 1e-3:
        text = f"{value:.1e}".replace("e-0", "e-")
    elif abs(value) >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def line_chart(
    series: Sequence[Series],
    bands: Sequence[Band] = (),
    *,
    title: str,
    unit: str = "",
    from_zero: bool = False,
    top: float | None = None,
    width: int = 560,
    height: int = 250,
) -> Markup:
    """Draw lines over epochs.

    Args:
        series: lines; the x axis runs from 0 to the largest x.
        bands: stretches of the x axis to shade.
        title: read by screen readers.
        unit: behind the numbers of the y axis.
        from_zero: let the y axis begin at zero.
        top: the y axis ends here at the highest (100 for percent).

    Returns:
        An ``svg`` element; empty when no line has a point.
    """
    lines = [(one, one.points()) for one in series]
    lines = [(one, points) for one, points in lines if points]
    if not lines:
        return Markup("")
    values = [y for _, points in lines for _, y in points]
    y_ticks = [t for t in ticks(0.0 if from_zero else min(values), max(values)) if top is None or t <= top]
    low, high = y_ticks[0], max(y_ticks[-1], max(values))
    x_max = max(max(x for _, points in lines for x, _ in points), *(band.end for band in bands), 1.0)
    labels = [f"{one.name} {number(points[-1][1], unit)}" for one, points in lines if one.labeled]
    left, right = 46.0, width - 14.0 - 6.4 * max(map(len, labels), default=0)
    upper, lower = (30.0 if bands else 12.0), height - 30.0

    def place_x(x: float) -> float:
        return left + (right - left) * x / x_max

    def place_y(y: float) -> float:
        return lower - (lower - upper) * (y - low) / (high - low or 1.0)

    parts = [_svg_open(width, height, title)]
    for index, band in enumerate(bands):
        start, end = place_x(band.start), place_x(band.end)
        parts.append(
            f'<rect class="band{index % 2}" x="{start:.1f}" y="{upper - 18:.1f}" width="{end - start:.1f}" '
            f'height="{lower - upper + 18:.1f}"><title>{escape(band.name)}</title></rect>'
        )
        if end - start > 6.2 * len(band.name):
            parts.append(_text((start + end) / 2, upper - 6, band.name, "middle", "band-name"))
    for tick in y_ticks:
        y = place_y(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 7, y + 3.5, number(tick, unit), "end"))
    whole = [tick for tick in ticks(0, x_max, 6) if tick <= x_max and tick == int(tick)]
    parts += [_text(place_x(tick), lower + 16, f"{tick:.0f}", "middle") for tick in whole]
    parts.append(_text(right, lower + 28, "epochs", "end"))
    ends: list[tuple[float, str, str]] = []
    for one, points in lines:
        placed = [(place_x(x), place_y(y)) for x, y in points]
        color = f"var(--{one.color})"
        tips = [escape(f"{one.name}, epoch {number(x)}: {number(y, unit)}") for x, y in points]
        if one.bars:
            step = place_x(1) - place_x(0)
            gap = min(2.0, 0.2 * step)
            parts += [
                f'<rect x="{x - step + gap / 2:.1f}" y="{y:.1f}" width="{step - gap:.1f}" height="{lower - y:.1f}" '
                f'style="fill:{color}"><title>{tip}</title></rect>'
                for (x, y), tip in zip(placed, tips, strict=True)
            ]
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(
            f'<polyline class="{"line" if one.marks else "line fine"}" points="{path}" style="stroke:{color}"/>'
        )
        if one.marks:
            radius = 2.6 if len(points) <= 60 else 1.0
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="fill:{color}"><title>{tip}</title></circle>'
                for (x, y), tip in zip(placed, tips, strict=True)
            ]
        if one.labeled:
            ends.append((placed[-1][1], labels[len(ends)], color))
    for y, text, color in _spread(ends, upper, lower):
        parts.append(
            f'<text class="label" x="{right + 8:.1f}" y="{y + 4:.1f}" style="fill:{color}">{escape(text)}</text>'
        )
    parts.append("</svg>")
    return Markup("".join(parts))


def confusion_chart(matrix: np.ndarray, classes: Sequence[str]) -> Markup:
    """Draw a confusion matrix: the share of each true class (row) that was given each class (column).

    Args:
        matrix: int64 (n, n), counts; rows are normalized over what is shown. n up to about 30 is readable.
        classes: n names.
    """
    count = len(classes)
    names = [shorten(name, 18) for name in classes]
    margin = 12 + 7.0 * max(len(name) for name in names)
    cell = min(46.0, max(17.0, 600.0 / count))
    head = 0.75 * margin + 12
    side = cell * count
    width, height = margin + side + 0.45 * margin, head + side + 24
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    parts = [_svg_open(width, height, "Confusion matrix", stretch=False)]
    for row in range(count):
        y = head + row * cell
        parts.append(_text(margin - 8, y + cell / 2 + 4, names[row], "end"))
        x = margin + row * cell + cell / 2
        turned = f"translate({x:.1f} {head - 8:.1f}) rotate(-40)"
        parts.append(f'<text class="tick" transform="{turned}">{escape(names[row])}</text>')
        for column in range(count):
            images, share = int(matrix[row, column]), float(shares[row, column])
            tip = f"{classes[row]} taken for {classes[column]}" if row != column else f"{classes[row]} recognized"
            kind = "right" if row == column else "wrong" if images else "none"
            opacity = math.sqrt(share) if images else 1.0  # the root shows errors of a few percent
            left = margin + column * cell
            tip = escape(f"{tip}: {images:,} ({100 * share:.1f} %)")
            parts.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{y:.1f}" width="{cell - 1.5:.1f}" height="{cell - 1.5:.1f}" '
                f'rx="2" fill-opacity="{opacity:.3f}"><title>{tip}</title></rect>'
            )
            if images and cell >= 28:
                tone = "on-strong" if opacity > 0.6 else "on-weak"
                parts.append(_text(left + (cell - 1.5) / 2, y + cell / 2 + 3.5, f"{images:,}", "middle", tone))
    parts.append(_text(margin + side / 2, head + side + 18, "predicted class (rows: true class)", "middle"))
    parts.append("</svg>")
    return Markup("".join(parts))


def profile_chart(counts: Sequence[int], title: str, width: int = 560, height: int = 150) -> Markup:
    """Draw counts in falling order as a filled profile, for more classes than bars fit."""
    ordered = sorted(counts, reverse=True)
    upper = ticks(0, max(ordered), 3)
    left, right, top, bottom = 46.0, width - 14.0, 12.0, height - 24.0

    def place_y(value: float) -> float:
        return bottom - (bottom - top) * value / (upper[-1] or 1)

    parts = [_svg_open(width, height, title)]
    for tick in upper:
        y = place_y(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 7, y + 3.5, number(tick), "end"))
    step = (right - left) / len(ordered)
    corners = [f"{left:.1f},{bottom:.1f}"]
    for index, value in enumerate(ordered):
        y = place_y(value)
        corners += [f"{left + index * step:.1f},{y:.1f}", f"{left + (index + 1) * step:.1f},{y:.1f}"]
    corners.append(f"{right:.1f},{bottom:.1f}")
    parts.append(f'<polygon points="{" ".join(corners)}" style="fill:var(--train);opacity:.55"/>')
    parts.append(_text(right, height - 6, f"{len(ordered):,} classes, largest first", "end"))
    parts.append("</svg>")
    return Markup("".join(parts))


def shorten(text: str, length: int) -> str:
    """Cut a text to ``length`` characters, with an ellipsis in place of what is cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _spread(ends: Sequence[tuple[float, str, str]], upper: float, lower: float) -> list[tuple[float, str, str]]:
    """Move labels apart so that none covers another, keeping their order and the chart's bounds."""
    placed: list[tuple[float, str, str]] = []
    for y, text, color in sorted(ends):
        placed.append((max(y, placed[-1][0] + _LABEL_GAP if placed else upper), text, color))
    limit = lower
    for index in range(len(placed) - 1, -1, -1):
        y, text, color = placed[index]
        placed[index] = (min(y, limit), text, color)
        limit = placed[index][0] - _LABEL_GAP
    return placed


def _svg_open(width: float, height: float, title: str, stretch: bool = True) -> str:
    size = 'width="100%"' if stretch else f'width="{width:.0f}" style="max-width:100%;height:auto"'
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" {size} role="img" aria-label="{escape(title)}">'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
