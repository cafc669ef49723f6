"""Data stall: how much slower a model trains on a loader's images than on synthetic ones, which cost nothing.

The stall is ``1 - rate / rate on synthetic images`` within a round, whose runs take turns epoch by epoch; name and
method are those of Mohan et al., "Analyzing and Mitigating Data Stalls in DNN Training" (VLDB 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from bench.charts import Bar, bar_chart
from bench.measure import Spread
from bench.page import Section
from bench.tables import Sheet
from bench.training_runs import Outcome, Run

SYNTHETIC = "synthetic"
_LOADING, _NO_LOADING = 0, 7  # colors
HEADINGS = ("loader", "images/s", "data stall", "waiting", "others")

Cells = Mapping[tuple[int, str], Sequence[Run]]  # the runs of each resolution and loader, one for each round


@dataclass(frozen=True)
class Result:
    """One loader at one resolution.

    Attributes:
        loader: its name.
        resolution: of the images, pixels.
        outcomes: one for each round.
        synthetic: those of the synthetic loader, in the same rounds.
    """

    loader: str
    resolution: int
    outcomes: Sequence[Outcome]
    synthetic: Sequence[Outcome]

    @property
    def images_per_second(self) -> Spread:
        return Spread.of([outcome.images_per_second for outcome in self.outcomes])

    @property
    def data_wait_fraction(self) -> Spread:
        return Spread.of([outcome.data_wait_fraction for outcome in self.outcomes])

    @property
    def stall(self) -> Spread:
        """Of each round, as a fraction; below 0 only by chance."""
        pairs = zip(self.outcomes, self.synthetic, strict=True)
        return Spread.of([1 - mine.images_per_second / theirs.images_per_second for mine, theirs in pairs])

    def record(self, machine: str) -> dict[str, Any]:
        """Return a record of the JSON file."""
        config = self.outcomes[0].config
        return {
            "experiment": "stall",
            "loader": self.loader,
            "resolution": self.resolution,
            "model": config.model.model,
            "batch_size": config.optimizer.batch_size,
            "amp": config.model.amp,
            "device": config.run.device,
            "num_workers": config.loader.num_workers,
            "threads": config.run.threads,
            "images_per_second": asdict(self.images_per_second),
            "stall": asdict(self.stall),
            "data_wait_fraction": asdict(self.data_wait_fraction),
            "foreign_cpu": asdict(Spread.of([outcome.foreign_cpu for outcome in self.outcomes])),
            "disturbed_rounds": sum(outcome.is_disturbed for outcome in self.outcomes),
            "rounds": [outcome.images_per_second for outcome in self.outcomes],
            "machine": machine,
        }


def plan(
    arguments: Sequence[str], loaders: Sequence[str], resolutions: Sequence[int], rounds: int, epochs: int
) -> Cells:
    """Return the runs to make.

    Args:
        arguments: of engine.train, for all runs.
        loaders: names; the synthetic one is added.
        resolutions: of the images, pixels.
        rounds: runs of each.
        epochs: of a run; the first does not count.
    """

    def run(resolution: int, loader: str, number: int) -> Run:
        options = ("--loader", loader, "--resolutions", str(resolution), "--epochs", str(epochs), "--seed", str(number))
        turn = f"{resolution} px, round {number + 1}"
        return Run(f"{loader}, {turn}", (*arguments, *options), epochs, group=turn)

    return {
        (resolution, loader): [run(resolution, loader, number) for number in range(rounds)]
        for resolution in resolutions
        for loader in dict.fromkeys([SYNTHETIC, *loaders])
    }


def in_turns(cells: Cells) -> list[list[Run]]:
    """Return the runs of each round."""
    return [list(turn) for turn in zip(*cells.values(), strict=True)]


def results(cells: Cells, outcomes: Mapping[Run, Outcome]) -> list[Result]:
    """Return a result for each cell, of the rounds that are done."""
    done = {cell: [outcomes[run] for run in runs if run in outcomes] for cell, runs in cells.items()}
    rounds = min(map(len, done.values()))
    return [
        Result(loader, resolution, mine[:rounds], done[resolution, SYNTHETIC][:rounds])
        for (resolution, loader), mine in done.items()
        if rounds
    ]


def _by_resolution(results: Sequence[Result]) -> Iterator[tuple[int, list[Result]]]:
    for resolution, group in groupby(results, key=lambda result: result.resolution):
        yield resolution, list(group)


def sheets(results: Sequence[Result]) -> list[Sheet]:
    """Return a table for each resolution."""
    return [
        Sheet(f"Data stall, {resolution} px", HEADINGS, [_row(result) for result in group])
        for resolution, group in _by_resolution(results)
    ]


def _row(result: Result) -> list[str]:
    rate, stall, wait = result.images_per_second, result.stall, result.data_wait_fraction
    others = [outcome.foreign_cpu for outcome in result.outcomes]
    return [
        result.loader,
        f"{rate.median:.1f} ({rate.min:.1f}-{rate.max:.1f})",
        "" if result.loader == SYNTHETIC else f"{stall.median:.1%} ({stall.min:.1%} to {stall.max:.1%})",
        f"{wait.median:.1%}",
        f"{max(others):.0%}" + "*" * any(outcome.is_disturbed for outcome in result.outcomes),
    ]


def section(results: Sequence[Result]) -> Section:
    """Return the part of the page: the stall and the rates, with the tables."""
    several = len({result.resolution for result in results}) > 1

    def bar(result: Result, value: Spread) -> Bar:
        color = _NO_LOADING if result.loader == SYNTHETIC else _LOADING
        return Bar(result.loader, value, color, f"{result.resolution} px" * several)

    stalls = [bar(result, _percent(result.stall)) for result in results if result.loader != SYNTHETIC]
    rates = [bar(result, result.images_per_second) for result in results]
    lost = "Data stall: what of the rate on synthetic images is lost"
    trained = "Images per second of training"
    charts = [
        (lost, bar_chart(stalls, title=lost, unit="% of the rate on synthetic images")),
        (trained, bar_chart(rates, title=trained, unit="images/s")),
    ]
    return Section("Data stall", sentences(results), charts, sheets(results))


def _percent(stall: Spread) -> Spread:
    """Return a stall in percent."""
    return Spread(*(100 * value for value in (stall.median, stall.min, stall.max)))


def sentences(results: Sequence[Result]) -> list[str]:
    """Say for each resolution which loader stalls the model least."""
    found = []
    for resolution, group in _by_resolution(results):
        real = [result for result in group if result.loader != SYNTHETIC]
        if real:
            best = min(real, key=lambda result: result.stall.median)
            disturbed = any(outcome.is_disturbed for result in group for outcome in result.outcomes)
            found.append(
                f"At {resolution} px {best.loader} comes closest to synthetic images: training loses "
                f"{max(0.0, best.stall.median):.1%} of its rate to data"
                + (", as far as other processes let it be seen." if disturbed else ".")
            )
    return found


def legend() -> str:
    """Return what the columns mean."""
    return (
        "images/s: of training steps, without evaluation and without the first epoch; median (smallest-largest) over "
        "the rounds.\n"
        "data stall: 1 - images/s over that on synthetic images, within a round, whose runs take turns epoch by epoch; "
        "median (smallest to largest) over the rounds.\n"
        "waiting: share of the training time in which a step waited for its batch. On a CPU a loader also takes cores "
        "from the model, so that the stall is more than the waiting."
    )
