"""What a run will do and cost, stage by stage, before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from engine.progressive import ProgressiveSchedule, Stage

Measure = Callable[[int, int], float]
"""A number that was measured for a resolution and a batch size."""


@dataclass(frozen=True)
class StageRow:
    """One stage of a run.

    Attributes:
        stage: its size, batch size, learning rate factor and regularization.
        first_epoch: the epoch it starts with, from 0 (at the latest, where a metric decides).
        num_epochs: epochs until the next stage starts, or the run ends.
        batches: batches of an epoch.
        flops: computation for one image, over that at the largest size: the ratio of their areas.
        seconds: predicted training time of all its epochs, without validation; None if not measured.
        memory: device memory in bytes; None if not measured.
    """

    stage: Stage
    first_epoch: int
    num_epochs: int
    batches: int
    flops: float
    seconds: float | None = None
    memory: float | None = None


def plan_rows(
    schedule: ProgressiveSchedule,
    epochs: int,
    num_train: int,
    *,
    drop_last: bool = False,
    seconds_per_batch: Measure | None = None,
    memory: Measure | None = None,
) -> list[StageRow]:
    """Return a row for each stage that has an epoch; a metric schedule is taken to step up as late as it may.

    Args:
        schedule: the run's schedule.
        epochs: epochs of the run.
        num_train: training images.
        drop_last: whether an epoch leaves out a last batch that is not full.
        seconds_per_batch: training time of one batch of (resolution, batch size).
        memory: device memory, in bytes, of training with (resolution, batch size).
    """
    largest = schedule.stages[-1].resolution
    rows = []
    for stage, group in groupby(range(epochs), key=lambda epoch: schedule.stage_at(epoch / epochs)):
        stage_epochs = list(group)
        batches = num_train // stage.batch_size if drop_last else math.ceil(num_train / stage.batch_size)
        shape = stage.resolution, stage.batch_size
        seconds = len(stage_epochs) * batches * seconds_per_batch(*shape) if seconds_per_batch else None
        rows.append(
            StageRow(
                stage,
                first_epoch=stage_epochs[0],
                num_epochs=len(stage_epochs),
                batches=batches,
                flops=(stage.resolution / largest) ** 2,
                seconds=seconds,
                memory=memory(*shape) if memory else None,
            )
        )
    return rows


@dataclass(frozen=True)
class Saving:
    """What a plan saves against the same number of epochs at its largest size.

    Attributes:
        flops: share of the computation that is saved, 0 to below 1.
        seconds, seconds_at_largest: predicted training time of the plan and of the largest size throughout; None if
            not measured.
    """

    flops: float
    seconds: float | None
    seconds_at_largest: float | None


def saving(rows: Sequence[StageRow]) -> Saving:
    """Return what the plan saves."""
    epochs = sum(row.num_epochs for row in rows)
    flops = 1 - sum(row.flops * row.num_epochs for row in rows) / epochs
    times = [row.seconds for row in rows if row.seconds is not None]
    if len(times) < len(rows):
        return Saving(flops, None, None)
    return Saving(flops, sum(times), times[-1] / rows[-1].num_epochs * epochs)


def plan_text(rows: Sequence[StageRow], *, at_latest: bool = False) -> str:
    """Return the plan as a table, under 100 columns wide, and what it saves.

    Args:
        rows: as ``plan_rows`` returns them.
        at_latest: the stages may start earlier than the rows say (a metric decides).
    """
    columns: dict[tuple[str, str], list[str]] = {
        ("", "stage"): [f"{row.stage.index + 1}" for row in rows],
        ("", "size"): [f"{row.stage.resolution} px" for row in rows],
        ("latest" if at_latest else "", "epochs"): [_epoch_range(row) for row in rows],
        ("batch", "size"): [f"{row.stage.batch_size}" for row in rows],
        ("batches", "/epoch"): [f"{row.batches}" for row in rows],
        ("lr", "factor"): [f"{row.stage.lr_scale:.2f}" for row in rows],
        ("regular-", "ization"): [f"{row.stage.regularization:.0%}" for row in rows],
        ("FLOPs", "/image"): [f"{row.flops:.0%}" for row in rows],
        ("", "time"): [_duration(row.seconds) for row in rows if row.seconds is not None],
        ("", "memory"): [f"{row.memory / 2**30:.2f} GiB" for row in rows if row.memory is not None],
    }
    shown = [[*heading, *cells] for heading, cells in columns.items() if cells]
    widths = [max(map(len, column)) for column in shown]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in zip(*shown, strict=True)
    ]
    lines.insert(2, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in [*lines, "", *_conclusion(rows, at_latest)]).rstrip()


def _conclusion(rows: Sequence[StageRow], at_latest: bool) -> Iterator[str]:
    saved = saving(rows)
    several = len(rows) > 1
    if several:
        share = f"{'up to ' if at_latest else ''}{saved.flops:.0%}"
        yield f"Training computes {share} less than at {rows[-1].stage.resolution} px throughout."
    if saved.seconds is not None and saved.seconds_at_largest is not None:
        least = "at least " if at_latest and several else ""
        instead = f", against {_duration(saved.seconds_at_largest)}" if several else ""
        yield f"Training is predicted to take {least}{_duration(saved.seconds)}{instead}; validation comes on top."


def _epoch_range(row: StageRow) -> str:
    first, last = row.first_epoch + 1, row.first_epoch + row.num_epochs
    return f"{first}" if first == last else f"{first} to {last}"


def _duration(seconds: float) -> str:
    """Return a duration as people read it, for example ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{max(seconds, 0):.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
