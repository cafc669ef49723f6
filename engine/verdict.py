"""Where a run's time went, and in one sentence what held it back and what would help."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.roofline import AUGMENTATION_WORTH_TELLING, Limit
from engine.time_spent import Record, TimeSpent, epoch_records, left_out, start_of, time_spent, without

# Below these shares nothing is worth a change: the model is the limit.
_WAIT_WORTH_TELLING = 0.10  # of a stage's training time
_STAGE_WORTH_TELLING = 0.05  # of the run, spent waiting in that stage
_EVALUATION_WORTH_TELLING = 0.30
_SWITCH_WORTH_TELLING = 0.15
_OTHER_WORTH_TELLING = 0.25
_START_WORTH_TELLING = 0.25
_START_WORTH_A_WORD = 0.05
_OTHERS_WORTH_TELLING = 0.2  # of the cores
_SECONDS_TO_JUDGE = 5.0  # of training; before, caches and workers still warm up

_IDLE_WORTH_TELLING = 0.15  # share of the cores; what is less comes from the gaps between two batches
_BUSY_WORKER = 0.7  # share of its time that a worker computes, from which on reading is not what keeps it
_FIRST_BATCHES = 2.0  # times what a batch takes, in each epoch: less waiting is for the first one

Cause = Limit | Literal["loader", "start", "evaluation", "switch", "other", "none"]


@dataclass(frozen=True)
class Verdict:
    """What limited a run.

    Attributes:
        cause: a limit that the doctor knows as well, or what else took the time; ``none`` where nothing can be judged.
        sentence: it in words, with the evidence, and what to do.
    """

    cause: Cause
    sentence: str


@dataclass(frozen=True)
class _Setting:
    """What a run had to work with.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:0``, ...
        loader: name of the loader.
        num_workers: worker processes or threads of the loader, in each process of the run.
        cores: processor cores that each process could use.
        world_size: processes of the run.
        tuned: the number of workers was found while training, so that more would have been taken if they had helped.
    """

    device: str
    loader: str
    num_workers: int
    cores: float
    world_size: int
    tuned: bool

    @property
    def usable(self) -> int:
        """Workers that have a core of their own."""
        return max(1, math.floor(self.cores))

    @property
    def decodes_on_gpu(self) -> bool:
        return self.loader == "dali" and self.device.startswith("cuda")

    @property
    def may_want_more(self) -> bool:
        """Whether there are cores that no worker has been tried on."""
        return self.num_workers < self.usable and not self.tuned


def verdict(records: Sequence[Record], *, device: str, loader: str) -> Verdict:
    """Say in one sentence what limited a run, with the evidence, and what to do.

    Args:
        records: a run's metrics records; those of epochs are looked at.
        device: ``cpu``, ``cuda`` or ``cuda:0``, ...
        loader: name of the loader.
    """
    epochs = epoch_records(records)
    if not epochs:
        return Verdict("none", "No epoch was finished, so there is nothing to judge: train for at least one epoch.")
    last = epochs[-1]
    setting = _Setting(
        device,
        loader,
        num_workers=int(last.get("num_workers") or 0),
        cores=float(last.get("cores") or 1.0),
        world_size=int(last.get("world_size") or 1),
        tuned=bool(last.get("tuned")),
    )
    parts = [left_out(record) for record in epochs]
    settled = [without(record, part) for record, part in zip(epochs, parts, strict=True)]
    away = math.fsum(part.seconds for part in parts)
    start = min(away, math.fsum(map(start_of, epochs)))
    searched = any(record.get("search_seconds") for record in epochs)
    found = _judge(settled, start, away, searched, setting)
    if found.cause in ("start", "none"):
        return found
    notes = []
    if away >= max(1.0, _START_WORTH_A_WORD * time_spent(settled).total):
        what = "the loader started and its number of workers was found" if searched else "the loader started"
        notes.append(f"{away:.1f} s in which {what} are left out")
    others = _others_cores(settled, setting)
    if others >= _OTHERS_WORTH_TELLING * setting.cores:
        notes.append(f"other processes took {others:.1f} of {_cores(setting.cores)} meanwhile")
    return Verdict(
        found.cause, f"{found.sentence.removesuffix('.')} ({'; '.join(notes)})." if notes else found.sentence
    )


def _judge(epochs: Sequence[Record], start: float, away: float, searched: bool, setting: _Setting) -> Verdict:
    """Judge epochs without what is left out of them.

    Args:
        start: seconds in which the loader started.
        away: seconds that are left out, those among them.
        searched: the number of workers was looked for in them.
    """
    spent = time_spent(epochs)
    if spent.training < _SECONDS_TO_JUDGE:
        if searched:
            sentence = (
                f"The run was too short to judge: {away:.0f} s of training went by while the number of workers was "
                f"found, {spent.training:.1f} s after it; train for more epochs or on more images, or give "
                "--num-workers."
            )
        else:
            sentence = (
                f"The run was too short to judge: {spent.training:.1f} s of training, in which workers and caches "
                "still warm up; train for more epochs or on more images."
            )
        return Verdict("none", sentence)
    stage = _worst_stage(epochs, spent)
    augments = spent.augmentation >= AUGMENTATION_WORTH_TELLING * spent.training
    excess = {
        "data": time_spent(stage).data_wait / spent.total if stage else 0.0,
        "augmentation": spent.augmentation / spent.total if augments else 0.0,
        "start": _above(start / (away + spent.total), _START_WORTH_TELLING),
        "evaluation": _above(spent.evaluation / spent.total, _EVALUATION_WORTH_TELLING),
        "switch": _above(spent.switch / spent.total, _SWITCH_WORTH_TELLING),
        "other": _above(spent.other / spent.total, _OTHER_WORTH_TELLING),
    }
    worst = max(excess, key=lambda cause: excess[cause])
    if excess[worst] == 0.0:
        return Verdict("model", _compute_bound(epochs, spent, setting.device))
    if worst == "data":
        several = len({_stage_key(record) for record in epochs}) > 1
        return _data_bound(stage, f" in the {stage[0].get('resolution')} px stage" if several else "", setting)
    if worst == "augmentation":
        return Verdict("augmentation", _augmentation_bound(spent))
    if worst == "start":
        sentence = (
            f"Starting the loader took {_percent(start / (away + spent.total))} of the time: {start:.0f} s until its "
            "first batch came (processes, pipelines, code that is compiled), which a longer run hardly notices; train "
            "for more epochs to learn what limits training."
        )
        return Verdict("start", sentence)
    if worst == "evaluation":
        sentence = (
            f"Evaluation took {_percent(spent.evaluation / spent.total)} of the time ({spent.evaluation:.0f} of "
            f"{spent.total:.0f} s): evaluate on fewer images (--limit-val) or at a smaller size (--val-resolution)."
        )
        return Verdict("evaluation", sentence)
    if worst == "switch":
        sizes = len({record.get("resolution") for record in epochs})
        sentence = (
            f"Warming up for {sizes} {'size' if sizes == 1 else 'sizes'} took {_percent(spent.switch / spent.total)} "
            f"of the time ({spent.switch:.0f} of {spent.total:.0f} s): use fewer --resolutions, or train longer on "
            "each."
        )
        return Verdict("switch", sentence)
    sentence = (
        f"{_percent(spent.other / spent.total)} of the time ({spent.other:.0f} of {spent.total:.0f} s) went neither "
        "into training nor into evaluation, but into starting epochs and saving: save less often (--save-every) or to "
        "a faster disk."
    )
    return Verdict("other", sentence)


def _others_cores(epochs: Sequence[Record], setting: _Setting) -> float:
    """Return how many of its cores a process had to leave to other programs, on average; 0 where that is not known."""
    idle, cost = _mean(epochs, "idle_cores"), _mean(epochs, "cpu_ms_per_image")
    if idle is None or cost is None:
        return 0.0
    own = cost / 1000 * _rate(epochs) / setting.world_size
    return max(0.0, setting.cores - idle - own)


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


def _data_bound(stage: Sequence[Record], where: str, setting: _Setting) -> Verdict:
    spent = time_spent(stage)
    cause = _cause_of_waiting(stage, setting)
    claim = f"{_percent(spent.data_wait / spent.training)} of the training time waited for data{where}"
    evidence = {"disk": _reading, "workers": _few_workers, "cores": _full_cores, "loader": _slow_loader}
    advice = _reading_advice(setting) if cause == "disk" else _loading_advice(setting, cause)
    return Verdict(cause, f"{claim[0].upper()}{claim[1:]}{evidence[cause](stage, setting)}; {advice}.")


def _cause_of_waiting(stage: Sequence[Record], setting: _Setting) -> Literal["disk", "workers", "cores", "loader"]:
    """Say why workers did not keep up: they waited for files, for cores, were too few, or are what does not get faster.

    A worker that neither computes nor waits for a core waits for what it reads.
    """
    busy, idle = _busy_share(stage, setting), _mean(stage, "idle_cores")
    if idle is None:
        return "workers" if setting.may_want_more else "cores"
    cores_are_free = idle >= _IDLE_WORTH_TELLING * setting.cores
    knows_queues = _mean(stage, "loading_queued_ms_per_image") is not None
    batches_wait = _FIRST_BATCHES * _seconds_of_a_batch(stage, setting) * len(stage)
    is_steady = time_spent(stage).data_wait > batches_wait
    if busy is not None and busy < _BUSY_WORKER and is_steady and (cores_are_free or knows_queues):
        return "disk"
    if not cores_are_free:
        return "cores"
    return "workers" if setting.may_want_more else "loader"


def _busy_share(stage: Sequence[Record], setting: _Setting) -> float | None:
    """Return the share of their time in which workers compute or wait for a core; None where that is not known."""
    worked, queued = _mean(stage, "loading_cpu_ms_per_image"), _mean(stage, "loading_queued_ms_per_image")
    workers = min(setting.num_workers, setting.usable) if setting.loader == "roi" else setting.num_workers
    if worked is None or not workers or setting.decodes_on_gpu:
        return None
    return (worked + (queued or 0.0)) / 1000 * _rate(stage) / setting.world_size / workers


def _seconds_of_a_batch(stage: Sequence[Record], setting: _Setting) -> float:
    """Return how long one worker computes for a process's batch: what training waits for when an epoch begins."""
    images = (_mean(stage, "batch_size") or 0.0) / setting.world_size
    return images * (_mean(stage, "loading_cpu_ms_per_image") or 0.0) / 1000


def _reading(stage: Sequence[Record], setting: _Setting) -> str:
    busy, size, rate = _busy_share(stage, setting) or 0.0, _mean(stage, "bytes_per_image"), _rate(stage)
    workers = "the worker" if setting.num_workers == 1 else f"the {setting.num_workers} workers"
    evidence = f", though {workers} had nothing to decode {_percent(1 - busy)} of the time: reading is the limit"
    if size:
        evidence += f", {size * rate / 1e6:.3g} MB/s ({rate:.0f} images/s of {size / 1000:.3g} kB)"
    return evidence


def _few_workers(stage: Sequence[Record], setting: _Setting) -> str:
    idle = _mean(stage, "idle_cores")
    if idle is None:
        return _full_cores(stage, setting)
    return f" while {idle:.1f} of {_cores(setting.cores)} had nothing to do: there are too few workers"


def _slow_loader(stage: Sequence[Record], setting: _Setting) -> str:
    what = "the GPU's decoder" if setting.decodes_on_gpu else "the loader"
    idle = _mean(stage, "idle_cores") or 0.0
    return f" while {idle:.1f} of {_cores(setting.cores)} had nothing to do: {what} is the limit"


def _full_cores(stage: Sequence[Record], setting: _Setting) -> str:
    cost, spent = _mean(stage, "cpu_ms_per_image"), time_spent(stage)
    if cost is None:
        return ""
    if not setting.device.startswith("cuda"):
        return f": loading and training share {_cores(setting.cores)}, {cost:.1f} ms of processor time for each image"
    evidence = f": an image costs {cost:.1f} ms of processor time"
    if spent.compute > 0:
        wanted = _images(stage) / setting.world_size / spent.compute
        taker = "the model" if setting.world_size == 1 else "each GPU"
        evidence += (
            f", so the {wanted:,.0f} images/s that {taker} could take need {wanted * cost / 1000:.1f} cores of "
            f"the {setting.cores:g} there are"
        )
    return evidence


def _reading_advice(setting: _Setting) -> str:
    smaller = (
        "pack smaller images (--pack-side)" if setting.loader == "roi" else "read less (--loader roi packs images)"
    )
    advice = f"{smaller}, or put the files on a faster disk or into memory"
    if setting.tuned or (setting.loader != "torch" and not setting.may_want_more):
        return advice
    return (
        f"{advice}; more workers (now {setting.num_workers}) help only where the disk answers several at once without "
        "slowing down"
    )


def _loading_advice(setting: _Setting, cause: Cause) -> str:
    workers, usable, cores = setting.num_workers, setting.usable, _cores(setting.cores)
    if cause == "workers":
        return f"more workers would help up to {_cores(usable)} (--num-workers {usable}, now {workers})"
    if setting.decodes_on_gpu and cause == "loader":
        return "store smaller images, or decode on the cores (--loader roi)"
    if cause == "loader":
        tried = f"more than {workers} {'worker' if workers == 1 else 'workers'} brought no more images/s, so "
        return (
            f"{tried if setting.tuned else ''}try another loader (--loader auto measures them) or store smaller images"
        )
    full = f"{workers} {'worker uses' if workers == 1 else 'workers use'} all of the {cores}"
    if setting.may_want_more:
        full = f"no core was left for another worker beside {workers}, training and other processes"
    elif workers < usable:
        full = f"{workers} of {_cores(usable)} for workers proved best, as the model needs the others"
    if setting.loader != "dali" and setting.device.startswith("cuda"):
        return f"{full}: decode on the GPU (--loader dali), store smaller images, or add cores"
    if setting.loader != "dali":
        return f"{full}: try --loader dali, store smaller images, or add cores"
    return f"{full}: store smaller images or add cores"


def _augmentation_bound(spent: TimeSpent) -> str:
    return (
        f"Augmentation is the limit: it took {_percent(spent.augmentation / spent.training)} of the training time, "
        f"between the steps ({_percent(spent.compute / spent.training)} computing, "
        f"{_percent(spent.data_wait / spent.training)} waiting for data); a lighter preset (--augment light), smaller "
        "--resolutions or a GPU would make it faster, more workers would not."
    )


def _compute_bound(epochs: Sequence[Record], spent: TimeSpent, device: str) -> str:
    evidence = (
        f"{_percent(spent.compute / spent.training)} of the training time was spent computing "
        f"({_percent(spent.data_wait / spent.training)} waiting for data)"
    )
    utilization = _mean(epochs, "gpu_utilization")
    if utilization is not None:
        evidence += f", with the GPU busy {utilization:.0f} % of the time"
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


def _rate(epochs: Sequence[Record]) -> float:
    """Images per second over the training time, of all processes."""
    seconds = time_spent(epochs).training
    return _images(epochs) / seconds if seconds else 0.0


def _mean(epochs: Sequence[Record], key: str) -> float | None:
    """Return the mean of a field over the epochs that have it; None if none does."""
    values = [float(record[key]) for record in epochs if record.get(key) is not None]
    return math.fsum(values) / len(values) if values else None


def _percent(share: float) -> str:
    if 0 < share < 0.005:
        return "under 1 %"
    if 0.995 < share < 1:
        return "over 99 %"
    return f"{100 * share:.0f} %"


def _cores(count: float) -> str:
    return f"{count:g} {'core' if count == 1 else 'cores'}"
