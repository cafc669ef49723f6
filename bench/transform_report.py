"""The report on transform orders: one HTML file with bar charts and pictures, nothing outside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from bench.measure import Spread
from engine.charts import number, ticks
from loaders.files import atomic_file

_ROW = 24.0
_AMPLIFY = 4  # what differences are multiplied by to be seen

_STYLE = """
:root { --page: #fff; --ink: #1c1f23; --quiet: #667; --grid: #e4e6ea; --legal: #4c78a8; --chosen: #2a9d5c;
  --illegal: #c9585a; --mark: #1c1f23; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --ink: #e6e8eb; --quiet: #9aa; --grid: #2c3036;
  --legal: #6d9bd1; --chosen: #45c482; --illegal: #e07a7c; --mark: #fff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1000px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: .95rem; margin: 1.2rem 0 0; }
p, figcaption { color: var(--quiet); } figcaption { font-size: .8rem; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .tick { fill: var(--quiet); font-size: 11px; }
svg .grid { stroke: var(--grid); } svg .spread { stroke: var(--ink); stroke-width: 1.2; }
svg .predicted { stroke: var(--mark); stroke-width: 2.5; }
.legal { fill: var(--legal); } .chosen { fill: var(--chosen); } .illegal { fill: var(--illegal); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(224px, 1fr)); gap: 14px; }
figure { margin: 0; } figure img { width: 100%; max-width: 320px; image-rendering: auto; border-radius: 3px; }
.key span { display: inline-block; margin-right: 1.2rem; } .key svg { vertical-align: -2px; }
"""


@dataclass(frozen=True)
class Bar:
    """One order in a chart.

    Attributes:
        order: the operations in short.
        label: its class.
        chosen: the planner's choice.
        cpu_ms: CPU time per image.
        predicted: what the planner predicts.
        difference: largest and mean difference from the order as written, in levels.
    """

    order: str
    label: str
    chosen: bool
    cpu_ms: Spread
    predicted: float | None
    difference: tuple[float, float] | None


@dataclass(frozen=True)
class Chart:
    """The orders of one case by one backend."""

    case: str
    title: str
    backend: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Pictures:
    """What orders make of one photo, in levels, float32 (H, W, 3) each; all are compared with ``reference``."""

    case: str
    title: str
    images: Sequence[tuple[str, np.ndarray]]
    reference: np.ndarray


@dataclass(frozen=True)
class Page:
    """What a report holds."""

    charts: Sequence[Chart]
    pictures: Sequence[Pictures]
    notes: Sequence[str]
    machine: str


def write_page(path: Path, page: Page) -> None:
    """Write the report; the file is replaced as a whole."""
    with atomic_file(path) as temporary:
        temporary.write_text(html(page))


def html(page: Page) -> str:
    """Return the report as HTML."""
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>Transform order</title><style>{_STYLE}</style>",
        "<h1>What the order of transforms costs and changes</h1>",
        _key(),
    ]
    for case in dict.fromkeys(chart.case for chart in page.charts):
        charts = [chart for chart in page.charts if chart.case == case]
        parts.append(f"<h2>{escape(charts[0].title)}</h2>")
        longest = max(max(bar.cpu_ms.max, bar.predicted or 0) for chart in charts for bar in chart.bars)
        for chart in charts:
            parts += [f"<h3>{escape(chart.backend)}</h3>", bar_chart(chart, longest)]
        parts += [_gallery(pictures) for pictures in page.pictures if pictures.case == case]
    notes = "<br>".join(escape(line) for note in page.notes for line in note.splitlines())
    parts.append(f"<h2>Notes</h2><p>{notes}</p><p>{escape(page.machine)}</p></html>")
    return "\n".join(parts)


def bar_chart(chart: Chart, longest: float, width: int = 960) -> str:
    """Draw one bar for each order: its median, a line from the smallest to the largest, a mark for the prediction.

    Args:
        longest: what the axis reaches, in cpu-ms per image, alike for all charts of a case.
    """
    names = [bar.order for bar in chart.bars]
    left = 16 + 6.1 * max(len(name) for name in names)
    right = width - 150.0
    marks = ticks(0, longest, 5)
    height = _ROW * len(chart.bars) + 40

    def place(value: float) -> float:
        return left + (right - left) * value / marks[-1]

    title = f"{chart.title}, {chart.backend}: CPU time per image of each order"
    parts = [f'<svg viewBox="0 0 {width} {height:.0f}" width="100%" role="img" aria-label="{escape(title)}">']
    bottom = _ROW * len(chart.bars) + 6
    for mark in marks:
        parts.append(f'<line class="grid" x1="{place(mark):.1f}" x2="{place(mark):.1f}" y1="4" y2="{bottom:.0f}"/>')
        parts.append(_text(place(mark), bottom + 14, number(mark), "middle", "tick"))
    parts.append(_text(right + 20, bottom + 14, "cpu-ms per image", "start", "tick"))
    for row, (bar, name) in enumerate(zip(chart.bars, names, strict=True)):
        y = 6 + _ROW * row
        middle = y + _ROW / 2 - 2
        kind = "chosen" if bar.chosen else "illegal" if bar.label == "illegal" else "legal"
        differs = "another size" if bar.difference is None else f"differs by {number(bar.difference[0])} at most"
        tip = escape(f"{bar.order} ({bar.label}): {bar.cpu_ms.median:.2f} cpu-ms, {differs}")
        parts.append(_text(left - 8, middle + 4, name, "end"))
        parts.append(
            f'<rect class="{kind}" x="{left:.1f}" y="{y:.1f}" width="{place(bar.cpu_ms.median) - left:.1f}" '
            f'height="{_ROW - 7:.0f}" rx="2"><title>{tip}</title></rect>'
        )
        low, high = place(bar.cpu_ms.min), place(bar.cpu_ms.max)
        parts.append(
            f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle - 1:.1f}" y2="{middle - 1:.1f}"/>'
        )
        if bar.predicted is not None:
            x = place(bar.predicted)
            parts.append(
                f'<line class="predicted" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 1:.1f}" y2="{y + _ROW - 6:.1f}">'
                f"<title>predicted {bar.predicted:.2f}</title></line>"
            )
        end = max(high, place(bar.predicted or 0)) + 7
        parts.append(_text(end, middle + 4, f"{number(bar.cpu_ms.median)}  {bar.label}", "start"))
    parts.append("</svg>")
    return "".join(parts)


def _key() -> str:
    square = '<svg width="12" height="12"><rect class="{}" width="12" height="12" rx="2"/></svg> {}'
    line = '<svg width="12" height="12"><line class="{}" {}/></svg> {}'
    entries = [
        square.format("legal", "a legal order"),
        square.format("chosen", "the planner's choice"),
        square.format("illegal", "illegal: another result"),
        line.format("predicted", 'x1="6" x2="6" y1="0" y2="12"', "predicted"),
        line.format("spread", 'x1="0" x2="12" y1="6" y2="6"', "smallest to largest over the rounds"),
    ]
    return '<p class="key">' + "".join(f"<span>{entry}</span>" for entry in entries) + "</p>"


def _gallery(pictures: Pictures) -> str:
    """Return pictures side by side, and below each how it differs from the order as written."""
    figures = []
    for caption, levels in pictures.images:
        figures.append(_figure(levels, caption))
        if levels.shape == pictures.reference.shape and levels is not pictures.reference:
            strength = 255 - _AMPLIFY * np.abs(levels - pictures.reference)
            figures.append(_figure(strength, f"its difference from the order as written, {_AMPLIFY} times as strong"))
    return f'<h3>What becomes of a photo</h3><div class="pictures">{"".join(figures)}</div>'


def _figure(levels: np.ndarray, caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(levels.round().clip(0, 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
