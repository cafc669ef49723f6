"""Tables for the terminal, for Markdown and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from loaders.files import atomic_file

_FILE_WIDTH = 170  # characters


@dataclass(frozen=True)
class Sheet:
    """A titled table of text; the first column is aligned to the left, figures to the right."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[Sequence[str]]

    def terminal(self) -> Table:
        """Return the table as rich prints it."""
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if number else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table in Markdown, its title above it."""
        rule = [":--"] + ["--:"] * (len(self.headings) - 1)
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.headings, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines])


def console() -> Console:
    """Return where tables are printed: as wide as the terminal; in a file or pipe, where nothing is cut off, wide."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_FILE_WIDTH)


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as CSV, a row each; the file is replaced as a whole.

    A value within another has the names of both, ``images_per_second.median``; lists are left out.
    """
    rows = [dict(_flat(record)) for record in records]
    columns = dict.fromkeys(name for row in rows for name in row)
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield f"{prefix}{name}", value
