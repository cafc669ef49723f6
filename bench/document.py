"""Runs the benchmarks and writes their tables and charts into docs/benchmarks.md.

    python bench/document.py --data PHOTOS --imagenette DIR
    python bench/document.py --data PHOTOS --sections loaders,memory

The page holds a pair of marks for each section; what stands between them is replaced, the command that made it
included. Charts are written to the folder ``images`` beside the page. ``--short --page COPY`` makes a quick round of
the benchmarks, whose figures say nothing, into a copy of the page.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import signal
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/document.py`

from bench.document_sections import SECTIONS, Section
from bench.options import command_line, listed
from bench.pictures import write_picture
from bench.program import ERRORS
from bench.reports import Report, disturbance, legends, records_of
from bench.resources import describe_machine
from engine.values import ConfigError
from loaders.files import atomic_file
from loaders.known import KNOWN_SETS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
DEMO = "demo"
SOURCES = {
    "data": "a folder of photos, demo, or a known data set's name",
    "imagenette": "a folder of photos with train and val, such as Imagenette, for whole training runs",
}


def module_of(section: Section) -> ModuleType:
    """Return a section's script, with its ``parse`` and ``run``."""
    return importlib.import_module(f"bench.{section.program}")


def source_of(section: Section, options: argparse.Namespace) -> str | None:
    """Return where a section's images come from; None where it takes none or the command line does not name it."""
    return getattr(options, section.data) if section.data else None


def arguments_of(section: Section, options: argparse.Namespace) -> list[str]:
    """Return what a section's script is called with.

    Raises:
        ConfigError: the section needs a folder that the command line does not name.
    """
    arguments = shlex.split(section.short if options.short else section.arguments)
    if section.data:
        folder = source_of(section, options)
        if folder is None:
            raise ConfigError(f"--{section.data} is missing: {SOURCES[section.data]}")
        arguments = ["--data", folder, *arguments]
    if section.keeps_runs and options.runs:
        arguments += ["--output", str(options.runs)]
    return arguments


def shown_command(section: Section, short: bool, source: str | None = None) -> str:
    """Return the command that makes a section, as a reader types it.

    Args:
        section: of the page.
        short: with the arguments of a quick round.
        source: of its images: that of a known name is shown, a folder is not.
    """
    folder = {"data": "PHOTOS", "imagenette": "IMAGENETTE", "": ""}[section.data]
    shown = source if source == DEMO or source in KNOWN_SETS else folder
    data = f"--data {shown}" if section.data else ""
    words = ("python", f"bench/{section.program}.py", data, section.short if short else section.arguments)
    return " ".join(filter(None, words))


def make(name: str, section: Section, options: argparse.Namespace) -> str:
    """Run a section's benchmark, write its charts, and return what belongs between the marks."""
    module = module_of(section)
    reports: list[Report] = module.run(module.parse(arguments_of(section, options)))
    parts = [f"    {shown_command(section, options.short, source_of(section, options))}"]
    parts += write_charts(name, section, reports, options.page.parent / "images")
    for report in reports:
        parts += [sheet.markdown() for sheet in report.sheets]
        parts.append("\n".join(f"- {sentence}" for sentence in report.section.sentences))
    parts += [_folded(legends(reports)), _escaped(disturbance(records_of(reports)))]
    since = min((report.since for report in reports if report.since), default=date.today())
    parts.append(f"{since:%d %B %Y}: {describe_machine()}.")
    return "\n\n".join(part for part in parts if part)


def write_charts(name: str, section: Section, reports: Sequence[Report], folder: Path) -> list[str]:
    """Write the charts that a section shows in place of its earlier ones; return the Markdown that shows them."""
    charts = [(caption, chart) for report in reports for caption, chart in report.section.charts if chart]
    shown = [charts[place] for place in section.charts if place < len(charts)]
    files = [folder / f"{name}-{number}.svg" for number in range(1, len(shown) + 1)]
    for file, (caption, chart) in zip(files, shown, strict=True):
        write_picture(file, chart, caption)
    for earlier in set(folder.glob(f"{name}-[0-9]*.svg")).difference(files):
        earlier.unlink()
    return [f"![{caption}](images/{file.name})" for file, (caption, _) in zip(files, shown, strict=True)]


def _folded(found: Sequence[str]) -> str:
    """Return legends behind a line that opens them; empty without any."""
    lines = [f"- {_escaped(line)}" for legend in found for line in legend.splitlines()]
    body = "\n".join(lines)
    return f"<details><summary>What the columns mean</summary>\n\n{body}\n\n</details>" if lines else ""


def _escaped(text: str) -> str:
    return text.replace("*", "\\*")


def fill(page: str, name: str, text: str) -> str:
    """Return the page with the text between the marks of a section.

    Raises:
        ValueError: the page lacks the marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no {begin} ... {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line("document", __doc__)
    add = parser.add_argument
    names: Any = ",".join(SECTIONS)
    add("--data", default=DEMO, help=SOURCES["data"])
    add("--imagenette", metavar="DIR", help=SOURCES["imagenette"])
    add("--sections", type=listed(str, list(SECTIONS)), default=names, help=f"of {names}")
    add("--page", type=Path, default=PAGE, metavar="FILE", help="the page to fill; charts go to images beside it")
    add("--runs", type=Path, metavar="DIR", help="keep whole training runs here, and go on with those that are there")
    add("--short", action="store_true", help="run each benchmark for some seconds; not for the page of the project")
    options = parser.parse_args(argv)
    if options.short and options.page == PAGE:
        parser.error("--short makes figures that say nothing: name a copy of the page with --page")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks and write each section when it is done; return the exit code.

    A section that fails does not keep the others from being made.
    """
    options = parse(argv)
    failed = False
    for name in options.sections:
        section = SECTIONS[name]
        command = shown_command(section, options.short, source_of(section, options))
        print(f"{name}, {'short' if options.short else f'about {section.minutes} minutes'}: {command}", file=sys.stderr)
        try:
            text = make(name, section, options)
        except ERRORS as error:
            print(f"error: {name} is left as it was: {error}", file=sys.stderr)
            failed = True
            continue
        except KeyboardInterrupt:
            print("stopped; the sections before this one are written", file=sys.stderr)
            return 130
        page = fill(options.page.read_text(encoding="utf-8"), name, text)
        with atomic_file(options.page) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the run under way is ended too
    sys.exit(main())
