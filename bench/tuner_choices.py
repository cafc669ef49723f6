"""What bench/tuner.py compares: training with each number of workers and with the one that the tuner finds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal, get_args

from bench.charts import Bar, Key, bar_chart
from bench.measure import Spread
from bench.page import Section
from bench.reports import Report
from bench.tables import Sheet
from bench.training_runs import LOG, Outcome, Run, oldest, settled
from bench.worker_knee import SPREAD_TOLERANCE, TOLERANCE, knee
from engine.curves import training_rate
from loaders.wording import plural

Situation = Literal["loading", "model"]  # what is the limit
SITUATIONS: tuple[Situation, ...] = get_args(Situation)
AUTO = 0  # in place of a number of workers

_TITLES: dict[Situation, str] = {"loading": "Loading is the limit", "model": "The model is the limit"}


@dataclass(frozen=True)
class Case:
    """Where the tuner chooses.

    Attributes:
        situation: what is the limit.
        model: a network that makes it so.
        resolution: side of its images, pixels.
        loader: its name.
        cores: that training and loading may use.
        numbers: of workers to compare with.
    """

    situation: Situation
    model: str
    resolution: int
    loader: str
    cores: int
    numbers: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.loader}, {plural(self.cores, 'core')}"

    @property
    def settings(self) -> tuple[int, ...]:
        return (*self.numbers, AUTO)


Cells = Mapping[tuple[Case, int], Sequence[Run]]  # the runs of each case and setting, one for each round


def plan(cases: Sequence[Case], arguments: Sequence[str], seconds: float, at_most: float, rounds: int) -> Cells:
    """Return the runs to make.

    Args:
        cases: what to compare.
        arguments: of engine.train, for all runs.
        seconds: of training that count.
        at_most: seconds of training after which a run is ended though fewer of them count.
        rounds: runs of each setting.
    """

    def run(case: Case, workers: int, number: int) -> Run:
        given = {
            "model": case.model,
            "resolutions": case.resolution,
            "loader": case.loader,
            "num-workers": workers or "auto",
            "seed": number,
        }
        options = (word for name, value in given.items() for word in (f"--{name}", str(value)))
        group = f"{case.situation}, {case.name}, round {number + 1}"
        name = f"{group}, {setting_name(workers)}"
        return Run(name, (*arguments, *options), 0, seconds, at_most, case.cores, group)

    return {
        (case, workers): [run(case, workers, number) for number in range(rounds)]
        for case in cases
        for workers in case.settings
    }


def setting_name(workers: int) -> str:
    """Return a setting in words."""
    return "auto" if workers == AUTO else plural(workers, "worker")


def in_turns(cells: Cells) -> list[list[Run]]:
    """Return the runs of each round."""
    return [list(turn) for turn in zip(*cells.values(), strict=True)]


def settled_rates(outcomes: Mapping[int, Outcome]) -> dict[int, float]:
    """Return images per second of each setting in a round.

    What counts are the epochs since the tuner has settled, and of the fixed numbers those between them, so that what
    else the machine did in that time fell on all alike. Where there is none, the last one of each counts.
    """
    counted = set.intersection(*({epoch["epoch"] for epoch in settled(run.epochs)} for run in outcomes.values()))
    return {
        workers: training_rate([epoch for epoch in run.epochs if epoch["epoch"] in counted] or run.epochs[-1:]) or 0.0
        for workers, run in outcomes.items()
    }


def decisions(outcome: Outcome) -> list[str]:
    """Return what a run's log says of its workers, a sentence for each decision."""
    text = (outcome.folder.parent / LOG).read_text(errors="replace")
    return [line.strip() for line in re.findall(r"Workers: ([^\r\n]+)", text)]


@dataclass(frozen=True)
class Result:
    """A case with what its runs brought.

    Attributes:
        case: what was compared.
        outcomes: of each setting, one for each round.
    """

    case: Case
    outcomes: Mapping[int, Sequence[Outcome]]

    @property
    def rounds(self) -> list[dict[int, float]]:
        """Images per second of each setting in each round, once the tuner has settled."""
        rounds = zip(*self.outcomes.values(), strict=True)
        return [settled_rates(dict(zip(self.outcomes, runs, strict=True))) for runs in rounds]

    @property
    def counted(self) -> list[int]:
        """The rounds that decide: those in which no run was disturbed, where there are any."""
        rounds = [any(outcome.is_disturbed for outcome in runs) for runs in zip(*self.outcomes.values(), strict=True)]
        undisturbed = [number for number, is_disturbed in enumerate(rounds) if not is_disturbed]
        return undisturbed or list(range(len(rounds)))

    @property
    def _counted_rounds(self) -> list[dict[int, float]]:
        rounds = self.rounds
        return [rounds[number] for number in self.counted]

    @property
    def rates(self) -> dict[int, Spread]:
        """Images per second of each setting, over the rounds that decide."""
        rounds = self._counted_rounds
        return {workers: Spread.of([rates[workers] for rates in rounds]) for workers in self.outcomes}

    @property
    def chosen(self) -> list[int]:
        """What the tuner chose in each round."""
        return [int(outcome.epochs[-1]["num_workers"]) for outcome in self.outcomes[AUTO]]

    @property
    def unsettled(self) -> int:
        """Rounds that ended before the tuner had settled."""
        return sum(not outcome.epochs[-1]["workers_settled"] for outcome in self.outcomes[AUTO])

    @property
    def best(self) -> int:
        """The number of workers with the highest median."""
        rates = self.rates
        return max(self.case.numbers, key=lambda number: rates[number].median)

    @property
    def enough(self) -> int:
        """The fewest workers within 5 % of the best, or within its spread and 10 % of it."""
        rates = self.rates
        return knee({number: rates[number] for number in self.case.numbers})

    @property
    def ratio(self) -> Spread:
        """Of the tuner's rate to the best number's, within the rounds that decide; its median is over these ratios."""
        best = self.best
        return Spread.of([rates[AUTO] / rates[best] for rates in self._counted_rounds])

    @property
    def chosen_ratio(self) -> Spread | None:
        """Of the rate with the number chosen, as a fixed one, to the best number's; None where it was not measured.

        What it differs by from ``ratio`` is chance and what a tuner costs after it has settled, which is nothing.
        """
        chosen = [self.chosen[number] for number in self.counted]
        if not self.outcomes.keys() >= set(chosen):
            return None
        best = self.best
        return Spread.of([rates[one] / rates[best] for one, rates in zip(chosen, self._counted_rounds, strict=True)])

    @property
    def verdict(self) -> str:
        """Whether the tuner's choice is as good as the best, in words.

        Beyond 5 % the ratios of the rounds have to lie on both sides of 1, and the median has to be within 10 %: one
        round in which the best number was slow says nothing of the others.
        """
        ratio = self.ratio
        if ratio.median >= 1 - TOLERANCE:
            return f"within {TOLERANCE:.0%}"
        is_close = ratio.median >= 1 - SPREAD_TOLERANCE and ratio.max >= 1
        return "within the spread" if is_close else "slower"

    @property
    def is_met(self) -> bool:
        """Whether it is as good, with a slow model by no more workers than needed."""
        fewest = self.case.situation == "loading" or max(self.chosen) <= self.enough
        return fewest and self.verdict != "slower"

    @property
    def all_outcomes(self) -> list[Outcome]:
        return [outcome for runs in self.outcomes.values() for outcome in runs]

    def record(self, machine: str) -> dict[str, Any]:
        """Return a record of the JSON file."""
        config = self.outcomes[AUTO][0].config
        return {
            "experiment": "tuner",
            **asdict(self.case),
            "batch_size": config.optimizer.batch_size,
            "device": config.run.device,
            "chosen": self.chosen,
            "unsettled": self.unsettled,
            "best": self.best,
            "enough": self.enough,
            "ratio": asdict(self.ratio),
            "chosen_ratio": asdict(self.chosen_ratio) if self.chosen_ratio else None,
            "verdict": self.verdict,
            "is_met": self.is_met,
            "images_per_second": {setting_name(workers): asdict(rate) for workers, rate in self.rates.items()},
            "rounds": {setting_name(workers): [rates[workers] for rates in self.rounds] for workers in self.outcomes},
            "counted_rounds": self.counted,
            "decisions": [decisions(outcome) for outcome in self.outcomes[AUTO]],
            "disturbed_rounds": sum(outcome.is_disturbed for outcome in self.all_outcomes),
            "machine": machine,
        }


def results(cells: Cells, outcomes: Mapping[Run, Outcome]) -> list[Result]:
    """Return a result for each case, of the rounds that are done."""
    rounds = min(sum(run in outcomes for run in runs) for runs in cells.values())
    if not rounds:
        return []
    done = {cell: [outcomes[run] for run in runs[:rounds]] for cell, runs in cells.items()}
    cases = dict.fromkeys(case for case, _ in cells)
    return [Result(case, {workers: done[case, workers] for workers in case.settings}) for case in cases]


def report(results: Sequence[Result], machine: str) -> Report:
    """Return tables, charts and sentences."""
    records = [result.record(machine) for result in results]
    sheets = [_sheet(situation, group) for situation, group in _by_situation(results)]
    charts = [_chart(situation, group) for situation, group in _by_situation(results)]
    section = Section("The tuner's choice", sentences(results), charts, sheets)
    runs = (outcome for result in results for outcome in result.all_outcomes)
    return Report(sheets, records, section, _legend(), oldest(runs))


def _by_situation(results: Sequence[Result]) -> Iterator[tuple[Situation, list[Result]]]:
    for situation, group in groupby(results, key=lambda result: result.case.situation):
        yield situation, list(group)


def _title(situation: Situation, results: Sequence[Result]) -> str:
    return f"{_TITLES[situation]}: {results[0].case.model}, {results[0].case.resolution} px"


def _sheet(situation: Situation, results: Sequence[Result]) -> Sheet:
    numbers = sorted({number for result in results for number in result.case.numbers})
    headings = (
        "loader", "cores", *(plural(number, "worker") for number in numbers),
        "auto", "chosen", "enough", "auto / best", "chosen / best", "as good", "others",
    )  # fmt: skip
    return Sheet(_title(situation, results), headings, [_row(result, numbers) for result in results])


def _row(result: Result, numbers: Sequence[int]) -> list[str]:
    rates = result.rates
    foreign = max(outcome.foreign_cpu for outcome in result.all_outcomes)
    disturbed = any(outcome.is_disturbed for outcome in result.all_outcomes)
    return [
        result.case.loader,
        str(result.case.cores),
        *(_rate(rates[number]) if number in rates else "" for number in numbers),
        _rate(rates[AUTO]),
        _counts(result.chosen) + "?" * bool(result.unsettled),
        str(result.enough),
        _ratio(result.ratio),
        _ratio(result.chosen_ratio) if result.chosen_ratio else "",
        result.verdict,
        f"{foreign:.0%}" + "*" * disturbed,
    ]


def _rate(rate: Spread) -> str:
    return f"{rate.median:.0f} ({rate.min:.0f}-{rate.max:.0f})"


def _ratio(ratio: Spread) -> str:
    spread = f" ({ratio.min:.3f}-{ratio.max:.3f})" if ratio.min < ratio.max else ""
    return f"{ratio.median:.3f}{spread}"


def _counts(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers if len(set(numbers)) > 1 else numbers[:1]))


def _chart(situation: Situation, results: Sequence[Result]) -> tuple[str, Any]:
    bars = [
        Bar(
            setting_name(workers) if workers != AUTO else f"auto: {_counts(result.chosen)}",
            rate,
            int(workers == AUTO),
            result.case.name,
        )
        for result in results
        for workers, rate in result.rates.items()
    ]
    key = (Key("a fixed number", 0), Key("the tuner's choice", 1))
    title = _title(situation, results)
    return f"{title}, images per second", bar_chart(bars, title=title, unit="images/s", key=key)


def sentences(results: Sequence[Result]) -> list[str]:
    """Say of each situation in how many cases the tuner's choice is as good as the best, and name the others."""
    found = []
    for situation, group in _by_situation(results):
        missed = [result for result in group if not result.is_met]
        what = f"within {TOLERANCE:.0%}, or within the spread, of the best number"
        if situation == "model":
            what += ", with no more workers than needed"
        met = f"{len(group) - len(missed)} of {plural(len(group), 'case')}"
        sentence = f"{_TITLES[situation]}: the tuner's choice is {what} in {met}"
        if missed:
            sentence += "; not " + "; not ".join(
                f"{result.case.name}: {result.ratio.median:.3f} of {plural(result.best, 'worker')}, "
                f"chosen {_counts(result.chosen)}, enough {result.enough}"
                for result in missed
            )
        if unsettled := sum(result.unsettled for result in group):
            sentence += f"; {plural(unsettled, 'run')} ended before the tuner had settled (longer: --settling)"
        found.append(f"{sentence}.")
    return found


def _legend() -> str:
    """Return what the columns mean."""
    return (
        "images/s of training with a fixed number of workers and with --num-workers auto, in turns epoch by epoch, "
        "once the tuner has settled, without evaluation; median (smallest-largest) over the rounds, without those that "
        "others disturbed where there are undisturbed ones.\n"
        "chosen: by the tuner (?: it had not settled in a run). enough: the fewest workers within 5 % of the best, or "
        "within its spread and 10 % of it. auto / best: median (smallest-largest) of the ratios within rounds, to the "
        "number with the highest median rate; within the spread: at least 0.9, and 1 lies within the range. "
        "chosen / best: the same of the runs with the chosen number fixed."
    )
