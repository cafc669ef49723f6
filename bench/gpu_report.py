"""What the GPU benchmark found, as JSON, Markdown and tables for the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu_process import Check, Entry, Failure, LeftOut, Row, SectionResult, Value
from bench.measure import Spread
from bench.tables import Sheet
from loaders.files import atomic_file

_HEADINGS = {
    "batch_size": "batch",
    "images_per_second": "images/s",
    "resolution": "px",
    "seconds": "s",
}
_UNITS = {"_ms": "ms", "_mb": "MB", "_seconds": "s", "_percent": "%"}


@dataclass
class Document:
    """The results of a run of the benchmark, so far.

    Attributes:
        command: what was typed.
        machine: what it ran on.
        is_shadow: there was no GPU, and the figures mean nothing.
        sections: in the order measured.
    """

    command: str
    machine: str
    is_shadow: bool
    sections: list[SectionResult] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether no section failed in any way."""
        return all(section.is_good for section in self.sections)

    def remark(self) -> str:
        """Return a sentence on what the figures are worth."""
        if self.is_shadow:
            return (
                "There is no GPU here: this is the CPU shadow, the same code at tiny sizes with Triton's kernels "
                "interpreted. Its checks count; its figures say nothing about speed."
            )
        return "Rates are medians (smallest-largest) over turns that were measured in alternation."

    def record(self) -> dict[str, Any]:
        """Return what the JSON file holds."""
        return {
            "command": self.command,
            "machine": self.machine,
            "shadow": self.is_shadow,
            "sections": [
                {
                    "name": section.name,
                    "status": section.status,
                    "seconds": section.seconds,
                    "limit_seconds": section.limit_seconds,
                    "checks": _of(section, Check),
                    "rows": _of(section, Row),
                    "left_out": _of(section, LeftOut),
                    "failures": _of(section, Failure),
                }
                for section in self.sections
            ],
        }

    def markdown(self) -> str:
        """Return the results as a page."""
        parts = ["# GPU benchmark", f"    {self.command}", f"{self.machine}.", self.remark()]
        for section in self.sections:
            parts.append(f"## {section.name}")
            parts.append(outcome(section))
            parts += ["\n".join(f"- {line}" for line in checked(section))] if checked(section) else []
            parts += [sheet.markdown() for sheet in sheets(section)]
            parts += notes(section)
        return "\n\n".join(parts) + "\n"

    def write(self, json_file: Path | None, markdown_file: Path | None) -> None:
        """Write the files that were asked for, each replaced as a whole."""
        if json_file:
            _write(json_file, json.dumps(self.record(), indent=2) + "\n")
        if markdown_file:
            _write(markdown_file, self.markdown())


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _of(section: SectionResult, kind: type[Entry]) -> list[dict[str, Any]]:
    return [asdict(entry) for entry in section.entries if isinstance(entry, kind)]


def outcome(section: SectionResult) -> str:
    """Return a line on how a section ended."""
    checks = [entry for entry in section.entries if isinstance(entry, Check)]
    failures = sum(isinstance(entry, Failure) for entry in section.entries)
    parts = [f"{section.status}, {section.seconds:.0f} of {section.limit_seconds:.0f} s"]
    if checks:
        parts.append(f"{sum(check.passed for check in checks)} of {len(checks)} checks passed")
    if failures:
        parts.append(f"{failures} {'part' if failures == 1 else 'parts'} failed")
    return "; ".join(parts)


def checked(section: SectionResult) -> list[str]:
    """Return a line for each check of a section."""
    return [
        f"{'passed' if entry.passed else 'FAILED'}: {entry.name} ({entry.detail})"
        for entry in section.entries
        if isinstance(entry, Check)
    ]


def notes(section: SectionResult) -> list[str]:
    """Return what a section left out and what failed in it, with why."""
    found = []
    for entry in section.entries:
        if isinstance(entry, LeftOut):
            found.append(f"Left out: {entry.what}: {entry.why}")
        elif isinstance(entry, Failure):
            indented = "\n".join(f"    {line}" for line in entry.error.splitlines())
            found.append(f"Failed: {entry.what}\n\n{indented}")
    return found


def sheets(section: SectionResult) -> list[Sheet]:
    """Return a section's figures as tables."""
    found = []
    tables: dict[str, list[dict[str, Value]]] = {}
    for entry in section.entries:
        if isinstance(entry, Row):
            tables.setdefault(entry.table, []).append(entry.values)
    for title, rows in tables.items():
        columns = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[shown(row[name]) if name in row else "" for name in columns] for row in rows]
        found.append(Sheet(title, tuple(map(_heading, columns)), cells))
    return found


def _heading(name: str) -> str:
    if name in _HEADINGS:
        return _HEADINGS[name]
    for suffix, unit in _UNITS.items():
        if name.endswith(suffix):
            return f"{name.removesuffix(suffix).replace('_', ' ')}, {unit}"
    return name.replace("_", " ")


def shown(value: Value) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, Spread):
        return f"{_number(value.median)} ({_number(value.min)}-{_number(value.max)})"
    return value if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    """Return a number with three digits at least, and no more behind the point than they take."""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
