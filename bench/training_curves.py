"""What can be read off the curves of training runs: accuracy over seeds, time to an accuracy, the cost of epochs.

An epoch's record holds ``time``, the seconds from the start of the run to the end of the epoch, its ``resolution`` and
the validation metrics ``top1`` and ``top5`` in percent.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.time_spent import Record
from engine.values import Target

_ROUNDING = 1 + 1e-9  # of sums of seconds
Curve = Sequence[Record]  # the epochs of a run


@dataclass(frozen=True)
class Statistics:
    """Values over seeds; the standard deviation is that of a sample, 0 for a single value."""

    mean: float
    deviation: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistics:
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), deviation, min(values), max(values))


def difference(mine: Statistics, theirs: Statistics, count: int) -> tuple[float, float | None]:
    """Return the difference of two means over so many seeds each, and its standard error; None with one seed.

    The standard error is that of two independent samples (Welch).
    """
    error = math.hypot(mine.deviation, theirs.deviation) / math.sqrt(count) if count > 1 else None
    return mine.mean - theirs.mean, error


@dataclass(frozen=True)
class Point:
    """An epoch over all seeds: its mean time in seconds, the metric in percent, and its size in pixels."""

    seconds: float
    metric: Statistics
    resolution: int


def mean_curve(curves: Sequence[Curve], metric: str) -> list[Point]:
    """Return the mean of several curves, epoch by epoch, as far as the shortest goes."""
    return [
        Point(
            statistics.fmean(record["time"] for record in records),
            Statistics.of([record[metric] for record in records]),
            records[0]["resolution"],
        )
        for records in zip(*curves, strict=False)
    ]


def seconds_to(curve: Curve, target: Target) -> float | None:
    """Return the time at the end of the first epoch that reaches a target; None if none does."""
    return next((record["time"] for record in curve if record[target.metric] >= target.value), None)


@dataclass(frozen=True)
class Cost:
    """What runs of a schedule take, in seconds.

    Attributes:
        start: what a run takes beyond its epochs: the first warm-up, switches of size.
        epochs: an epoch, with evaluation and checkpoint, at each resolution.
    """

    start: float
    epochs: Mapping[int, float]

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> Cost:
        """Take the median over the epochs of a resolution; the start is what is left of the mean run."""
        lengths: dict[int, list[float]] = defaultdict(list)
        for curve in curves:
            for resolution, length in _lengths(curve):
                lengths[resolution].append(length)
        epochs = {resolution: statistics.median(of_size) for resolution, of_size in lengths.items()}
        rest = [curve[-1]["time"] - sum(epochs[record["resolution"]] for record in curve) for curve in curves]
        return cls(statistics.fmean(rest), epochs)

    def seconds(self, resolutions: Sequence[int]) -> float:
        """Return what a run with an epoch at each of these resolutions takes.

        A resolution that was not measured counts as the dearest.
        """
        dearest = max(self.epochs.values())
        return self.start + sum(self.epochs.get(resolution, dearest) for resolution in resolutions)


def _lengths(curve: Curve) -> Iterator[tuple[int, float]]:
    before = 0.0
    for record in curve:
        yield record["resolution"], record["time"] - before
        before = record["time"]


def equal_time_epochs(cost: Cost, resolutions: Callable[[int], Sequence[int]], seconds: float) -> int:
    """Return the largest number of epochs whose run takes at most so many seconds, and at least 1.

    Args:
        cost: of the schedule.
        resolutions: from a number of epochs to the resolution of each.
        seconds: what the run may take.
    """
    most = int((seconds - cost.start) / min(cost.epochs.values())) + 1
    candidates = range(1, max(most, 1) + 1)
    fitting = bisect_right(candidates, seconds * _ROUNDING, key=lambda epochs: cost.seconds(resolutions(epochs)))
    return candidates[max(fitting - 1, 0)]
