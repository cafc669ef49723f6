"""The region loader against FFCV and DALI, beside what it has to reach.

    python bench/region_speed.py --data DIR

What is compared is measured in turns, in one run: images of 224 pixels (``224``); of 128; of 160; of 128 and 224 with a
smaller version of each image, a rendition (``sizes``); one thread and two (``threads``). ``memory`` is the resident
anonymous memory that a process gains between its imports and steady delivery.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from markupsafe import Markup
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/region_speed.py`

from bench.charts import Bar, Key, bar_chart
from bench.measure import Spread, measure, progress_bar, turns
from bench.options import add_measuring, add_reports, command_line, listed, positive, shown_command
from bench.own_process import call_apart
from bench.page import Section
from bench.peers import Output, Work
from bench.program import run_program
from bench.region_targets import GROWTH, GROWTH_AIM_MB, GROWTH_BAR_MB, MEMORY, RUNS, TARGETS, Row, Side, Target
from bench.reports import Report, write_reports
from bench.resources import MEGABYTE, describe_machine
from bench.tables import Sheet
from bench.throughput import OUTPUTS, Result, cell, long_epoch, own_images
from bench.variants import prepare
from loaders.dataset import ImageDataset
from loaders.opening import DataError, open_data
from loaders.packed import PackedDataset

_STATUS = Path("/proc/self/status")
_HEADINGS = ("stored as / against", "measured", "by CPU", "bar", "aim", "met")
_RATE_HEADINGS = ("loader", "px", "threads", "images/s", "cpu-ms", "others")


class Bench:
    """The data in every form that is needed, and how to measure.

    Args:
        options: the command line's.

    Raises:
        DataError, PackError, LoaderError, ImportError: there are no data, or they cannot be had in a form.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        data = open_data(options.data)
        if isinstance(data.train, PackedDataset):
            raise DataError(f"{data.name} is packed; what the region loader is compared with reads image files")
        self.options = options
        self.dataset: ImageDataset = long_epoch(data.train)
        self.targets = [target for target in TARGETS if target.run in options.runs]
        sides = sides_of(self.targets) + [GROWTH] * (MEMORY in options.runs and not GROWTH.why_missing)
        self.folders = {name: prepare(name, data, self.dataset) for name in dict.fromkeys(side.name for side in sides)}

    def work(self, side: Side, output: Output) -> Work:
        """Return what one side of a comparison is to do."""
        options = self.options
        return Work(self.dataset, side.resolution, options.batch_size, side.num_workers, output, options.device)

    def turns(self) -> int:
        """Return how many steps the progress bar has."""
        cells = sum(len(sides_of(targets)) for targets in self._by_run())
        return (turns(cells, self.options.rounds) + (MEMORY in self.options.runs)) * len(self.options.output)

    def rows(self, progress: tqdm[Any]) -> Iterator[list[Row]]:
        """Measure; yield the rows of each run when it is done."""
        for output in self.options.output:
            for targets in self._by_run():
                yield self._compare(targets, output, progress)
            if MEMORY in self.options.runs:
                progress.set_postfix_str("memory")
                yield [self._grow(output)]
                progress.update()

    def _by_run(self) -> list[list[Target]]:
        return [[t for t in self.targets if t.run == run] for run in dict.fromkeys(t.run for t in self.targets)]

    def _compare(self, targets: Sequence[Target], output: Output, progress: tqdm[Any]) -> list[Row]:
        works = {side: self.work(side, output) for side in sides_of(targets)}
        cells = [cell(side.name, work, self.folders[side.name]) for side, work in works.items()]
        measured = measure(cells, rounds=self.options.rounds, seconds=self.options.seconds, progress=progress)
        results = {
            side: Result(side.name, work, measurement, {})
            for (side, work), measurement in zip(works.items(), measured, strict=True)
        }
        return [
            Row.comparison(target, output, () if target.why_missing else (results[target.side], results[target.other]))
            for target in targets
        ]

    def _grow(self, output: Output) -> Row:
        growth, missing = None, GROWTH.why_missing
        if not missing:
            arguments = (GROWTH.name, self.work(GROWTH, output), self.folders[GROWTH.name])
            growth = call_apart("memory", grow, *arguments, self.options.rounds, self.options.seconds)
        figure = Spread(growth[-1], min(growth), max(growth)) if growth else None  # the last round's is steady
        return Row("private memory gained, MB", output, GROWTH_BAR_MB, GROWTH_AIM_MB, True, figure, missing)


def sides_of(targets: Sequence[Target]) -> list[Side]:
    """Return what has to be measured for comparisons, each side once, without those that cannot be made here."""
    pairs = [(target.side, target.other) for target in targets if not target.why_missing]
    return list(dict.fromkeys(side for pair in pairs for side in pair))


def grow(name: str, work: Work, packed: Path | None, rounds: int, seconds: float) -> list[float]:
    """Deliver images in this process; return what it has gained since its imports after each round, 10**6 bytes."""
    importlib.import_module("loaders.roi_backend")  # with all that it imports, as creating the loader would
    before = private_mb()
    growth = []
    with closing(own_images(name, work, packed)) as batches:
        for _ in range(rounds):
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                next(batches)
            growth.append(private_mb() - before)
    return growth


def private_mb() -> float:
    """Return this process's resident anonymous memory in 10**6 bytes: no mapped file counts (proc(5), RssAnon)."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024 / MEGABYTE


def reports(rows: Sequence[Row], machine: str) -> list[Report]:
    """Return for each output a table of the rows, a chart of them, and a table of the rates that they are made from."""
    found = []
    for output in dict.fromkeys(row.output for row in rows):
        chosen = [row for row in rows if row.output == output]
        sheets = [Sheet(f"{output}, what is to be reached", _HEADINGS, [row.cells() for row in chosen])]
        rates = [rate_cells(result) for result in results_of(chosen)]
        if rates:
            sheets.append(Sheet(f"{output}, rates", _RATE_HEADINGS, rates))
        missing = dict.fromkeys(f"Not measured: {row.why_missing}." for row in chosen if row.why_missing)
        section = Section(f"The region loader, {output}", list(missing), _charts(chosen, output), sheets)
        records = [row.record(machine) for row in chosen]
        found.append(Report(sheets, records, section))
    return found


def _charts(rows: Sequence[Row], output: Output) -> list[tuple[str, Markup]]:
    """Return the chart of ratios, with what they are to reach; none where nothing could be measured."""
    bars = [
        Bar(row.title, row.figure, 0, limits=(row.bar, row.aim))
        for row in rows
        if row.figure is not None and not row.at_most
    ]
    caption = f"How many times as fast, {output}: of median rates, and within single rounds"
    key = (Key("bar", limit=0), Key("aim", limit=1))
    return [(caption, bar_chart(bars, title=caption, unit="ratio of rates", key=key))] if bars else []


def results_of(rows: Sequence[Row]) -> list[Result]:
    """Return what the rows are made from, each once, in the order measured."""
    return list({id(result): result for row in rows for result in row.results}.values())


def rate_cells(result: Result) -> list[str]:
    """Return a result's row of the table of rates."""
    measured = result.measurement
    rate = measured.images_per_second
    return [
        result.loader,
        str(result.work.resolution),
        str(result.work.num_workers),
        f"{rate.median:.0f} ({rate.min:.0f}-{rate.max:.0f})",
        f"{measured.cpu_ms_per_image:.2f}",
        f"{measured.foreign_cpu.max:.0%}" + "*" * (measured.disturbed_rounds > 0),
    ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line("region_speed", __doc__)
    add = parser.add_argument
    add("--data", default="demo", help="a folder of photos, demo, or a known data set's name")
    add("--runs", type=listed(str, RUNS), default=",".join(RUNS), help=f"of {', '.join(RUNS)}")
    add("--batch-size", type=positive, default=64, help="images of a batch")
    add("--output", type=listed(str, OUTPUTS), default=",".join(OUTPUTS), help="bytes, or normalized on the device")
    add_measuring(parser)
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("region_speed", argv)
    return options


def run(options: argparse.Namespace) -> list[Report]:
    """Measure what the command line asks for, writing the files as results come in.

    Raises:
        CellError: a loader failed.
        DataError, PackError, LoaderError, ImportError: as from `Bench`.
    """
    bench = Bench(options)
    machine = describe_machine()
    rows: list[Row] = []
    with progress_bar(bench.turns()) as progress:
        for of_run in bench.rows(progress):
            rows += of_run
            write_reports(options, "The region loader", reports(rows, machine), machine)
    return reports(rows, machine)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the files; return the exit code."""
    return run_program(parse(argv), run)


if __name__ == "__main__":
    sys.exit(main())
