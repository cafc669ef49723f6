"""Charts of measurements as inline SVG: bars with whiskers, and lines with bands over a count.

Colors are CSS variables of the page (bench.page), so that they follow the reader's dark mode; ``engine.charts`` does
the same for the report of a run. Every mark has its value as a tooltip, and labels never cover each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from bench.measure import Spread
from engine.charts import number, ticks

COLORS = 8  # --series0 to --series7
_CHARACTER = 6.4  # width of a letter at the page's size, at most on average, pixels
_ROW = 24.0  # from one bar to the next
_BAR = 14.0
_LINE = 15.0  # height of a line of text


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart.

    Attributes:
        name: its label.
        value: the bar's length, with the whisker from its smallest to its largest value.
        color: number of a color.
        group: rows of the same group stand together.
    """

    name: str
    value: Spread
    color: int
    group: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: its label.
        points: x and y in rising order of x; the band goes from the smallest to the largest y.
        color: number of a color.
        marked: the x of the point to mark; None for none.
        mark: what to write beside it.
    """

    name: str
    points: Sequence[tuple[int, Spread]]
    color: int
    marked: int | None = None
    mark: str = ""


@dataclass(frozen=True)
class Box:
    """Where a label stands, pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def is_within(self, other: Box) -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


def bar_chart(bars: Sequence[Bar], *, title: str, unit: str, width: int = 640) -> Markup:
    """Draw horizontal bars with whiskers and their values behind them.

    Args:
        bars: rows from top to bottom.
        title: read by screen readers.
        unit: of the axis.
        width: pixels of the drawing, which scales with the page.

    Returns:
        An ``svg`` element; empty without bars.
    """
    if not bars:
        return Markup("")
    labels = [f"{number(bar.value.median)} ({number(bar.value.min)}–{number(bar.value.max)})" for bar in bars]
    left = 14.0 + _CHARACTER * max(len(bar.name) for bar in bars)
    right = width - 14.0 - _CHARACTER * max(map(len, labels))
    scale = ticks(0.0, max(bar.value.max for bar in bars))
    groups = len({bar.group for bar in bars if bar.group})
    lower = 6.0 + _ROW * len(bars) + _LINE * 1.4 * groups
    height = lower + 2 * _LINE + 8

    def place(value: float) -> float:
        return left + (right - left) * value / scale[-1]

    parts = [_open(width, height, title)]
    for tick in scale:
        x = place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{lower:.1f}"/>')
        parts.append(_text(x, lower + _LINE, number(tick), "middle", "tick"))
    parts.append(_text(right, lower + 2 * _LINE, unit, "end", "tick"))
    y, group = 6.0, ""
    for bar, label in zip(bars, labels, strict=True):
        if bar.group and bar.group != group:
            group = bar.group
            parts.append(_text(8, y + _LINE, group, "start", "group"))
            y += _LINE * 1.4
        middle, end = y + _ROW / 2, place(bar.value.median)
        low, high = place(bar.value.min), place(bar.value.max)
        parts += [
            _text(left - 8, middle + 4, bar.name, "end", "name"),
            f'<rect class="fill{bar.color % COLORS}" x="{left:.1f}" y="{middle - _BAR / 2:.1f}" rx="2" '
            f'width="{end - left:.1f}" height="{_BAR}"><title>{escape(f"{bar.name}: {label} {unit}")}</title></rect>',
            f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8'
            f'M{high:.1f} {middle - 4:.1f}v8"/>',
            _text(max(end, high) + 7, middle + 4, label, "start", "value"),
        ]
        y += _ROW
    return Markup("".join([*parts, "</svg>"]))


def count_chart(
    lines: Sequence[Line], *, title: str, x_name: str, unit: str, width: int = 560, height: int = 300
) -> Markup:
    """Draw lines over a count, each with a band from its smallest to its largest value and its name at its end.

    Args:
        lines: what to draw; those without points are left out.
        title: read by screen readers.
        x_name: of what is counted.
        unit: of the y axis, which begins at 0.
        width, height: pixels of the drawing, which scales with the page.

    Returns:
        An ``svg`` element; empty without points.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    counts = sorted({x for line in lines for x, _ in line.points})
    scale = ticks(0.0, max(y.max for line in lines for _, y in line.points))
    left = 16.0 + _CHARACTER * max(len(number(tick)) for tick in scale)
    right = width - 16.0 - _CHARACTER * max(len(line.name) for line in lines)
    upper, lower = 2 * _LINE, height - 2.4 * _LINE
    span = max(counts[-1] - counts[0], 1)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + 8 + (right - left - 16) * (x - counts[0]) / span, lower - (lower - upper) * y / scale[-1]

    parts = [_open(width, height, title), _text(left, _LINE - 2, unit, "start", "tick")]
    for tick in scale:
        y = at(0, tick)[1]
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 7, y + 4, number(tick), "end", "tick"))
    parts += [_text(at(x, 0)[0], lower + _LINE + 2, str(x), "middle", "tick") for x in counts]
    parts.append(_text((left + right) / 2, height - 6, x_name, "middle", "tick"))
    for line in lines:
        parts += _draw(line, [(*at(x, y.median), at(x, y.min)[1], at(x, y.max)[1]) for x, y in line.points], unit)
    parts += _labels(
        lines, [[at(x, y.median) for x, y in line.points] for line in lines], Box(left, upper, right, lower)
    )
    return Markup("".join([*parts, "</svg>"]))


def _draw(line: Line, placed: Sequence[tuple[float, float, float, float]], unit: str) -> Iterable[str]:
    """Yield a line's band, path and points; a place is x, y and the ends of the band."""
    color = line.color % COLORS
    edge = [f"{x:.1f},{low:.1f}" for x, _, low, _ in placed] + [f"{x:.1f},{top:.1f}" for x, _, _, top in placed[::-1]]
    yield f'<polygon class="fill{color} band" points="{" ".join(edge)}"/>'
    yield f'<polyline class="line stroke{color}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in placed)}"/>'
    for (count, value), (x, y, _, _) in zip(line.points, placed, strict=True):
        if count == line.marked:
            yield f'<circle class="ring stroke{color}" cx="{x:.1f}" cy="{y:.1f}" r="7"/>'
        tip = f"{line.name}, {count}: {number(value.median)} ({number(value.min)}–{number(value.max)}) {unit}"
        yield f'<circle class="fill{color}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(tip)}</title></circle>'


def _labels(lines: Sequence[Line], placed: Sequence[Sequence[tuple[float, float]]], plot: Box) -> Iterable[str]:
    """Yield the names at the lines' ends, moved apart, and what is written beside marks, where there is room for it."""
    ends = sorted(zip((points[-1][1] for points in placed), lines, strict=True), key=lambda end: end[0])
    heights = spread_out([y for y, _ in ends], plot.top, plot.bottom)
    for y, (_, line) in zip(heights, ends, strict=True):
        yield _text(plot.right + 6, y + 4, line.name, "start", f"label text{line.color % COLORS}")
    taken = [Box(x - 4, y - 4, x + 4, y + 4) for of_line in placed for x, y in _along(of_line)]
    for line, of_line in zip(lines, placed, strict=True):
        for (count, _), (x, y) in zip(line.points, of_line, strict=True):
            if count == line.marked and line.mark:
                box = _free_place(x, y, _CHARACTER * len(line.mark), taken, plot)
                if box is not None:
                    taken.append(box)
                    yield _text(box.left, box.bottom - 4, line.mark, "start", f"mark text{line.color % COLORS}")


def _along(points: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """Yield places on the line through the points, at most 6 pixels apart."""
    yield points[0]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        steps = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / 6))
        for step in range(1, steps + 1):
            yield x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps


def _free_place(x: float, y: float, length: float, taken: Sequence[Box], plot: Box) -> Box | None:
    """Return a place for a label near a point that covers nothing; None where there is none."""
    for distance in (10.0, 24.0, 38.0, 52.0):
        for left in (x - length / 2, x + distance, x - length - distance, x + 2, x - length - 2):
            for top in (y - distance - _LINE, y + distance, y - _LINE / 2):
                box = Box(left, top, left + length, top + _LINE)
                if box.is_within(plot) and not any(box.overlaps(other) for other in taken):
                    return box
    return None


def spread_out(heights: Sequence[float], upper: float, lower: float) -> list[float]:
    """Move rising heights apart by a line of text, as little as needed, within bounds that have room for all."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + _LINE if moved else upper))
    limit = lower
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - _LINE
    return moved


def _open(width: float, height: float, title: str) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="100%" role="img" aria-label="{escape(title)}">'


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
