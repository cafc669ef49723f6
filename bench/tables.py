"""Tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table


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
