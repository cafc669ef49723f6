"""What loading an image costs here, by loader, and the rate that follows from that and from training."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from engine.doctor_machine import Capacity, DiskRate
from engine.doctor_steps import StepCost
from engine.roofline import Demand, Limit, Machine, Roofline, limit_of, roofline, workers_needed
from engine.telemetry import cpu_seconds
from loaders.augment import Augmentation
from loaders.bad_samples import BadSamples, TooManyBadSamplesError
from loaders.contract import Batch, Loader, LoaderError
from loaders.dataset import ImageDataset
from loaders.plan import EpochPlan
from loaders.registry import create_loader

LOADER_FAILURES = (ImportError, LoaderError, RuntimeError, TooManyBadSamplesError)

_BATCH = 32  # of a loader: an error of one batch is small beside what is measured
_LEAD_IN = 3  # batches that are not counted: those made ahead while the loader started
_LEAST_BATCHES = 2
_LEAST_SECONDS = 0.1  # of processor time, which is counted in ticks of 10 ms
_MOST_WAITING = 2.0  # seconds of the clock for each second of processor time
_FITS = 0.8  # share of the free memory that the page cache may well keep filled with a set


@dataclass(frozen=True)
class LoadingCost:
    """What one worker of a loader takes for an image.

    Attributes:
        loader: its name.
        resolution: pixels.
        cpu_seconds: processor time, of all threads and processes.
        device_seconds: time on the device, if that is where it decodes.
        images: on how many this was measured.
    """

    loader: str
    resolution: int
    cpu_seconds: float
    device_seconds: float
    images: int


@dataclass(frozen=True)
class Prediction:
    """What to expect at one size.

    Attributes:
        resolution: pixels.
        loader: the one that lets the rate be highest.
        demand: what an image takes.
        ceilings: once the files are in memory, if the set fits.
        from_disk: while every file comes from the disk.
        num_workers: what was asked for, or how many are enough; the rates are those with this number.
        by_loader: the rate with each of the loaders.
    """

    resolution: int
    loader: str
    demand: Demand
    ceilings: Roofline
    from_disk: Roofline
    num_workers: int
    by_loader: Mapping[str, float]

    @property
    def limit(self) -> Limit:
        """What sets the limit, in the words of a run's verdict."""
        return limit_of(self.demand, self.ceilings.bound)

    @property
    def limit_from_disk(self) -> Limit:
        """The same while every file comes from the disk."""
        return limit_of(self.demand, self.from_disk.bound)


def loading_costs(
    dataset: ImageDataset,
    device: torch.device,
    resolutions: Sequence[int],
    seconds: float,
    bar: tqdm[None],
    *,
    loaders: Sequence[str],
    augmentation: Augmentation,
) -> tuple[list[LoadingCost], dict[str, str]]:
    """Measure loaders on this machine, with one worker.

    Args:
        dataset: what to read.
        device: where the batches are needed.
        resolutions: pixels.
        seconds: for all of it, what it takes to start the loaders aside.
        bar: to be moved on by 1 in all.
        loaders: their names.
        augmentation: says how crops are drawn, on which decoding depends.

    Returns:
        The costs, and why loaders that fail here are left out.
    """
    # DALI last: once it is loaded, worker processes take longer to start.
    names = sorted(loaders, key=lambda name: name == "dali")
    costs: list[LoadingCost] = []
    failures: dict[str, str] = {}
    for name in names:
        bar.set_postfix_str(f"loader {name}")
        try:
            with create_loader(name, [dataset], 1, BadSamples(max_fraction=1.0), device) as loader:
                share = seconds / len(names) / len(resolutions)
                costs += [_loading_cost(loader, dataset, resolution, augmentation, share) for resolution in resolutions]
        except LOADER_FAILURES as error:
            failures[name] = reason_of(error)
        bar.update(1 / len(names))
    return costs, failures


def reason_of(error: Exception) -> str:
    """Return what an error says, on one line; of one in a worker process its last line, without the way there."""
    text = str(error)
    if "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2] or text
    return " ".join(text.split())


def _loading_cost(
    loader: Loader, dataset: ImageDataset, resolution: int, augmentation: Augmentation, seconds: float
) -> LoadingCost:
    view = augmentation.view(resolution, min(_BATCH, len(dataset)))
    plans = (EpochPlan(dataset, epoch, view) for epoch in itertools.count())
    batches: Iterator[Batch] = itertools.chain.from_iterable(loader.run(plan) for plan in plans)
    for _ in range(_LEAD_IN):
        next(batches)
    _synchronize(loader.device)
    images, begin, started = 0, time.perf_counter(), cpu_seconds()
    elapsed = spent = 0.0
    seconds = max(seconds, _LEAST_SECONDS)
    while images < _LEAST_BATCHES * view.batch_size or not spent or max(spent, elapsed / _MOST_WAITING) < seconds:
        images += len(next(batches))
        elapsed, spent = time.perf_counter() - begin, cpu_seconds() - started
    _synchronize(loader.device)
    on_device = (time.perf_counter() - begin) / images if loader.device.type == "cuda" else 0.0
    return LoadingCost(loader.name, resolution, spent / images, on_device, images)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def predict(
    num_images: int,
    mean_bytes: float,
    capacity: Capacity,
    disk: DiskRate | None,
    costs: Sequence[LoadingCost],
    steps: Sequence[StepCost],
    num_workers: int | None = None,
) -> list[Prediction]:
    """Say how fast a set can be trained on.

    A set that fits into the free memory is read from the disk in the first epoch and from memory in those that follow.

    Args:
        num_images: of the set.
        mean_bytes: of an image.
        capacity: of the machine.
        disk: how fast the set's files can be read; None where that is not known.
        costs: of loading, for each loader and size.
        steps: of training, for each size; none to predict what loading alone can deliver.
        num_workers: of the loader; None for as many as are enough.

    Returns:
        One prediction for each size that was measured, in the order of ``costs``.
    """
    in_memory = Machine(capacity.cores, bus=capacity.bus)
    cold = in_memory
    if disk is not None and disk.source != "memory":
        cold = replace(in_memory, disk=disk.bytes_per_second, disk_latency=disk.latency)
    fits = num_images * mean_bytes <= _FITS * capacity.available
    warm = in_memory if fits else cold
    by_size = {cost.resolution: cost for cost in steps}
    predictions = []
    for resolution in dict.fromkeys(cost.resolution for cost in costs):
        step = by_size.get(resolution, StepCost(resolution, 0.0, 0.0))
        demands = {
            cost.loader: demand_of(mean_bytes, cost, step, copied=capacity.device != "CPU")
            for cost in costs
            if cost.resolution == resolution
        }
        # As many as are enough, whether the files come from the disk or from memory, and no more than a run would take.
        workers = {
            name: max(workers_needed(warm, demand), workers_needed(cold, demand))
            if num_workers is None
            else num_workers
            for name, demand in demands.items()
        }
        rates = {name: roofline(warm, demand, workers[name]).rate for name, demand in demands.items()}
        # Where the model is the limit with each of them, the one that takes the least of the processor.
        best = max(rates, key=lambda name: (round(rates[name], 1), -demands[name].loading_cpu_seconds))
        predictions.append(
            Prediction(
                resolution,
                best,
                demands[best],
                roofline(warm, demands[best], workers[best]),
                roofline(cold, demands[best], workers[best]),
                workers[best],
                rates,
            )
        )
    return predictions


def demand_of(mean_bytes: float, cost: LoadingCost, step: StepCost, *, copied: bool) -> Demand:
    """Return what an image takes of everything.

    Args:
        mean_bytes: of its file.
        cost: of loading.
        step: of what training does with it.
        copied: the model computes on a device.
    """
    return Demand(
        cpu_seconds={cost.loader: cost.cpu_seconds},
        disk_bytes=mean_bytes,
        bus_bytes=3.0 * cost.resolution**2 if copied and not cost.device_seconds else 0.0,
        step_seconds=step.seconds + cost.device_seconds,
        step_cpu_seconds=step.cpu_seconds,
        augment_seconds=step.augment_seconds,
        augment_cpu_seconds=step.augment_cpu_seconds,
    )
