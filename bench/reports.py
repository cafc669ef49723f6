"""What a benchmark has found, and the one way in which it is printed and written to files."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from bench.measure import FOREIGN_CPU_LIMIT, write_records
from bench.page import Section, write_page
from bench.tables import Sheet, console, write_csv


@dataclass(frozen=True)
class Report:
    """What a part of a benchmark has found so far.

    Attributes:
        sheets: tables, as they are printed and stand in docs/benchmarks.md.
        records: for --json and --csv; ``disturbed_rounds`` in one counts the rounds in which other processes took more
            than FOREIGN_CPU_LIMIT of the cores that could be used.
        section: what the HTML page shows, its charts and sentences being those of docs/benchmarks.md, too.
        legend: what the columns mean; empty where that is plain.
        since: the day of the oldest run that it shows, as finished runs are not repeated; None where all is new.
    """

    sheets: Sequence[Sheet]
    records: Sequence[dict[str, Any]]
    section: Section
    legend: str = ""
    since: date | None = None


def check_files(options: argparse.Namespace) -> None:
    """Make the folders of the files that --json, --csv and --html ask for; see that files can be written there.

    Raises:
        OSError: one cannot be; the message names it.
    """
    for path in filter(None, (options.json, options.csv, options.html)):
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def write_reports(options: argparse.Namespace, title: str, reports: Sequence[Report], machine: str) -> None:
    """Write the files that --json, --csv and --html ask for, each replaced as a whole.

    One that cannot be written is named on stderr: what was measured is to be printed all the same.

    Args:
        options: the command line's, with ``json``, ``csv``, ``html`` and ``command`` (bench.options.shown_command).
        title: of the HTML page.
        reports: from top to bottom.
        machine: what was measured on.
    """
    records = records_of(reports)
    if options.json:
        _write(options.json, lambda path: write_records(path, records))
    if options.csv:
        _write(options.csv, lambda path: write_csv(path, records))
    if options.html:
        sections = [report.section for report in reports]
        notes = [*legends(reports), disturbance(records)]
        _write(options.html, lambda path: write_page(path, title, options.command, machine, sections, notes))


def _write(path: Path, write: Callable[[Path], None]) -> None:
    try:
        write(path)
    except OSError as error:
        print(f"warning: {path} is not written: {error}", file=sys.stderr)


def print_reports(reports: Sequence[Report], machine: str) -> None:
    """Print the tables with their sentences, then legends and the machine."""
    parts = [
        part
        for report in reports
        for part in (*(sheet.terminal() for sheet in report.sheets), *report.section.sentences, "")
    ]
    notes = [*legends(reports), disturbance(records_of(reports)), machine]
    console().print(*parts, *filter(None, notes), sep="\n")


def records_of(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return the records of all reports."""
    return [record for report in reports for record in report.records]


def legends(reports: Sequence[Report]) -> list[str]:
    """Return what the columns of all reports mean, each sentence once."""
    return list(dict.fromkeys(report.legend for report in reports if report.legend))


def disturbance(records: Sequence[dict[str, Any]]) -> str:
    """Return what a star in a table means; empty where there is none."""
    if not any(record.get("disturbed_rounds", 0) for record in records):
        return ""
    return (
        f"*: in a turn or run other processes took more than {FOREIGN_CPU_LIMIT:.0%} of the usable cores: rates are "
        "too low there, and seconds too many; ratios and CPU time hold better."
    )
