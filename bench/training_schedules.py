"""Schedules of the image size against each other, at equal epochs and at equal time, over several seeds.

The first schedule is what the others are compared with. At equal time each of them has as many epochs as fit into the
time that the first one took, by the cost of its epochs in the runs at equal epochs; so its learning rate goes through
its whole course, which a run cut off by the clock would not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from bench.measure import Spread
from bench.page import Section
from bench.tables import Sheet
from bench.training_charts import Line, time_chart
from bench.training_curves import Cost, Point, Statistics, difference, equal_time_epochs, mean_curve, seconds_to
from bench.training_runs import Outcome, Run
from engine.command import load_config
from engine.progressive import ProgressiveSchedule
from engine.values import Target

Equal = Literal["epochs", "time"]
Schedule = tuple[int, ...]  # sizes in pixels, rising

_STANDARD_ERRORS = 2.0  # that a gain has to have
_NO_DIFFERENCE = "no difference can be told"


def name_of(schedule: Schedule) -> str:
    """Return a schedule as it is written on the command line."""
    return ",".join(map(str, schedule))


def plan(arguments: Sequence[str], schedule: Schedule, epochs: int, seeds: Sequence[int]) -> list[Run]:
    """Return a run for each seed.

    Args:
        arguments: of engine.train, for all runs.
        schedule: sizes to train at.
        epochs: of a run.
        seeds: of the runs.
    """
    options = (*arguments, "--resolutions", name_of(schedule), "--epochs", str(epochs))
    return [
        Run(f"{name_of(schedule)} px, {epochs} epochs, seed {seed}", (*options, "--seed", str(seed)), epochs)
        for seed in seeds
    ]


def epochs_in(runs: Sequence[Run], outcomes: Sequence[Outcome], seconds: float) -> int:
    """Return how many epochs of a schedule fit into a time.

    Args:
        runs: of the schedule, with any number of epochs.
        outcomes: what they left.
        seconds: what a run may take.
    """
    config = load_config(runs[0].options)

    def resolutions(epochs: int) -> list[int]:
        stretched = replace(config, optimizer=replace(config.optimizer, epochs=epochs))
        schedule = ProgressiveSchedule.from_config(stretched)
        return [schedule.stage_at(epoch / epochs).resolution for epoch in range(epochs)]

    return equal_time_epochs(Cost.of([outcome.epochs for outcome in outcomes]), resolutions, seconds)


@dataclass(frozen=True)
class Result:
    """One schedule over its seeds.

    Attributes:
        equal: what it has in common with the first schedule.
        schedule: its sizes.
        outcomes: one for each seed.
        baseline: those of the first schedule, with the same seeds; None for that schedule itself.
        target: what the time is taken to.
    """

    equal: Equal
    schedule: Schedule
    outcomes: Sequence[Outcome]
    baseline: Sequence[Outcome] | None
    target: Target

    @property
    def num_epochs(self) -> int:
        return min(len(outcome.epochs) for outcome in self.outcomes)

    @property
    def accuracy(self) -> Statistics:
        """The target's metric at the end of the last epoch, percent."""
        return _accuracy(self.outcomes, self.target.metric)

    @property
    def seconds(self) -> Statistics:
        return Statistics.of([outcome.seconds for outcome in self.outcomes])

    @cached_property
    def seconds_to_target(self) -> list[float | None]:
        """Of each seed; None where the target is not reached."""
        return [seconds_to(outcome.epochs, self.target) for outcome in self.outcomes]

    @property
    def reached(self) -> list[float]:
        """Seconds to the target, of the seeds that reach it."""
        return [seconds for seconds in self.seconds_to_target if seconds is not None]

    @property
    def speed_up(self) -> Spread | None:
        """The first schedule's time to the target over this one's, seed by seed.

        None where a seed of either does not reach it: to leave out such seeds would favor the schedule that has them.
        """
        if self.baseline is None:
            return None
        theirs = [seconds_to(outcome.epochs, self.target) for outcome in self.baseline]
        pairs = zip(self.seconds_to_target, theirs, strict=True)
        ratios = [other / mine for mine, other in pairs if mine is not None and other is not None]
        return Spread.of(ratios) if len(ratios) == len(theirs) else None

    @property
    def gain(self) -> tuple[float, float | None] | None:
        """What it ends with above the first schedule, in points, and its standard error; None for that schedule."""
        if self.baseline is None:
            return None
        return difference(self.accuracy, _accuracy(self.baseline, self.target.metric), len(self.outcomes))

    @property
    def curve(self) -> list[Point]:
        return mean_curve([outcome.epochs for outcome in self.outcomes], self.target.metric)

    def record(self, machine: str) -> dict[str, Any]:
        """Return a record of the JSON file."""
        config = self.outcomes[0].config
        return {
            "experiment": "schedules",
            "equal": self.equal,
            "schedule": name_of(self.schedule),
            "epochs": self.num_epochs,
            "model": config.model.model,
            "loader": config.loader.loader,
            "batch_size": config.optimizer.batch_size,
            "val_resolution": config.resolution.val_resolution,
            "amp": config.model.amp,
            "device": config.run.device,
            "num_workers": config.loader.num_workers,
            "threads": config.run.threads,
            self.target.metric: asdict(self.accuracy),
            "seconds": asdict(self.seconds),
            "target": f"{self.target.metric}={self.target.value:g}",
            "target_reached": len(self.reached),
            "seconds_to_target": asdict(Statistics.of(self.reached)) if self.reached else None,
            "gain": self.gain[0] if self.gain else None,
            "standard_error": self.gain[1] if self.gain else None,
            "speed_up": asdict(self.speed_up) if self.speed_up else None,
            "foreign_cpu": asdict(Spread.of([outcome.foreign_cpu for outcome in self.outcomes])),
            "disturbed_rounds": sum(outcome.is_disturbed for outcome in self.outcomes),
            "seeds": [outcome.config.run.seed for outcome in self.outcomes],
            "curve": [asdict(point) for point in self.curve],
            "machine": machine,
        }


def results(
    equal: Equal, runs: Mapping[Schedule, Sequence[Run]], outcomes: Mapping[Run, Outcome], target: Target | None
) -> list[Result]:
    """Return a result for each schedule, of the seeds that are done with all of them.

    Args:
        equal: what is the same for all runs.
        runs: of each schedule, one for each seed; the first schedule is what the others are compared with.
        outcomes: of the runs that are done.
        target: what the time is taken to; None for the lowest top-1 that a run of the first schedule ends with.
    """
    done = {schedule: [outcomes[run] for run in of_it if run in outcomes] for schedule, of_it in runs.items()}
    seeds = min(map(len, done.values()))
    if not seeds:
        return []
    first, *others = [(schedule, mine[:seeds]) for schedule, mine in done.items()]
    target = target or Target("top1", _accuracy(first[1], "top1").min)
    return [
        Result(equal, *first, None, target),
        *(Result(equal, *other, first[1], target) for other in others),
    ]


def _accuracy(outcomes: Sequence[Outcome], metric: str) -> Statistics:
    return Statistics.of([outcome.epochs[-1][metric] for outcome in outcomes])


def sheets(results: Sequence[Result]) -> list[Sheet]:
    """Return a table for what is held equal."""
    found = []
    for equal in dict.fromkeys(result.equal for result in results):
        group = [result for result in results if result.equal == equal]
        target = group[0].target
        headings = (
            "sizes, px", "epochs", "seconds", f"{_shown(target.metric)}, %", f"s to {target.value:.1f} %", "speed-up",
            "others",
        )  # fmt: skip
        found.append(Sheet(f"Size schedules at equal {equal}", headings, [_row(result) for result in group]))
    return found


def _row(result: Result) -> list[str]:
    accuracy, seconds, speed_up = result.accuracy, result.seconds, result.speed_up
    to_target = Statistics.of(result.reached) if result.reached else None
    all_reach = len(result.reached) == len(result.outcomes)
    of_seeds = "" if all_reach else f", {len(result.reached)} of {len(result.outcomes)} seeds"
    others = max(outcome.foreign_cpu for outcome in result.outcomes)
    return [
        name_of(result.schedule),
        str(result.num_epochs),
        f"{seconds.mean:.0f} ({seconds.min:.0f}-{seconds.max:.0f})",
        f"{accuracy.mean:.1f} ± {accuracy.deviation:.1f}",
        f"{to_target.mean:.0f} ({to_target.min:.0f}-{to_target.max:.0f}){of_seeds}" if to_target else "never",
        f"{speed_up.median:.2f} ({speed_up.min:.2f}-{speed_up.max:.2f})" if speed_up else "",
        f"{others:.0%}" + "*" * any(outcome.is_disturbed for outcome in result.outcomes),
    ]


def _shown(metric: str) -> str:
    return {"top1": "top-1", "top5": "top-5"}[metric]


def section(results: Sequence[Result]) -> Section:
    """Return the part of the page: a chart for what is held equal, with the tables."""
    colors = {schedule: number for number, schedule in enumerate(dict.fromkeys(result.schedule for result in results))}
    charts = []
    for equal in dict.fromkeys(result.equal for result in results):
        group = [result for result in results if result.equal == equal]
        lines = [Line(f"{name_of(result.schedule)} px", result.curve, colors[result.schedule]) for result in group]
        metric = _shown(group[0].target.metric)
        title = f"Validation {metric} at equal {equal}"
        chart = time_chart(lines, title=title, target=group[0].target.value)
        charts.append((f"{title} (band: all seeds; ring: the size changes)", chart))
    return Section("Size schedules", sentences(results), charts, sheets(results))


def sentences(results: Sequence[Result]) -> list[str]:
    """Say what each schedule brings over the first one."""
    found = []
    for result in results:
        if result.gain is None:
            first = name_of(result.schedule)
            continue
        target, speed_up = result.target, result.speed_up
        how = f"with {len(result.reached)} of {len(result.outcomes)} seeds"
        if speed_up:
            how = f"{speed_up.median:.2f} ({speed_up.min:.2f}-{speed_up.max:.2f}) times as fast as {first} px"
            how += f" ({_NO_DIFFERENCE})" * (speed_up.min <= 1 <= speed_up.max)
        found.append(
            f"At equal {result.equal}, {name_of(result.schedule)} px reaches a {_shown(target.metric)} of "
            f"{target.value:.1f} % {how}, and ends {_in_words(*result.gain)}."
        )
    return found


def _in_words(gain: float, error: float | None) -> str:
    """Return a gain in points with its standard error, and whether that tells a difference."""
    points = f"{abs(gain):.1f}" + ("" if error is None else f" ± {error:.1f}")
    is_told = error is not None and abs(gain) >= _STANDARD_ERRORS * error
    return f"{points} points {'higher' if gain >= 0 else 'lower'}" + ("" if is_told else f" ({_NO_DIFFERENCE})")


def legend() -> str:
    """Return what the columns mean."""
    return (
        "seconds: of a run, from its first warm-up to the end of its last epoch, evaluation and checkpoints included; "
        "mean (smallest-largest) over the seeds.\n"
        "top-1, top-5: at the end of the last epoch, at the same size for all; mean and standard deviation over the "
        "seeds.\n"
        "s to ...: seconds to the end of the first epoch that reaches it, of the seeds that do.\n"
        "speed-up: the first schedule's time to it over this one's, seed by seed; median (smallest-largest); only "
        "where all seeds reach it.\n"
        "In the sentences a gain is the difference of the means ± its standard error. No difference can be told where "
        "it is below two of these, or where the range of the speed-up holds 1."
    )
