"""One HTML file for the results of a benchmark: charts, tables and what they mean. It needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from bench.tables import Sheet
from loaders.files import atomic_file

_LIGHT = ("#2b6c8f", "#c4572f", "#5f8f4a", "#7d6aa8", "#b8871f", "#3d8f8a", "#a8506f", "#68757c")
_DARK = ("#6db3d6", "#ec8a62", "#94c47e", "#a794d6", "#e5b251", "#72c4be", "#dd8aa6", "#a2aeb4")


def _variables(colors: Sequence[str]) -> str:
    return " ".join(f"--series{number}: {color};" for number, color in enumerate(colors))


def _color_classes() -> str:
    return "\n".join(
        f"svg .fill{n} {{ fill: var(--series{n}); }} svg .stroke{n} {{ stroke: var(--series{n}); }} "
        f"svg .text{n} {{ fill: var(--series{n}); }}"
        for n in range(len(_LIGHT))
    )


_STYLE = f"""
:root {{
  color-scheme: light dark; {_variables(_LIGHT)}
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d2429; --soft: #5d686f; --rule: #e5e2dc; --grid: #d9dedf;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    {_variables(_DARK)}
    --paper: #14181b; --card: #1b2024; --ink: #e6e8e9; --soft: #98a3a9; --rule: #2c3338; --grid: #363f45;
  }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 Inter, "Helvetica Neue", "Segoe UI", Roboto, Arial, sans-serif; font-feature-settings: "tnum";
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
svg text {{ font-family: inherit; font-size: 11.5px; fill: var(--ink); }}
svg .tick {{ fill: var(--soft); font-size: 11px; }}
svg .label, svg .group {{ font-weight: 600; }}
svg .grid {{ stroke: var(--grid); }}
svg .band {{ opacity: .16; }}
svg .line {{ fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }}
svg .ring {{ fill: none; stroke-width: 1.6; }}
svg .mark {{ paint-order: stroke; stroke: var(--card); stroke-width: 3px; }}
svg .whisker {{ fill: none; stroke: var(--ink); stroke-width: 1.2; opacity: .75; }}
{_color_classes()}
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
    """

    title: str
    sentences: Sequence[str] = ()
    charts: Sequence[tuple[str, Markup]] = ()
    sheets: Sequence[Sheet] = ()

    def html(self) -> Markup:
        cards = [
            Markup('<figure class="card"><h3>{}</h3>{}</figure>').format(caption, chart)
            for caption, chart in self.charts
        ]
        parts = [Markup("<section><h2>{}</h2>").format(self.title)]
        if self.sentences:
            parts += [Markup("<ul>"), *(Markup("<li>{}</li>").format(text) for text in self.sentences), Markup("</ul>")]
        parts += [Markup('<div class="charts">'), *cards, Markup("</div>")]
        parts += [_table(sheet) for sheet in self.sheets]
        return Markup("").join([*parts, Markup("</section>")])


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
