"""Charts of measurements as inline SVG: bars with whiskers, and lines with bands over a count.

Colors are classes (bench.style), so that charts follow the reader's dark mode in a page (bench.page) and as a picture
(bench.pictures). Every mark has its value as a tooltip, and labels never cover each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from bench.measure import Spread
from bench.style import COLORS
from engine.charts import number, ticks

_CHARACTER = 6.4  # width of a letter at the page's size, at most on average, pixels
_ROW = 24.0  # from one bar to the next
_BAR = 14.0
_LINE = 15.0  # height of a line of text


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart.

    Attributes:
        name: its label.
        value: the bar's length, with the whisker from its smallest to its largest value; what is below 0 is written,
            but not drawn.
        color: number of a color.
        group: rows of the same group stand together.
        limits: values to hold it against, such as a prediction; the second one is drawn as dots.
        remark: written behind the value.
    """

    name: str
    value: Spread
    color: int
    group: str = ""
    limits: tuple[float | None, ...] = ()
    remark: str = ""

    def text(self) -> str:
        """Return its value for people, with the smallest and the largest where they differ from it."""
        value = self.value
        spread = f" ({number(value.min)}–{number(value.max)})" if value.min < value.max else ""
        return f"{number(value.median)}{spread}" + f"  {self.remark}" * bool(self.remark)


@dataclass(frozen=True)
class Key:
    """What a color or a mark of a bar chart means.

    Attributes:
        name: in words.
        color: number of a color; None for a mark.
        limit: which of a bar's limits is meant; None for a color.
    """

    name: str
    color: int | None = None
    limit: int | None = None


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


def bar_chart(bars: Sequence[Bar], *, title: str, unit: str, width: int = 640, key: Sequence[Key] = ()) -> Markup:
    """Draw horizontal bars with whiskers and their values behind them, or at the right edge where bars have limits.

    Args:
        bars: rows from top to bottom.
        title: read by screen readers.
        unit: of the axis, which begins at 0.
        width: pixels of the drawing, which scales with the page.
        key: what colors and marks mean, where the names of the bars do not say it.

    Returns:
        An ``svg`` element; empty without bars.
    """
    if not bars:
        return Markup("")
    values = [value for bar in bars for value in (bar.value.max, *_limits(bar).values())]
    has_limits = any(_limits(bar) for bar in bars)
    scale = ticks(0.0, max(0.0, *values))
    groups = len({bar.group for bar in bars if bar.group})
    left = 14.0 + _CHARACTER * max(len(bar.name) for bar in bars)
    right = width - 14.0 - _CHARACTER * max(len(bar.text()) for bar in bars)
    upper = 6.0 + _LINE * 1.5 * bool(key)
    lower = upper + _ROW * len(bars) + _LINE * 1.4 * groups

    def place(value: float) -> float:
        return left + (right - left) * value / scale[-1]

    parts = [_open(width, lower + 2 * _LINE + 8, title), *_key(key, _LINE)]
    parts += _axis(scale, place, upper, lower, unit)
    y, group = upper, ""
    for bar in bars:
        if bar.group and bar.group != group:
            group = bar.group
            parts.append(_text(8, y + _LINE, group, "start", "group"))
            y += _LINE * 1.4
        parts += _bar(bar, y + _ROW / 2, left, place, unit)
        behind = right if has_limits else place(max(0.0, bar.value.median, bar.value.max))
        parts.append(_text(behind + 7, y + _ROW / 2 + 4, bar.text(), "start", "value"))
        y += _ROW
    return Markup("".join([*parts, "</svg>"]))


def _limits(bar: Bar) -> dict[int, float]:
    return {place: limit for place, limit in enumerate(bar.limits) if limit is not None}


def _bar(bar: Bar, middle: float, left: float, place: Callable[[float], float], unit: str) -> Iterable[str]:
    """Yield a bar around the height ``middle``: name, rectangle, whisker and limits."""
    end, low, high = (place(max(0.0, value)) for value in (bar.value.median, bar.value.min, bar.value.max))
    yield _text(left - 8, middle + 4, bar.name, "end", "name")
    yield (
        f'<rect class="fill{bar.color % COLORS}" x="{left:.1f}" y="{middle - _BAR / 2:.1f}" rx="2" '
        f'width="{end - left:.1f}" height="{_BAR}"><title>{escape(f"{bar.name}: {bar.text()} {unit}")}'
        "</title></rect>"
    )
    if low < high:
        yield (
            f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8'
            f'M{high:.1f} {middle - 4:.1f}v8"/>'
        )
    for limit, value in _limits(bar).items():
        yield _limit(limit, place(value), middle)


def _limit(limit: int, x: float, middle: float) -> str:
    kind = "faint" if limit else "limit"
    return f'<path class="{kind}" d="M{x:.1f} {middle - 8:.1f}v16"/>'


def _key(key: Sequence[Key], baseline: float) -> Iterable[str]:
    x = 8.0
    for entry in key:
        middle = baseline - 4
        if entry.color is not None:
            color = entry.color % COLORS
            yield f'<rect class="fill{color}" x="{x:.1f}" y="{middle - 5:.1f}" width="10" height="10" rx="2"/>'
        elif entry.limit is not None:
            yield _limit(entry.limit, x + 5, middle)
        yield _text(x + 16, baseline, entry.name, "start", "tick")
        x += 32 + _CHARACTER * len(entry.name)


@dataclass(frozen=True)
class Stack:
    """A row of a chart of stacked bars: its name, its parts, and the group that it stands in."""

    name: str
    parts: Sequence[float]
    group: str = ""


def stack_chart(rows: Sequence[Stack], names: Sequence[str], *, title: str, unit: str, width: int = 640) -> Markup:
    """Draw horizontal bars made of parts, with their sums behind them.

    Args:
        rows: from top to bottom.
        names: of the parts, each with a color of its own.
        title: read by screen readers.
        unit: of the axis, which begins at 0.
        width: pixels of the drawing, which scales with the page.

    Returns:
        An ``svg`` element; empty without rows.
    """
    if not rows:
        return Markup("")
    scale = ticks(0.0, max(sum(row.parts) for row in rows))
    left = 14.0 + _CHARACTER * max(len(row.name) for row in rows)
    right = width - 14.0 - _CHARACTER * max(len(number(sum(row.parts))) for row in rows)
    upper = 6.0 + _LINE * 1.5
    lower = upper + _ROW * len(rows) + _LINE * 1.4 * len({row.group for row in rows if row.group})

    def place(value: float) -> float:
        return left + (right - left) * value / scale[-1]

    parts = [_open(width, lower + 2 * _LINE + 8, title)]
    parts += _key([Key(name, color) for color, name in enumerate(names)], _LINE)
    parts += _axis(scale, place, upper, lower, unit)
    y, group = upper, ""
    for row in rows:
        if row.group and row.group != group:
            group = row.group
            parts.append(_text(8, y + _LINE, group, "start", "group"))
            y += _LINE * 1.4
        middle, done = y + _ROW / 2, 0.0
        parts.append(_text(left - 8, middle + 4, row.name, "end", "name"))
        for color, (name, value) in enumerate(zip(names, row.parts, strict=True)):
            tip = escape(f"{row.name}, {name}: {number(value)} {unit}")
            parts.append(
                f'<rect class="fill{color % COLORS}" x="{place(done):.1f}" y="{middle - _BAR / 2:.1f}" '
                f'width="{place(value) - left:.1f}" height="{_BAR}"><title>{tip}</title></rect>'
            )
            done += value
        parts.append(_text(place(done) + 7, middle + 4, number(done), "start", "value"))
        y += _ROW
    return Markup("".join([*parts, "</svg>"]))


def _axis(
    scale: Sequence[float], place: Callable[[float], float], upper: float, lower: float, unit: str
) -> Iterable[str]:
    """Yield the grid of horizontal bars, its figures and the unit."""
    for tick in scale:
        x = place(tick)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{upper - 2:.1f}" y2="{lower:.1f}"/>'
        yield _text(x, lower + _LINE, number(tick), "middle", "tick")
    yield _text(place(scale[-1]), lower + 2 * _LINE, unit, "end", "tick")


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
