"""The doctor's findings as one self-contained HTML page with its plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from engine.charts import number, profile_chart, shorten, ticks
from engine.doctor_findings import Findings, advice
from engine.doctor_print import byte_count
from engine.report import mark_options
from engine.roofline import LIMIT_NAMES, RESOURCE_NAMES, RESOURCES
from loaders.files import atomic_file

_BARS = 40  # classes up to which each has its bar


def write_page(path: Path, findings: Findings) -> None:
    """Write the page; a file of that name is replaced as a whole."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "bytes": byte_count, "shorten": shorten, "options": mark_options}
    facts = findings.facts
    classes = list(zip(facts.classes, facts.train_counts, facts.val_counts, strict=True))
    many = len(classes) > _BARS
    html = environment.get_template("doctor.html.j2").render(
        findings=findings,
        facts=facts,
        advice=advice(findings),
        written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M").lstrip("0"),
        class_chart=profile_chart(facts.train_counts, "Training images of each class")
        if many
        else bar_chart(classes, "Images of each class"),
        ceilings=[
            (prediction, ceiling_chart(findings, position)) for position, prediction in enumerate(findings.predictions)
        ],
        limits=LIMIT_NAMES,
    )
    with atomic_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="replace")


def bar_chart(rows: Sequence[tuple[str, int, int]], title: str, width: int = 1040) -> Markup:
    """Draw a bar of training and validation images for each class, the largest class first.

    Args:
        rows: name, training images, validation images.
        title: read by screen readers.
    """
    ordered = sorted(rows, key=lambda row: -row[1])
    names = [shorten(name, 28) for name, _, _ in ordered]
    left, right, pitch = 14 + 6.6 * max(map(len, names)), width - 130.0, 22
    marks = ticks(0, max(1, *(train + val for _, train, val in ordered)), 5)
    height = pitch * len(ordered) + 34

    def place(value: float) -> float:
        return left + (right - left) * value / marks[-1]

    parts = [f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="{escape(title)}">']
    for mark in marks:
        x = place(mark)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 26}"/>')
        parts.append(_text(x, height - 10, number(mark), "middle"))
    parts.append(_text(right + 126, height - 10, "images", "end"))
    for position, (name, (full, train, val)) in enumerate(zip(names, ordered, strict=True)):
        y = 6 + pitch * position
        tip = escape(f"{full}: {train:,} for training, {val:,} for validation")
        parts.append(_text(left - 8, y + 12, name, "end"))
        parts.append(
            f'<g><title>{tip}</title><rect x="{left:.1f}" y="{y}" width="{place(train) - left:.1f}" height="15" rx="2" '
            f'style="fill:var(--train)"/><rect x="{place(train) + 1:.1f}" y="{y}" '
            f'width="{max(0.0, place(train + val) - place(train) - 1):.1f}" height="15" rx="2" '
            f'style="fill:var(--val)"/></g>'
        )
        parts.append(_text(place(train + val) + 6, y + 12, f"{train:,} + {val:,}", "start"))
    parts.append("</svg>")
    return Markup("".join(parts))


def ceiling_chart(findings: Findings, position: int, width: int = 460) -> Markup:
    """Draw what each resource allows at one size, on a logarithmic axis, the lowest ceiling marked.

    What the disk allows in the first epoch only is drawn below, in gray.
    """
    prediction = findings.predictions[position]
    ceilings = prediction.ceilings
    rows = [(resource, ceilings.ceilings[resource]) for resource in RESOURCES]
    rows = sorted(((name, rate) for name, rate in rows if math.isfinite(rate)), key=lambda row: row[1])
    from_disk = prediction.from_disk.ceilings["disk"]
    if math.isfinite(from_disk) and math.isinf(ceilings.ceilings["disk"]):
        rows.append(("disk", from_disk))
    low = 10 ** math.floor(math.log10(min(rate for _, rate in rows)) - 0.3)
    high = max(rate for _, rate in rows) * 1.1
    left, right, pitch = 150.0, width - 70.0, 30
    height = pitch * len(rows) + 30

    def place(rate: float) -> float:
        return left + (right - left) * math.log(rate / low) / math.log(high / low)

    title = f"Images per second that each resource allows at {prediction.resolution} px"
    parts = [f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="{escape(title)}">']
    decade = low
    while decade <= high:
        x = place(decade)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 24}"/>')
        parts.append(_text(x, height - 8, number(decade), "middle"))
        decade *= 10
    parts.append(_text(width - 4.0, height - 8, "images/s", "end"))
    for row, (resource, rate) in enumerate(rows):
        y = 8 + pitch * row
        is_bound, first_only = resource == ceilings.bound, math.isinf(ceilings.ceilings[resource])
        name = RESOURCE_NAMES[resource] + (", first epoch" if first_only else "")
        color = "val" if is_bound else "faint" if first_only else "train"
        parts.append(_text(left - 8, y + 13, name, "end", "label" if is_bound else "tick"))
        parts.append(
            f'<g style="fill:var(--{color})"><title>{escape(f"{name}: {number(rate)} images/s")}</title>'
            f'<rect x="{left:.1f}" y="{y + 8}" width="{place(rate) - left:.1f}" height="2"/>'
            f'<circle cx="{place(rate):.1f}" cy="{y + 9}" r="5.5"/></g>'
        )
        parts.append(_text(place(rate) + 11, y + 13, number(rate), "start", "label" if is_bound else "tick"))
    parts.append("</svg>")
    return Markup("".join(parts))


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
