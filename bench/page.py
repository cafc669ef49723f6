"""One HTML file for the results of a benchmark: charts, tables and what they mean. It needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from bench.style import DARK, LIGHT, SANS, SHAPES, VARIABLES, color_rules
from bench.tables import Sheet
from loaders.files import atomic_file

_STYLE = f"""
:root {{
  color-scheme: light dark; {LIGHT.variables()}
}}
@media (prefers-color-scheme: dark) {{
  :root {{ {DARK.variables()} }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 {SANS}; font-feature-settings: "tnum";
}}
main {{ max-width: 1120px; margin: 0 auto; padding: 56px 32px 80px; }}
h1, h2 {{ font-family: Charter, "Iowan Old Style", "Source Serif 4", Georgia, "Liberation Serif", serif; }}
h1 {{ font-size: 40px; line-height: 1.15; font-weight: 600; margin: 6px 0 10px; }}
h2 {{ font-size: 24px; font-weight: 600; margin: 56px 0 6px; padding-top: 18px; border-top: 1px solid var(--rule); }}
h3 {{ font-size: 13px; font-weight: 600; margin: 0 0 8px; }}
.eyebrow {{ font-size: 12px; letter-spacing: .12em; text-transform: uppercase; font-weight: 600;
  color: var(--series0); }}
.soft {{ color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }}
ul {{ margin: 12px 0; padding-left: 20px; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 20px; }}
.card {{ background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 18px 20px;
  margin: 18px 0 0; min-width: 0; overflow-x: auto; }}
svg {{ display: block; max-width: 760px; margin: 0 auto; }}
svg text {{ font-family: inherit; }}
{SHAPES}
{color_rules(VARIABLES)}
.images {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(224px, 1fr)); gap: 14px; margin: 18px 0; }}
.images figure {{ margin: 0; }}
.images img {{ width: 100%; max-width: 320px; border-radius: 3px; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13.5px; }}
th {{ font-weight: 600; color: var(--soft); font-size: 12px; }}
th, td {{ padding: 5px 0 5px 14px; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ padding-left: 0; text-align: left; }}
tr:last-child td {{ border-bottom: 0; }}
code {{ font: .84em/1.5 "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere; }}
footer {{ margin-top: 56px; white-space: pre-line; }}
"""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        sentences: what it shows, in words.
        charts: captions and ``svg`` elements.
        sheets: tables.
        images: captions and images, uint8 (H, W, 3), which stand side by side.
    """

    title: str
    sentences: Sequence[str] = ()
    charts: Sequence[tuple[str, Markup]] = ()
    sheets: Sequence[Sheet] = ()
    images: Sequence[tuple[str, np.ndarray]] = ()

    def html(self) -> Markup:
        cards = [
            Markup('<figure class="card"><h3>{}</h3>{}</figure>').format(caption, chart)
            for caption, chart in self.charts
        ]
        parts = [Markup("<section><h2>{}</h2>").format(self.title)]
        if self.sentences:
            parts += [Markup("<ul>"), *(Markup("<li>{}</li>").format(text) for text in self.sentences), Markup("</ul>")]
        parts += [Markup('<div class="charts">'), *cards, Markup("</div>")]
        if self.images:
            shown = Markup("").join(_figure(caption, pixels) for caption, pixels in self.images)
            parts.append(Markup('<div class="images">{}</div>').format(shown))
        parts += [_table(sheet) for sheet in self.sheets]
        return Markup("").join([*parts, Markup("</section>")])


def _figure(caption: str, pixels: np.ndarray) -> Markup:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return Markup(
        '<figure><img src="data:image/png;base64,{}" alt="{}"><figcaption class="soft">{}</figcaption></figure>'
    ).format(data, caption, caption)


def _table(sheet: Sheet) -> Markup:
    head = Markup("").join(Markup("<th>{}</th>").format(heading) for heading in sheet.headings)
    rows = [Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row) for row in sheet.rows]
    body = Markup("").join(Markup("<tr>{}</tr>").format(row) for row in rows)
    table = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)
    return Markup('<div class="card"><h3>{}</h3>{}</div>').format(sheet.title, table)


def write_page(
    path: Path, title: str, command: str, machine: str, sections: Sequence[Section], notes: Sequence[str]
) -> None:
    """Write the page; the file is replaced as a whole.

    Args:
        path: of the file.
        title: of the page.
        command: that made it.
        machine: what was measured on.
        sections: from top to bottom.
        notes: what columns mean, and what to mind; empty ones are left out.
    """
    text = Markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        '<style>{style}</style>\n</head>\n<body>\n<main>\n<header><div class="eyebrow">Headrace · benchmark</div>'
        '<h1>{title}</h1><div class="soft"><code>{command}</code></div><div class="soft">{machine}</div></header>\n'
        '{sections}\n<footer class="soft">{notes}</footer>\n</main>\n</body>\n</html>\n'
    ).format(
        title=title,
        style=Markup(_STYLE),
        command=command,
        machine=machine,
        sections=Markup("\n").join(section.html() for section in sections),
        notes=escape("\n".join(note for note in notes if note)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
