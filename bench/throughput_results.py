"""What bench/throughput.py shows: figures of one loader at one piece of work, as records, tables and charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from bench.charts import Bar, Key, bar_chart
from bench.measure import Measurement, Ratio
from bench.page import Section
from bench.peers import PEERS, Output, Work
from bench.reports import Report
from bench.tables import Sheet
from bench.variants import split_name, workers_of
from loaders.cores import usable_cores
from loaders.wording import plural

HEADINGS = ("loader", "workers", "images/s", "ratio", "to", "cpu-ms", "roof", "kB", "MB", "first s", "others")
_RATIO_COLUMNS = slice(3, 5)  # left out where nothing is compared
_OURS, _THEIRS = 0, 7  # colors


@dataclass(frozen=True)
class Result:
    """One loader's figures for one piece of work.

    Attributes:
        loader: its name, with its variant.
        work: what it did.
        measurement: how it did.
        ratios: to each peer measured beside it.
        bytes_per_image: what it reads for an image, at most; 0 where that does not matter.
    """

    loader: str
    work: Work
    measurement: Measurement
    ratios: dict[str, Ratio]
    bytes_per_image: float = 0.0

    @property
    def workers_used(self) -> int:
        """Processes or threads in place of the workers asked for."""
        return workers_of(self.loader, self.work.num_workers)

    @property
    def roofline_fraction(self) -> float:
        """The rate as a share of what the cores could do if they did nothing else: cores x 1000 / cpu-ms."""
        return roofline_fraction(self.measurement)

    def record(self, machine: str) -> dict[str, Any]:
        """Return a record of the JSON file."""
        loader, variant = split_name(self.loader)
        return {
            "loader": loader,
            "variant": variant,
            "num_workers": self.work.num_workers,
            "workers_used": self.workers_used,
            "resolution": self.work.resolution,
            "batch_size": self.work.batch_size,
            "output": self.work.output,
            "device": self.work.device,
            **self.measurement.record(),
            "bytes_per_image": self.bytes_per_image,
            "roofline_fraction": self.roofline_fraction,
            "ratios": {peer: asdict(ratio) for peer, ratio in self.ratios.items()},
            "machine": machine,
        }


def roofline_fraction(measurement: Measurement) -> float:
    """Return a rate as a share of what the usable cores could do at this CPU time per image: 1 when all are busy."""
    return measurement.images_per_second.median * measurement.cpu_ms_per_image / 1000 / usable_cores()


def run_of(work: Work) -> tuple[Output, int, int]:
    """Return what is the same for everything that is measured in turns."""
    return work.output, work.resolution, work.batch_size


def by_run(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the results under the title of their run."""
    several = len({result.work.batch_size for result in results}) > 1
    titled: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: run_of(result.work)):
        work = result.work
        title = f"{work.output}, {work.resolution} px" + f", batches of {work.batch_size}" * several
        titled.setdefault(title, []).append(result)
    return titled


def reports(results: Sequence[Result], machine: str) -> list[Report]:
    """Return a chart, a table and the records of each output, resolution and batch size."""
    found = []
    for title, group in by_run(results).items():
        ranked = sorted(group, key=lambda r: (r.work.num_workers, -r.measurement.images_per_second.median))
        sheets = [_sheet(title, ranked)]
        records = [result.record(machine) for result in group]
        caption = f"Images per second, {title}: median, and from smallest to largest"
        section = Section(title, (), [(caption, _chart(title, ranked))], sheets)
        found.append(Report(sheets, records, section, legend()))
    return found


def _sheet(title: str, results: Sequence[Result]) -> Sheet:
    headings, rows = list(HEADINGS), [line for result in results for line in lines(result)]
    if not any(result.ratios for result in results):
        for row in (headings, *rows):
            del row[_RATIO_COLUMNS]
    return Sheet(title, tuple(headings), rows)


def _chart(title: str, results: Sequence[Result]) -> Markup:
    several = len({result.work.num_workers for result in results}) > 1
    bars = [
        Bar(
            result.loader,
            result.measurement.images_per_second,
            _THEIRS if result.loader in PEERS else _OURS,
            plural(result.work.num_workers, "worker") * several,
        )
        for result in results
    ]
    key = (Key("Headrace", _OURS), Key("others in their plain form", _THEIRS))
    mixed = len({bar.color for bar in bars}) > 1
    return bar_chart(bars, title=f"Images per second: {title}", unit="images/s", key=key if mixed else ())


def lines(result: Result) -> list[list[str]]:
    """Return a result's row of its table, and one more for each further peer that it is compared with."""
    measured = result.measurement
    rate, asked = measured.images_per_second, result.work.num_workers
    ratios = [
        [f"{ratio.of_medians:.2f} ({ratio.min:.2f}-{ratio.max:.2f})", peer] for peer, ratio in result.ratios.items()
    ] or [["", ""]]
    first = [
        result.loader,
        str(asked) if asked == result.workers_used else f"{asked} ({result.workers_used})",
        f"{rate.median:.0f} ({rate.min:.0f}-{rate.max:.0f})",
        *ratios[0],
        f"{measured.cpu_ms_per_image:.2f}",
        f"{result.roofline_fraction:.0%}",
        f"{result.bytes_per_image / 1000:.1f}",
        f"{measured.peak_rss_mb:.0f}",
        f"{measured.seconds_to_first_batch:.1f}",
        f"{measured.foreign_cpu.max:.0%}" + "*" * (measured.disturbed_rounds > 0),
    ]
    rest = [""] * (len(first) - 5)
    return [first, *(["", "", "", *ratio, *rest] for ratio in ratios[1:])]


def legend() -> str:
    """Return what the columns of the tables mean."""
    return (
        "workers: as asked for; in brackets the threads in their place, of which a loader has at least one and no more "
        "than there are cores. images/s: median (smallest-largest) over the rounds.\n"
        "ratio: of the medians, to the peer named beside it (smallest-largest within a round).\n"
        "cpu-ms: of all processes, per image. roof: images/s as a share of what all cores could do at these cpu-ms.\n"
        "kB: mean size of the file or record that is read for an image; of a record FFCV's loaders may read less.\n"
        f"{memory_legend()} first s: from opening to the first batch.\n"
        "others: largest share of the usable cores' CPU time that went to other processes in a round."
    )


def memory_legend() -> str:
    """Return what the column MB means."""
    return (
        "MB: the largest resident memory that the cell's process had since it began, plus that of each of its worker "
        "processes without the pages that it shares."
    )
