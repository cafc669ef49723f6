"""What the region loader has to reach, and rows that hold measured figures against it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bench.measure import Ratio, Spread
from bench.peers import Output
from bench.throughput import Result
from bench.variants import why_missing
from loaders.cores import usable_cores

_ALL = 0  # in place of a number of threads: one for each core


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a loader or peer, the size of its images in pixels, and its threads."""

    name: str
    resolution: int
    threads: int = _ALL

    @property
    def num_workers(self) -> int:
        return self.threads or _cores()

    @property
    def why_missing(self) -> str | None:
        """Why this side cannot be measured here; None where it can."""
        return why_missing(self.name) if self.num_workers <= _cores() else f"there are no {self.num_workers} cores"


def _cores() -> int:
    return max(1, int(usable_cores()))


@dataclass(frozen=True)
class Target:
    """What a ratio of rates has to be.

    Attributes:
        run: all of a run is measured in turns.
        title: of its row.
        side, other: of the ratio.
        bar: to be met.
        aim: better than the bar; None where a row with a rendition has it.
    """

    run: str
    title: str
    side: Side
    other: Side
    bar: float
    aim: float | None

    @property
    def why_missing(self) -> str | None:
        """Why it cannot be measured here; None where it can."""
        return self.side.why_missing or self.other.why_missing


_SMALLER = (("... with rendition 320", "roi:renditions"), ("... with rendition 256", "roi:renditions-256"))
TARGETS = (
    Target("224", "500 px / FFCV JPEG, 224", Side("roi", 224), Side("peer:ffcv", 224), 2.5, 4.0),
    Target("224", "500 px / DALI, 224", Side("roi", 224), Side("peer:dali", 224), 3.5, 5.0),
    Target("224", "original data / DALI, 224", Side("roi:keep", 224), Side("peer:dali", 224), 1.8, 2.5),
    Target("224", "plain files / DALI, 224", Side("roi:plain", 224), Side("peer:dali", 224), 1.4, 1.7),
    Target("128", "500 px / FFCV JPEG, 128", Side("roi", 128), Side("peer:ffcv", 128), 2.8, None),
    *(Target("128", title, Side(name, 128), Side("peer:ffcv", 128), 2.8, 5.0) for title, name in _SMALLER),
    Target("128", "500 px / DALI, 128", Side("roi", 128), Side("peer:dali", 128), 3.2, None),
    *(Target("128", title, Side(name, 128), Side("peer:dali", 128), 3.2, 6.0) for title, name in _SMALLER),
    Target("128", "256 px / FFCV raw, 128", Side("roi:256", 128), Side("peer:ffcv-raw256", 128), 1.0, 2.0),
    Target("160", "256 px / FFCV raw, 160", Side("roi:256", 160), Side("peer:ffcv-raw256", 160), 1.0, 2.0),
    Target("sizes", "128 / 224, rendition 320", Side("roi:renditions", 128), Side("roi:renditions", 224), 1.6, 2.0),
    Target(
        "sizes", "128 / 224, rendition 256",
        Side("roi:renditions-256", 128), Side("roi:renditions-256", 224), 1.6, 2.0,
    ),
    Target("threads", "two threads / one, 224", Side("roi", 224, 2), Side("roi", 224, 1), 1.85, 1.97),
)  # fmt: skip

MEMORY = "memory"  # a run as well
GROWTH = Side("roi", 224)
GROWTH_BAR_MB, GROWTH_AIM_MB = 300.0, 150.0

RUNS = (*dict.fromkeys(target.run for target in TARGETS), MEMORY)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        title: what is measured.
        output: of the loaders.
        bar, aim: as in Target.
        at_most: less is better; the figure is in 10**6 bytes, not a ratio.
        figure: median (of memory: the last), smallest and largest; None where it could not be measured.
        why_missing: why it could not.
        results: what a ratio is made from.
    """

    title: str
    output: Output
    bar: float
    aim: float | None
    at_most: bool
    figure: Spread | None
    why_missing: str | None = None
    results: tuple[Result, ...] = ()

    @classmethod
    def comparison(cls, target: Target, output: Output, results: tuple[Result, ...]) -> Row:
        """Return the row of a ratio.

        Args:
            target: of the ratio.
            output: of the loaders.
            results: of its two sides, measured in turns; empty where they cannot be.
        """
        figure = None
        if results:
            ratio = Ratio.between(*(result.measurement for result in results))
            figure = Spread(ratio.of_medians, ratio.min, ratio.max)
        return cls(target.title, output, target.bar, target.aim, False, figure, target.why_missing, results)

    @property
    def cpu_ratio(self) -> float | None:
        """The ratio that the CPU time per image comes to, which other processes hardly change; None for memory."""
        if not self.results:
            return None
        mine, other = (result.measurement.cpu_ms_per_image for result in self.results)
        return other / mine

    def reaches(self, limit: float | None) -> bool:
        """Return whether the figure is on the right side of a limit; False where either is missing."""
        if limit is None or self.figure is None:
            return False
        return self.figure.median <= limit if self.at_most else self.figure.median >= limit

    def cells(self) -> list[str]:
        """Return the cells of the table."""
        digits = 0 if self.at_most else 2
        shown = ""
        if self.figure is not None:
            median, smallest, largest = (f"{value:.{digits}f}" for value in asdict(self.figure).values())
            shown = f"{median} ({smallest}-{largest})"
        by_cpu = "" if self.cpu_ratio is None else f"{self.cpu_ratio:.2f}"
        limits = ["" if limit is None else f"{limit:.{digits}f}" for limit in (self.bar, self.aim)]
        return [self.title + "*" * self.is_disturbed, shown, by_cpu, *limits, self.verdict()]

    @property
    def is_disturbed(self) -> bool:
        """Whether a ratio is made from disturbed rounds."""
        return any(result.measurement.disturbed_rounds for result in self.results)

    def verdict(self) -> str:
        """Return the best that is met in a word; a dash where there is no figure."""
        if self.figure is None:
            return "-"
        return "aim" if self.reaches(self.aim) else "bar" if self.reaches(self.bar) else "no"

    def record(self, machine: str) -> dict[str, Any]:
        """Return a record of the JSON file."""
        return {
            "title": self.title,
            "output": self.output,
            "figure": None if self.figure is None else asdict(self.figure),
            "cpu_ratio": self.cpu_ratio,
            "unit": "MB" if self.at_most else "ratio",
            "bar": self.bar,
            "aim": self.aim,
            "met": None if self.figure is None else self.reaches(self.bar),
            "why_missing": self.why_missing,
            "cells": [result.record(machine) for result in self.results],
            "disturbed_rounds": sum(result.measurement.disturbed_rounds for result in self.results),
            "machine": machine,
        }
