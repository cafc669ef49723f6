"""Where the time of epochs went, as their records tell: all of it, and that which shows what limits training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True)
class TimeSpent:
    """Seconds of a run, or of a part of it, by what they were spent on.

    Attributes:
        compute: training steps.
        augmentation: augmenting between them, where a CPU does.
        data_wait: training steps waiting for the next batch.
        evaluation: evaluating.
        switch: warming up for another size.
        other: the rest: checkpoints, start of an epoch, bookkeeping.
    """

    compute: float
    augmentation: float
    data_wait: float
    evaluation: float
    switch: float
    other: float

    @property
    def total(self) -> float:
        return self.training + self.evaluation + self.switch + self.other

    @property
    def training(self) -> float:
        return self.compute + self.augmentation + self.data_wait


def time_spent(epochs: Sequence[Record]) -> TimeSpent:
    """Add up where the time of these epoch records went.

    Of a record, ``seconds`` is the whole epoch; ``train_seconds`` (with ``data_wait_seconds`` and ``augment_seconds``
    in it), ``val_seconds`` and ``switch_seconds`` are disjoint parts of it. Missing parts count as none.
    """

    def total(key: str) -> float:
        return math.fsum(float(record.get(key) or 0.0) for record in epochs)

    training, evaluation, switch = total("train_seconds"), total("val_seconds"), total("switch_seconds")
    wait = min(total("data_wait_seconds"), training)
    augmentation = min(total("augment_seconds"), training - wait)
    other = max(0.0, total("seconds") - training - evaluation - switch)
    return TimeSpent(training - wait - augmentation, augmentation, wait, evaluation, switch, other)


def epoch_records(records: Sequence[Record]) -> list[Record]:
    """Return the epoch records in order, one for each epoch: after a resume the later one counts."""
    by_epoch = {record["epoch"]: record for record in records if record.get("kind", "epoch") == "epoch"}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def start_of(record: Record) -> float:
    """Return the seconds of an epoch in which the loader started."""
    started, waited = (float(record.get(key) or 0.0) for key in ("start_seconds", "data_wait_seconds"))
    return min(started, waited)


@dataclass(frozen=True)
class Part:
    """A part of an epoch's training: seconds, of these waiting and augmenting, and the images trained on."""

    seconds: float
    waiting: float
    augmentation: float = 0.0
    images: float = 0.0


def left_out(record: Record) -> Part:
    """Return what shows nothing of what limits training: the search for workers, or the start of the loader.

    The loader starts while workers are looked for, and begins anew with each number.
    """
    if record.get("search_seconds"):
        keys = ("search_seconds", "search_wait_seconds", "search_augment_seconds", "search_samples")
        return Part(*(float(record.get(key) or 0.0) for key in keys))
    start = start_of(record)
    return Part(start, start)


def without(record: Record, part: Part) -> Record:
    """Return an epoch as it would be without a part of its training."""
    training = float(record.get("train_seconds") or 0.0)
    if part.seconds <= 0.0:
        return record
    left = max(0.0, training - part.seconds)
    images = max(0.0, float(record.get("images_per_second") or 0.0) * training - part.images)
    times = {
        "seconds": part.seconds,
        "train_seconds": part.seconds,
        "data_wait_seconds": part.waiting,
        "augment_seconds": part.augmentation,
    }
    kept = {key: max(0.0, float(record.get(key) or 0.0) - gone) for key, gone in times.items()}
    return {**record, **kept, "images_per_second": images / left if left else 0.0}
