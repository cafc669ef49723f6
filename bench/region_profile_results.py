"""What bench/region_profile.py shows: the cost of each step of the region loader, as records, tables and a chart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.charts import Stack, stack_chart
from bench.page import Section
from bench.reports import Report
from bench.tables import Sheet

STEPS = ("batch", "read, check", "header", "cut", "decoder", "decode", "resample", "color")
TOTALS = ("sum", "whole", "rest")


@dataclass(frozen=True)
class Times:
    """CPU times of one thread over repetitions, in ms per image: the smallest and the median."""

    min: float
    median: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Times:
        return cls(min(values), statistics.median(values))

    def __add__(self, other: Times) -> Times:
        return Times(self.min + other.min, self.median + other.median)

    def __sub__(self, other: Times) -> Times:
        return Times(self.min - other.min, self.median - other.median)

    def __str__(self) -> str:
        return f"{1000 * self.min:.1f} ({1000 * self.median:.1f})"


@dataclass(frozen=True)
class Profile:
    """What the steps take for one set and one size.

    Attributes:
        loader: with its variant.
        resolution: of the results, pixels.
        images: what was measured over.
        left_out: images of the set that the compiled code leaves to Pillow.
        times: of STEPS and TOTALS, by name.
    """

    loader: str
    resolution: int
    images: int
    left_out: int
    times: dict[str, Times]


def report(profiles: Sequence[Profile], machine: str) -> Report:
    """Return a table for each size, a column for each set, a chart, and a sentence on what was measured over."""
    tables = _sheets(profiles)
    found = [record for profile in profiles for record in records(profile, machine)]
    caption = "CPU time of one thread for each image, by step"
    chart = stack_chart(_stacks(profiles), STEPS, title=caption, unit="µs per image")
    section = Section("Where the region loader's time goes", [notes(profiles)], [(caption, chart)], tables)
    return Report(tables, found, section)


def _stacks(profiles: Sequence[Profile]) -> list[Stack]:
    """Return a bar for each set at each size; a step that came out below 0 by chance is 0."""
    return [
        Stack(profile.loader, [max(0.0, 1000 * profile.times[step].min) for step in STEPS], f"{profile.resolution} px")
        for profile in sorted(profiles, key=lambda profile: profile.resolution)
    ]


def _sheets(profiles: Sequence[Profile]) -> list[Sheet]:
    tables = []
    for resolution in dict.fromkeys(profile.resolution for profile in profiles):
        chosen = [profile for profile in profiles if profile.resolution == resolution]
        rows = [[name, *(str(profile.times[name]) for profile in chosen)] for name in (*STEPS, *TOTALS)]
        headings = ("µs per image", *(profile.loader for profile in chosen))
        tables.append(Sheet(f"{resolution} px, CPU time of one thread: the least (median)", headings, rows))
    return tables


def notes(profiles: Sequence[Profile]) -> str:
    """Return what was measured over."""
    over = {profile.loader: profile for profile in profiles}.values()
    return "; ".join(
        f"{profile.loader}: {profile.images} images"
        + (f", {profile.left_out} left out that go the way over Pillow" if profile.left_out else "")
        for profile in over
    )


def records(profile: Profile, machine: str) -> list[dict[str, Any]]:
    """Return the records of the JSON file, one for each step and total."""
    return [
        {
            "loader": profile.loader,
            "resolution": profile.resolution,
            "images": profile.images,
            "step": step,
            "cpu_ms_per_image": {"min": times.min, "median": times.median},
            "machine": machine,
        }
        for step, times in profile.times.items()
    ]
