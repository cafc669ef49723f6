"""Accuracy as inline SVG: over seconds, a line with its band for each schedule; of single runs, a dot for each seed.

The colors are those of bench.style, as in bench.charts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from bench.charts import spread_out
from bench.style import COLORS
from bench.training_curves import Point, Statistics
from engine.charts import number, ticks

_CHARACTER = 6.4  # width of a letter at the page's size, at most on average, pixels
_LEFT, _UPPER, _BELOW = 46.0, 26.0, 38.0  # room for the axes, pixels
_ROW = 34.0  # from one row of dots to the next
_MINUTES_FROM = 600.0  # seconds from which on an axis is in minutes


@dataclass(frozen=True)
class Line:
    """A line of the chart.

    Attributes:
        name: its label.
        points: in order of time.
        color: number of a color.
    """

    name: str
    points: Sequence[Point]
    color: int


@dataclass(frozen=True)
class _Axes:
    """Where seconds and percent lie in the drawing: from the lower left to the upper right corner."""

    right: float
    lower: float
    longest: float
    low: float
    high: float

    def x(self, seconds: float) -> float:
        return _LEFT + (self.right - _LEFT) * seconds / self.longest

    def y(self, percent: float) -> float:
        return self.lower - (self.lower - _UPPER) * (percent - self.low) / ((self.high - self.low) or 1.0)


def time_chart(
    lines: Sequence[Line], *, title: str, target: float | None = None, width: int = 560, height: int = 320
) -> Markup:
    """Draw a metric in percent over the time of runs.

    Args:
        lines: what to draw, with a band from the lowest to the highest seed; a ring marks the first epoch at another
            size.
        title: read by screen readers.
        target: percent, drawn as a dashed line.
        width, height: pixels of the drawing, which scales with the page.

    Returns:
        An ``svg`` element; empty without points.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    names = [f"{line.name} {line.points[-1].metric.mean:.1f} %" for line in lines]
    longest = max(line.points[-1].seconds for line in lines)
    values = [value for line in lines for point in line.points for value in (point.metric.min, point.metric.max)]
    scale = [tick for tick in ticks(min(values), max(values), 5) if 0 <= tick <= 100]
    right = width - 23.0 - _CHARACTER * max(map(len, names))
    axes = _Axes(right, height - _BELOW, longest, scale[0], max(scale[-1], *values))
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="{escape(title)}">',
        *_grid(axes, scale),
        _text(right, height - 4, f"time of the run, {'min' if longest >= _MINUTES_FROM else 's'}", "end", "tick"),
    ]
    if target is not None and axes.low <= target <= axes.high:
        y = axes.y(target)
        parts.append(f'<path class="whisker" stroke-dasharray="4 4" d="M{_LEFT} {y:.1f}H{right:.1f}"/>')
        parts.append(_text(_LEFT + 4, y - 5, f"target {target:.1f} %", "start", "mark"))
    for line in lines:
        parts += _draw(line, axes)
    return Markup("".join([*parts, *_labels(lines, names, axes), "</svg>"]))


def _grid(axes: _Axes, scale: Sequence[float]) -> Iterator[str]:
    for tick in scale:
        y = axes.y(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{axes.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 7, y + 4, number(tick, "%"), "end", "tick")
    unit = 60.0 if axes.longest >= _MINUTES_FROM else 1.0
    for tick in ticks(0.0, axes.longest / unit, 5):
        if tick * unit <= axes.longest:
            yield _text(axes.x(tick * unit), axes.lower + 18, number(tick), "middle", "tick")


def _draw(line: Line, axes: _Axes) -> Iterator[str]:
    """Yield a line's band, path and points."""
    color = line.color % COLORS
    xs = [axes.x(point.seconds) for point in line.points]
    middle = [axes.y(point.metric.mean) for point in line.points]
    lower = [axes.y(point.metric.min) for point in line.points]
    upper = [axes.y(point.metric.max) for point in line.points]
    edge = _path([*zip(xs, lower, strict=True), *reversed(list(zip(xs, upper, strict=True)))])
    yield f'<polygon class="fill{color} band" points="{edge}"/>'
    yield f'<polyline class="line stroke{color}" points="{_path(list(zip(xs, middle, strict=True)))}"/>'
    before = line.points[0].resolution
    for point, x, y in zip(line.points, xs, middle, strict=True):
        if point.resolution != before:
            yield f'<circle class="ring stroke{color}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
            before = point.resolution
        metric = point.metric
        tip = escape(
            f"{line.name}, {number(point.seconds)} s, at {point.resolution} px: {metric.mean:.1f} % "
            f"({metric.min:.1f}–{metric.max:.1f})"
        )
        yield f'<circle class="fill{color}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>{tip}</title></circle>'


def _labels(lines: Sequence[Line], names: Sequence[str], axes: _Axes) -> Iterator[str]:
    """Yield the names in the right margin, moved apart; a line that ends before the others is led to its name."""
    ends = sorted(
        (axes.y(line.points[-1].metric.mean), axes.x(line.points[-1].seconds), line.color % COLORS, name)
        for line, name in zip(lines, names, strict=True)
    )
    heights = spread_out([y for y, *_ in ends], _UPPER, axes.lower)
    for placed, (y, x, color, name) in zip(heights, ends, strict=True):
        if axes.right - x > 12:
            yield (
                f'<path class="line stroke{color}" style="stroke-width:1.2" stroke-dasharray="1 4" '
                f'd="M{x + 6:.1f} {y:.1f}L{axes.right + 4:.1f} {placed:.1f}"/>'
            )
        yield _text(axes.right + 11, placed + 4, name, "start", f"label text{color}")


@dataclass(frozen=True)
class Dots:
    """A row of a chart of single values: its name, and a value in percent for each seed."""

    name: str
    values: Sequence[float]


def dot_chart(rows: Sequence[Dots], *, title: str, width: int = 640) -> Markup:
    """Draw a dot for each value and a line at the mean of each row, over an axis in percent that need not begin at 0.

    Args:
        rows: from top to bottom; the mean and the standard deviation are written behind each.
        title: read by screen readers.
        width: pixels of the drawing, which scales with the page.

    Returns:
        An ``svg`` element; empty without rows.
    """
    if not rows:
        return Markup("")
    found = [Statistics.of(row.values) for row in rows]
    labels = [f"{one.mean:.2f} ± {one.deviation:.2f}" for one in found]
    values = [value for row in rows for value in row.values]
    scale = ticks(min(values), max(values), 5)
    left = 22.0 + _CHARACTER * max(len(row.name) for row in rows)
    right = width - 22.0 - _CHARACTER * max(map(len, labels))
    lower = 8 + _ROW * len(rows)

    def place(value: float) -> float:
        return left + (right - left) * (value - scale[0]) / (scale[-1] - scale[0])

    parts = [f'<svg viewBox="0 0 {width} {lower + 44:.0f}" width="100%" role="img" aria-label="{escape(title)}">']
    for tick in scale:
        x = place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{lower:.1f}"/>')
        parts.append(_text(x, lower + 16, f"{tick:g}", "middle", "tick"))
    parts.append(_text(right, lower + 34, "top-1, %", "end", "tick"))
    for number_of_row, (row, one, label) in enumerate(zip(rows, found, labels, strict=True)):
        y, mean = 8 + _ROW * (number_of_row + 0.5), place(one.mean)
        parts.append(_text(left - 14, y + 4, row.name, "end", "name"))
        parts.append(f'<path class="limit" d="M{mean:.1f} {y - 10:.1f}v20"/>')
        for value in row.values:
            tip = escape(f"{row.name}: {value:.2f} %")
            parts.append(
                f'<circle class="fill0" cx="{place(value):.1f}" cy="{y:.1f}" r="4.5"><title>{tip}</title></circle>'
            )
        parts.append(_text(right + 14, y + 4, label, "start", "value"))
    return Markup("".join([*parts, "</svg>"]))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
