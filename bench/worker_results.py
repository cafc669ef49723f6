"""What bench/num_workers.py shows: records, tables, knees in sentences, and charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from markupsafe import Markup

from bench.charts import Line, count_chart
from bench.measure import Measurement, Spread
from bench.page import Section
from bench.reports import Report
from bench.tables import Sheet
from bench.throughput_results import memory_legend, roofline_fraction
from bench.variants import split_name
from bench.worker_cells import Setting
from bench.worker_knee import Point, explain, explain_depth, knee
from loaders.cores import usable_cores
from loaders.wording import plural

_HEADINGS = (
    "loader",
    "prefetch",
    "workers",
    "images/s",
    "of best",
    "knee",
    "cpu-ms",
    "busy",
    "MB",
    "first s",
    "others",
)
_TRAINING_HEADINGS = ("waits", "loading")
_RATES, _MEMORY = "Images per second", "Peak memory"


@dataclass(frozen=True)
class Result:
    """The figures of one setting.

    What decides is measured in the undisturbed rounds, where there are any: one odd round moves a knee.
    """

    setting: Setting
    measurement: Measurement

    @cached_property
    def undisturbed(self) -> Measurement:
        return self.measurement.undisturbed()

    @property
    def rate(self) -> Spread:
        return self.undisturbed.images_per_second

    @property
    def peak_mb(self) -> Spread:
        """See bench.measure.Round; it only grows, so that the last round's is the whole cell's."""
        return Spread.of([self.measurement.peak_rss_mb])

    @property
    def wait_fraction(self) -> float | None:
        """Share of the time that training waited for data, the rounds taken together; None where nothing trained."""
        if not self.setting.model:
            return None
        rounds = self.undisturbed.rounds
        return sum(turn.wait_seconds for turn in rounds) / sum(turn.seconds for turn in rounds)

    @property
    def loading_cpu_fraction(self) -> float | None:
        """Share of the CPU time that was not the training's, the rounds taken together; None where nothing trained."""
        if not self.setting.model:
            return None
        rounds = self.undisturbed.rounds
        spent = sum(turn.cpu_seconds for turn in rounds)
        return max(0.0, 1 - sum(turn.trainer_cpu_seconds for turn in rounds) / spent)

    def point(self) -> Point:
        busy = roofline_fraction(self.undisturbed)
        others = self.undisturbed.foreign_cpu.median
        return Point(self.rate, busy, others, self.wait_fraction, self.loading_cpu_fraction)

    def record(self, machine: str, is_knee: bool) -> dict[str, Any]:
        """Return a record of the JSON file."""
        loader, variant = split_name(self.setting.loader)
        return {
            **asdict(self.setting),
            "loader": loader,
            "variant": variant,
            **self.measurement.record(),
            "undisturbed_images_per_second": asdict(self.rate),
            "roofline_fraction": roofline_fraction(self.undisturbed),
            "wait_fraction": self.wait_fraction,
            "loading_cpu_fraction": self.loading_cpu_fraction,
            "knee": is_knee,
            "machine": machine,
        }


@dataclass(frozen=True)
class Curve:
    """Results that differ only in the number of workers, in rising order of it."""

    results: tuple[Result, ...]

    @property
    def setting(self) -> Setting:
        """The first result's."""
        return self.results[0].setting

    @property
    def knee(self) -> Result:
        chosen = knee({result.setting.num_workers: result.rate for result in self.results})
        return next(result for result in self.results if result.setting.num_workers == chosen)


def curves(results: Sequence[Result]) -> list[Curve]:
    """Return the results by loader, prefetch depth, resolution and model."""
    found: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        setting = result.setting
        key = setting.model, setting.resolution, setting.loader, setting.prefetch
        found.setdefault(key, []).append(result)
    return [Curve(tuple(sorted(group, key=lambda r: r.setting.num_workers))) for group in found.values()]


def _by_title(results: Sequence[Result]) -> dict[str, list[Curve]]:
    """Return the curves under what they share: the resolution, and what trains."""
    titled: dict[str, list[Curve]] = {}
    for curve in curves(results):
        setting = curve.setting
        work = f"while {setting.model} trains" if setting.model else "alone"
        titled.setdefault(f"{setting.resolution} px, {work}", []).append(curve)
    return titled


def _sentences(of_title: Sequence[Curve]) -> Iterator[str]:
    several = len({curve.setting.prefetch for curve in of_title}) > 1
    for curve in of_title:
        points = {result.setting.num_workers: result.point() for result in curve.results}
        yield _name(curve, several) + ": " + explain(points, usable_cores())
    for loader in dict.fromkeys(curve.setting.loader for curve in of_title) if several else ():
        chosen = [curve.knee for curve in of_title if curve.setting.loader == loader]
        yield f"{loader}: {explain_depth({result.setting.prefetch: result.rate for result in chosen})}"


def _name(curve: Curve, with_prefetch: bool) -> str:
    return curve.setting.loader + f", prefetch {curve.setting.prefetch}" * with_prefetch


def _sheet(title: str, of_title: Sequence[Curve]) -> Sheet:
    trains = bool(of_title[0].setting.model)
    rows = [_row(result, curve) for curve in of_title for result in curve.results]
    return Sheet(title, _HEADINGS + _TRAINING_HEADINGS * trains, rows)


def _row(result: Result, curve: Curve) -> list[str]:
    measured, rate, setting = result.measurement, result.rate, result.setting
    best = max(other.rate.median for other in curve.results)
    row = [
        setting.loader,
        str(setting.prefetch),
        str(setting.num_workers),
        f"{rate.median:.0f} ({rate.min:.0f}-{rate.max:.0f})",
        f"{rate.median / best:.0%}",
        "knee" if result is curve.knee else "",
        f"{result.undisturbed.cpu_ms_per_image:.2f}",
        f"{roofline_fraction(result.undisturbed):.0%}",
        f"{measured.peak_rss_mb:.0f}",
        f"{measured.seconds_to_first_batch:.1f}",
        f"{measured.foreign_cpu.max:.0%}" + "*" * (measured.disturbed_rounds > 0),
    ]
    shares = (result.wait_fraction, result.loading_cpu_fraction)
    return row + [f"{share:.0%}" for share in shares if share is not None]


def reports(results: Sequence[Result], machine: str, note: str = "") -> list[Report]:
    """Return sentences, charts of rate and memory, and a table for each resolution, alone and while a model trains.

    Args:
        results: what was measured.
        machine: where.
        note: what is to be said besides of the columns.
    """
    colors = {name: number for number, name in enumerate(dict.fromkeys(result.setting.loader for result in results))}
    found = []
    for title, of_title in _by_title(results).items():
        sheets = [_sheet(title, of_title)]
        section = Section(title, list(_sentences(of_title)), _charts(title, of_title, colors), sheets)
        records = [result.record(machine, result is curve.knee) for curve in of_title for result in curve.results]
        found.append(Report(sheets, records, section, "\n".join(filter(None, (legend(), note)))))
    return found


def _charts(title: str, of_title: Sequence[Curve], colors: Mapping[str, int]) -> list[tuple[str, Markup]]:
    """Return captions and charts of rate and memory: of all loaders, or of each where prefetch depths are compared."""
    if len({curve.setting.prefetch for curve in of_title}) == 1:
        named = {"": [(curve.setting.loader, colors[curve.setting.loader], curve) for curve in of_title]}
    else:
        named = {
            f", {loader}": [
                (f"prefetch {curve.setting.prefetch}", number, curve)
                for number, curve in enumerate(c for c in of_title if c.setting.loader == loader)
            ]
            for loader in dict.fromkeys(curve.setting.loader for curve in of_title)
        }
    charts = []
    for whose, shown in named.items():
        rates = [
            Line(
                name,
                [(result.setting.num_workers, result.rate) for result in curve.results],
                color,
                curve.knee.setting.num_workers,
                plural(curve.knee.setting.num_workers, "worker"),
            )
            for name, color, curve in shown
        ]
        memory = [
            Line(name, [(result.setting.num_workers, result.peak_mb) for result in curve.results], color)
            for name, color, curve in shown
        ]
        for of, lines, unit in ((_RATES, rates, "images/s"), (_MEMORY, memory, "MB")):
            caption = f"{of}{whose}, {title}" + " (ring: the knee)" * (of == _RATES)
            charts.append((caption, count_chart(lines, title=caption, x_name="workers", unit=unit)))
    return charts


def legend() -> str:
    """Return what the columns of the tables mean."""
    return (
        "prefetch: batches in flight. images/s: median (smallest-largest) over the rounds. of best: its share of it. "
        "All but others: without the rounds that others disturbed, where there are undisturbed ones.\n"
        "knee: the fewest workers within 5 % of the best, or within the best one's spread and 10 % of it.\n"
        "cpu-ms: of all processes, per image, training included. busy: share of the usable cores' time that this is.\n"
        f"{memory_legend()} first s: from opening to the first batch, with the start of training.\n"
        "others: largest share of the usable cores' CPU time that went to other processes in a round.\n"
        "waits: share of the time that training waits for data. loading: share of the CPU time that is not training's."
    )
