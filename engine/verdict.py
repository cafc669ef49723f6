"""Where a run's time went, and one sentence on what held it back and what would help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]

# Below these shares nothing is worth a change: the model is the limit.
_WAIT_WORTH_TELLING = 0.10  # of a stage's training time
_STAGE_WORTH_TELLING = 0.05  # of the run, spent waiting in that stage
_EVALUATION_WORTH_TELLING = 0.30
_SWITCH_WORTH_TELLING = 0.15
_OTHER_WORTH_TELLING = 0.25
_SECONDS_TO_JUDGE = 5.0  # of training; before, caches and workers still warm up


@dataclass(frozen=True)
class TimeSpent:
    """Seconds of a run, or of a part of it, by what they were spent on.

    Attributes:
        compute: training without the wait for data.
        data_wait: training steps waiting for the next batch.
        evaluation: evaluating.
        switch: warming up for another size.
        other: the rest: checkpoints, start of an epoch, bookkeeping.
    """

    compute: float
    data_wait: float
    evaluation: float
    switch: float
    other: float

    @property
    def total(self) -> float:
        return self.compute + self.data_wait + self.evaluation + self.switch + self.other

    @property
    def training(self) -> float:
        return self.compute + self.data_wait


def time_spent(epochs: Sequence[Record]) -> TimeSpent:
    """Add up where the time of these epoch records went.

    Of a record, ``seconds`` is the whole epoch; ``train_seconds`` (with ``data_wait_seconds`` in it), ``val_seconds``
    and ``switch_seconds`` are disjoint parts of it. Missing parts count as none.
    """

    def total(key: str) -> float:
        return math.fsum(float(record.get(key) or 0.0) for record in epochs)

    training, evaluation, switch = total("train_seconds"), total("val_seconds"), total("switch_seconds")
    wait = min(total("data_wait_seconds"), training)
    other = max(0.0, total("seconds") - training - evaluation - switch)
    return TimeSpent(training - wait, wait, evaluation, switch, other)


def epoch_records(records: Sequence[Record]) -> list[Record]:
    """Return the epoch records in order, one for each epoch: after a resume the later one counts."""
    by_epoch = {record["epoch"]: record for record in records if record.get("kind", "epoch") == "epoch"}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def verdict(
    records: Sequence[Record],
    *,
    num_workers: int,
    cores: float,
    device: str,
    loader: str,
    world_size: int = 1,
    tuned: bool = False,
) -> str:
    """Say in one sentence what limited a run, with the evidence, and what to do.

    Args:
        records: a run's metrics records; those of epochs are looked at.
        num_workers: worker processes or threads of the loader, in each process of the run.
        cores: processor cores that each process could use (``loaders.cores.usable_cores``).
        device: ``cpu``, ``cuda`` or ``cuda:0``, ...
        loader: name of the loader.
        world_size: processes of the run.
        tuned: the number of workers was found while training, so that more would have been taken if they had helped.
    """
    epochs = epoch_records(records)
    if not epochs:
        return "No epoch was finished, so there is nothing to judge: train for at least one epoch."
    spent = time_spent(epochs)
    if spent.training < _SECONDS_TO_JUDGE:
        return (
            f"The run was too short to judge: {spent.training:.1f} s of training, in which workers and caches still "
            "warm up; train for more epochs or on more images."
        )
    stage = _worst_stage(epochs, spent)
    excess = {
        "data": time_spent(stage).data_wait / spent.total if stage else 0.0,
        "evaluation": _above(spent.evaluation / spent.total, _EVALUATION_WORTH_TELLING),
        "switch": _above(spent.switch / spent.total, _SWITCH_WORTH_TELLING),
        "other": _above(spent.other / spent.total, _OTHER_WORTH_TELLING),
    }
    worst = max(excess, key=lambda cause: excess[cause])
    if excess[worst] == 0.0:
        return _compute_bound(epochs, spent, device)
    if worst == "data":
        several = len({_stage_key(record) for record in epochs}) > 1
        advice = _data_advice(num_workers, cores, device, loader, tuned)
        return _data_bound(stage, several, cores, device, world_size, advice)
    if worst == "evaluation":
        return (
            f"Evaluation took {_percent(spent.evaluation / spent.total)} of the time ({spent.evaluation:.0f} of "
            f"{spent.total:.0f} s): evaluate on fewer images (--limit-val) or at a smaller size (--val-resolution)."
        )
    if worst == "switch":
        sizes = len({record.get("resolution") for record in epochs})
        return (
            f"Warming up for {sizes} {'size' if sizes == 1 else 'sizes'} took {_percent(spent.switch / spent.total)} "
            f"of the time ({spent.switch:.0f} of {spent.total:.0f} s): use fewer --resolutions, or train longer on "
            "each."
        )
    return (
        f"{_percent(spent.other / spent.total)} of the time ({spent.other:.0f} of {spent.total:.0f} s) went neither "
        "into training nor into evaluation, but into starting epochs and saving: save less often (--save-every) or to "
        "a faster disk."
    )


def _above(share: float, threshold: float) -> float:
    return share if share >= threshold else 0.0


def _stage_key(record: Record) -> tuple[Any, Any]:
    return record.get("stage"), record.get("resolution")


def _worst_stage(epochs: Sequence[Record], spent: TimeSpent) -> list[Record]:
    """Return the records of the stage that lost most time to waiting for data; none if no loss is worth telling."""
    stages: dict[tuple[Any, Any], list[Record]] = {}
    for record in epochs:
        stages.setdefault(_stage_key(record), []).append(record)
    worst = max(stages.values(), key=lambda stage: time_spent(stage).data_wait)
    lost = time_spent(worst)
    telling = (
        lost.training > 0
        and lost.data_wait >= _WAIT_WORTH_TELLING * lost.training
        and lost.data_wait >= _STAGE_WORTH_TELLING * spent.total
    )
    return worst if telling else []


def _data_bound(
    stage: Sequence[Record],
    several: bool,
    cores: float,
    device: str,
    world_size: int,
    advice: str,
) -> str:
    spent = time_spent(stage)
    resolution = stage[0].get("resolution")
    where = f" in the {resolution} px stage" if several else ""
    claim = f"{_percent(spent.data_wait / spent.training)} of the training time waited for data{where}"
    cost = _mean_cpu_ms(stage)
    evidence = ""
    if cost is not None and device.startswith("cuda"):
        wanted = _images(stage) / world_size / spent.compute if spent.compute > 0 else math.inf
        taker = "the model" if world_size == 1 else "each GPU"
        evidence = f": an image costs {cost:.1f} ms of processor time"
        if math.isfinite(wanted):
            evidence += (
                f", so the {wanted:,.0f} images/s that {taker} could take need {wanted * cost / 1000:.1f} cores of "
                f"the {cores:g} there are"
            )
    elif cost is not None:
        evidence = f": loading and training share {_cores(cores)}, {cost:.1f} ms of processor time for each image"
    return f"{claim[0].upper()}{claim[1:]}{evidence}; {advice}."


def _data_advice(num_workers: int, cores: float, device: str, loader: str, tuned: bool) -> str:
    usable = max(1, math.floor(cores))
    if num_workers < usable and not tuned:
        return f"more workers would help up to {_cores(usable)} (--num-workers {usable}, now {num_workers})"
    full = f"{num_workers} {'worker uses' if num_workers == 1 else 'workers use'} all of the {_cores(cores)}"
    if num_workers < usable:
        full = f"{num_workers} of {_cores(usable)} for workers proved best, as the model needs the others"
    if loader != "dali" and device.startswith("cuda"):
        return f"{full}: decode on the GPU (--loader dali), store smaller images, or add cores"
    if loader != "dali":
        return f"{full}: try --loader dali, store smaller images, or add cores"
    return f"{full}: store smaller images or add cores"


def _compute_bound(epochs: Sequence[Record], spent: TimeSpent, device: str) -> str:
    evidence = (
        f"{_percent(spent.compute / spent.training)} of the training time was spent computing "
        f"({_percent(spent.data_wait / spent.training)} waiting for data)"
    )
    utilization = [record["gpu_utilization"] for record in epochs if record.get("gpu_utilization") is not None]
    if utilization:
        evidence += f", with the GPU busy {sum(utilization) / len(utilization):.0f} % of the time"
    faster = "--amp, --compile" if device.startswith("cuda") else "a GPU"
    return (
        f"The model is the limit: {evidence}; a smaller model, smaller --resolutions or {faster} would make it faster, "
        "more workers would not."
    )


def _images(epochs: Sequence[Record]) -> float:
    """Images trained on, from the rate over the training time."""
    return math.fsum(
        float(record.get("images_per_second") or 0) * float(record.get("train_seconds") or 0) for record in epochs
    )


def _mean_cpu_ms(epochs: Sequence[Record]) -> float | None:
    costs = [float(record["cpu_ms_per_image"]) for record in epochs if record.get("cpu_ms_per_image") is not None]
    return math.fsum(costs) / len(costs) if costs else None


def _percent(share: float) -> str:
    if 0 < share < 0.005:
        return "under 1 %"
    if 0.995 < share < 1:
        return "over 99 %"
    return f"{100 * share:.0f} %"


def _cores(count: float) -> str:
    return f"{count:g} {'core' if count == 1 else 'cores'}"
