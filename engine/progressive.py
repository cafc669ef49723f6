"""Progressive resizing: which size, batch size, learning rate and regularization each epoch of a run trains with.

Training begins with small images, which are cheap, and ends with the largest. Nothing here has state or knows of
torch: a stage is a pure function of the run's progress and of the evaluations made so far. See Howard's DAWNBench entry
(fast.ai, 2018) for the idea, and Tan and Le, "EfficientNetV2: Smaller Models and Faster Training" (ICML 2021),
Algorithm 1, for stages of equal length and regularization that grows with the size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from engine.config import Config

_BATCH_MULTIPLE = 8  # batches that follow the size are a multiple of this, which tensor cores like
_LAST_LATEST_START = 0.75  # a metric schedule leaves at least the last quarter of the run to the largest size
_ROUNDING = 1e-9  # of a start such as 0.75 * 1 / 5 against a progress such as 3 / 20


@dataclass(frozen=True)
class Stage:
    """How one part of a run trains.

    Attributes:
        index: number of the stage, from 0.
        resolution: side of the square images, pixels.
        batch_size: images per update, over all processes.
        lr_scale: factor of the learning rate, above 0.
        regularization: strength of augmentation and dropout, from 0 to 1 (in full).
    """

    index: int
    resolution: int
    batch_size: int
    lr_scale: float = 1.0
    regularization: float = 1.0


class Evaluation(NamedTuple):
    """The validation metric, in percent (higher is better), after an epoch of a stage."""

    epoch: int
    stage: int
    metric: float


@dataclass(frozen=True)
class History:
    """The evaluations of a run so far, in order."""

    evaluations: tuple[Evaluation, ...] = ()

    def extended(self, epoch: int, stage: int, metric: float) -> History:
        """Return the history with one more evaluation."""
        return History((*self.evaluations, Evaluation(epoch, stage, metric)))

    def to_list(self) -> list[list[float]]:
        """Return ``[epoch, stage, metric]`` of each evaluation, for a checkpoint or JSON."""
        return [list(evaluation) for evaluation in self.evaluations]

    @classmethod
    def from_list(cls, rows: Iterable[Iterable[float]]) -> History:
        """Return the history that ``to_list`` gave."""
        return cls(tuple(Evaluation(int(epoch), int(stage), metric) for epoch, stage, metric in rows))


@dataclass(frozen=True)
class StepRule:
    """When a metric schedule goes on to the next stage before it has to.

    Attributes:
        patience: evaluations over which the gain is taken: their best against the best before them in the stage.
        min_gain: the stage is over when the gain is below this, in percentage points.
        cooldown: evaluations after a step up that are ignored, because accuracy dips when the size changes.
    """

    patience: int = 2
    min_gain: float = 0.3
    cooldown: int = 1

    def stage_is_over(self, metrics: tuple[float, ...], stage: int) -> bool:
        """Tell whether a stage with these evaluations has stopped gaining."""
        counted = metrics[self.cooldown :] if stage > 0 else metrics
        if len(counted) <= self.patience:
            return False
        return max(counted[-self.patience :]) - max(counted[: -self.patience]) < self.min_gain


@dataclass(frozen=True)
class ProgressiveSchedule:
    """The stages of a run and when they start.

    Attributes:
        stages: from the smallest size to the largest.
        starts: where in the run each stage starts (with a step rule: at the latest), from 0, never falling. Where
            several start at once, or between two epochs, the last of them is taken.
        step_rule: lets a stage start early when the metric stops gaining; None for fixed starts.
    """

    stages: tuple[Stage, ...]
    starts: tuple[float, ...]
    step_rule: StepRule | None = None

    def __post_init__(self) -> None:
        if not self.stages or len(self.stages) != len(self.starts) or self.starts[0] != 0:
            raise ValueError("a schedule needs one start for each stage, the first of them 0")
        if any(low > high for low, high in pairwise(self.starts)):
            raise ValueError(f"starts must not fall, got {self.starts}")

    @classmethod
    def from_config(cls, config: Config) -> ProgressiveSchedule:
        """Return the schedule of a configuration whose ``resolutions`` are chosen.

        Every schedule ends at the largest size: the last epoch has it, however few epochs there are.

        Raises:
            ValueError: the configuration has no resolutions.
        """
        group = config.resolution
        if not group.resolutions:
            raise ValueError("the resolutions have to be chosen before the schedule is made")
        stages = _stages(config)
        if group.resolution_schedule == "fixed":
            stages = (replace(stages[-1], index=0),)
        rule = None
        if group.resolution_schedule == "metric":
            rule = StepRule(group.step_patience, group.step_min_gain, group.step_cooldown)
        return cls(stages, _starts(config, stages), rule)

    def stage_at(self, progress: float, history: History | None = None) -> Stage:
        """Return the stage of the epoch that starts at ``progress``.

        Args:
            progress: epochs done over epochs in all, in [0, 1).
            history: the evaluations so far; only a schedule with a step rule looks at them.

        Raises:
            ValueError: ``progress`` is outside [0, 1).
        """
        if not 0 <= progress < 1:
            raise ValueError(f"progress must be in [0, 1), got {progress}")
        index = max(i for i, start in enumerate(self.starts) if start <= progress + _ROUNDING)
        if self.step_rule and history and history.evaluations:
            index = max(index, self._index_by_metric(self.step_rule, history))
        return self.stages[index]

    def _index_by_metric(self, rule: StepRule, history: History) -> int:
        current = history.evaluations[-1].stage
        metrics = tuple(evaluation.metric for evaluation in history.evaluations if evaluation.stage == current)
        return min(current + rule.stage_is_over(metrics, current), len(self.stages) - 1)


def _stages(config: Config) -> tuple[Stage, ...]:
    """Return a stage for each resolution."""
    group, base = config.resolution, config.optimizer.batch_size
    sizes = group.resolutions
    smallest, largest = sizes[0], sizes[-1]
    stages = []
    for index, size in enumerate(sizes):
        if isinstance(group.batch_sizes, tuple):
            batch_size = group.batch_sizes[index]
        elif group.batch_sizes == "auto":
            batch_size = _batch_of_equal_pixels(base, size, largest)
        else:
            batch_size = base
        exponent = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[group.lr_with_batch]
        growth = (size - smallest) / (largest - smallest) if largest > smallest else 1.0
        start = group.regularization_start if group.regularization == "adaptive" else 1.0
        stages.append(Stage(index, size, batch_size, (batch_size / base) ** exponent, 1 - (1 - start) * (1 - growth)))
    return tuple(stages)


def _batch_of_equal_pixels(base: int, resolution: int, largest: int) -> int:
    """Return a batch with at most as many pixels as ``base`` images of the largest size, so that it fits in memory."""
    batch_size = base * largest**2 // resolution**2
    return max(base, batch_size // _BATCH_MULTIPLE * _BATCH_MULTIPLE)


def _starts(config: Config, stages: tuple[Stage, ...]) -> tuple[float, ...]:
    """Return where each stage starts, the last of them with the last epoch if not before."""
    group, epochs, count = config.resolution, config.optimizer.epochs, len(stages)
    last_epoch = (epochs - 1) / epochs
    if group.resolution_schedule == "linear":
        starts = tuple(share * last_epoch for share in _linear_shares(stages))
    elif group.resolution_schedule == "metric":
        starts = group.latest_starts or tuple(_LAST_LATEST_START * index / max(count - 1, 1) for index in range(count))
    else:
        starts = group.stage_starts or tuple(index / count for index in range(count))
    return tuple(min(start, last_epoch) for start in starts)


def _linear_shares(stages: tuple[Stage, ...]) -> list[float]:
    """Return at which share of the way from the smallest to the largest size each stage's size is the nearest."""
    smallest, largest = stages[0].resolution, stages[-1].resolution
    middles = ((before.resolution + after.resolution) / 2 for before, after in pairwise(stages))
    return [0.0, *((middle - smallest) / (largest - smallest) for middle in middles)]
