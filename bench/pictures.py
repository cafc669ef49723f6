"""Charts as pictures: an SVG file each that needs nothing else and reads well on light and on dark pages."""

from __future__ import annotations

import re
import textwrap
from html import escape
from pathlib import Path

from markupsafe import Markup

from bench.style import DARK, LIGHT, SANS, SHAPES, Palette, color_rules
from loaders.files import atomic_file

_WIDTH = 760.0  # pixels that a picture takes on its page, at least
_MARGIN, _LINE = 18.0, 19.0
_CHARACTER = 7.6  # width of a letter of the caption, at most on average, pixels
_OPENING = re.compile(r'<svg viewBox="0 0 (\d+) (\d+)"[^>]*>')


def picture(chart: Markup, caption: str) -> str:
    """Return a chart as a document of its own, on a card with its caption above it.

    Colors are written out, not as CSS variables, which few programs know outside browsers. Those of the dark page are
    chosen by the reader's settings (Media Queries 5, prefers-color-scheme), also where a page shows the file as an
    image.

    Args:
        chart: an ``svg`` element of bench.charts or bench.training_charts.
        caption: what the chart shows.

    Raises:
        ValueError: the chart is empty.
    """
    opening = _OPENING.match(chart)
    if opening is None:
        raise ValueError(f"there is nothing to see in {caption!r}")
    width, height = (float(number) for number in opening.groups())
    whole = max(_WIDTH, width + 2 * _MARGIN)
    scale = (whole - 2 * _MARGIN) / width
    lines = textwrap.wrap(caption, int((whole - 2 * _MARGIN) / _CHARACTER))
    upper = _MARGIN + _LINE * len(lines) + 6
    lower = upper + scale * height + _MARGIN - 6
    words = "".join(
        f'<text class="caption" x="{_MARGIN}" y="{_MARGIN + _LINE * number + 12:.0f}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    drawing = chart[opening.end() : -len("</svg>")]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole:.0f}" height="{lower:.0f}" '
        f'viewBox="0 0 {whole:.0f} {lower:.0f}" role="img" aria-label="{escape(caption)}">\n'
        f"<style>\n{_style()}</style>\n"
        f'<rect class="card" x=".5" y=".5" width="{whole - 1:.0f}" height="{lower - 1:.0f}" rx="8"/>\n{words}\n'
        f'<g transform="translate({_MARGIN} {upper:.0f}) scale({scale:.4f})">{_apart(drawing)}</g>\n</svg>\n'
    )


def _style() -> str:
    def colors(palette: Palette) -> str:
        return f"{color_rules(palette)}\nsvg .card {{ fill: {palette.card}; stroke: {palette.rule}; }}"

    return (
        f"svg {{ font-family: {SANS}; }}\n{SHAPES}\nsvg .caption {{ font-size: 14px; font-weight: 600; }}\n"
        f"{colors(LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{colors(DARK)}\n}}\n"
    )


def _apart(drawing: str) -> str:
    """Put each element on a line of its own, so that versions of a file can be compared."""
    return re.sub(r"(?<=>)(?=<(?:text|rect|line|path|circle|polyline|polygon)\b)", "\n", drawing)


def write_picture(path: Path, chart: Markup, caption: str) -> None:
    """Write a chart as a picture; the file is replaced as a whole.

    Raises:
        ValueError: the chart is empty.
    """
    text = picture(chart, caption)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
