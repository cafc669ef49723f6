"""What an image costs here, by loader and by model, and the rate that follows."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from tqdm import tqdm

from engine.doctor_machine import Capacity, DiskRate
from engine.losses import classification_loss
from engine.model import has_depthwise_convolutions, model_summary
from engine.precision import autocast, resolve_amp
from engine.roofline import Demand, Machine, Roofline, roofline, workers_needed
from engine.telemetry import cpu_seconds
from loaders.bad_samples import BadSamples, TooManyBadSamplesError
from loaders.choice import candidates
from loaders.contract import Batch, Loader, LoaderError
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.plan import EpochPlan, View
from loaders.registry import create_loader

_BATCH = 32  # of a loader: an error of one batch is small beside what is measured
_STEP_BATCH = {"cpu": 16, "cuda": 64}
_LEAD_IN = 6  # batches that are not counted: those made ahead while the loader started
_LEAST_BATCHES = 4
_MOST_WAITING = 3.0  # seconds of the clock for each second of processor time
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
class StepCost:
    """What a training step takes for an image.

    Attributes:
        resolution: pixels.
        seconds: of the clock, with all cores or the device to itself.
        cpu_seconds: processor time.
    """

    resolution: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Prediction:
    """What to expect at one size.

    Attributes:
        resolution: pixels.
        loader: the one that lets the rate be highest.
        demand: what an image takes.
        ceilings: once the files are in memory, if the set fits; with enough workers.
        from_disk: the rate while every file comes from the disk, images per second.
        num_workers: how many are enough.
        by_loader: the rate with each of the loaders.
    """

    resolution: int
    loader: str
    demand: Demand
    ceilings: Roofline
    from_disk: float
    num_workers: int
    by_loader: Mapping[str, float]


def loading_costs(
    dataset: ImageDataset, device: torch.device, resolutions: Sequence[int], seconds: float, bar: tqdm[None]
) -> tuple[list[LoadingCost], dict[str, str]]:
    """Measure each loader that can read a set on this machine, with one worker.

    Args:
        dataset: what to read.
        device: where the batches are needed.
        resolutions: pixels.
        seconds: for all of it, what it takes to start the loaders aside.
        bar: to be moved on by 1 in all.

    Returns:
        The costs, and why loaders that fail here are left out.
    """
    # DALI last: once it is loaded, worker processes take longer to start.
    names = sorted(candidates(dataset, device), key=lambda name: name == "dali")
    costs: list[LoadingCost] = []
    failures: dict[str, str] = {}
    for name in names:
        bar.set_postfix_str(f"loader {name}")
        try:
            with create_loader(name, [dataset], 1, BadSamples(max_fraction=1.0), device) as loader:
                share = seconds / len(names) / len(resolutions)
                costs += [_loading_cost(loader, dataset, resolution, share) for resolution in resolutions]
        except (ImportError, LoaderError, RuntimeError, TooManyBadSamplesError) as error:
            failures[name] = " ".join(str(error).split())
        bar.update(1 / len(names))
    return costs, failures


def _loading_cost(loader: Loader, dataset: ImageDataset, resolution: int, seconds: float) -> LoadingCost:
    plan = EpochPlan(dataset, 0, View(resolution, min(_BATCH, len(dataset))))
    batches: Iterator[Batch] = itertools.chain.from_iterable(loader.run(plan) for _ in itertools.count())
    for _ in range(_LEAD_IN):
        next(batches)
    _synchronize(loader.device)
    images, begin, started = 0, time.perf_counter(), cpu_seconds()
    elapsed = spent = 0.0
    while images < _LEAST_BATCHES * plan.view.batch_size or max(spent, elapsed / _MOST_WAITING) < seconds:
        images += len(next(batches))
        elapsed, spent = time.perf_counter() - begin, cpu_seconds() - started
    _synchronize(loader.device)
    on_device = (time.perf_counter() - begin) / images if loader.device.type == "cuda" else 0.0
    return LoadingCost(loader.name, resolution, spent / images, on_device, images)


def step_costs(
    model: nn.Module,
    num_classes: int,
    device: torch.device,
    resolutions: Sequence[int],
    seconds: float,
    bar: tqdm[None],
) -> list[StepCost]:
    """Measure training steps of a model on synthetic images, as the training loop takes them by default.

    Args:
        model: float32 (n, 3, resolution, resolution) to (n, num_classes); it is moved to the device and changed.
        num_classes: its outputs.
        device: what computes.
        resolutions: pixels.
        seconds: for all sizes together; at least three steps of each are taken.
        bar: to be moved on by 1 in all.

    Raises:
        ModelError: the model cannot take images of these sizes.
    """
    for resolution in resolutions:
        model_summary(model, resolution)  # refuses sizes that the architecture cannot take
    precision = resolve_amp("auto", device, depthwise=has_depthwise_convolutions(model))
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    count = _STEP_BATCH[device.type]
    labels = torch.arange(count, device=device) % num_classes

    def step(images: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, device):
            loss = classification_loss(model(images).float(), labels).mean()
        loss.backward()
        optimizer.step()

    costs = []
    for resolution in resolutions:
        bar.set_postfix_str(f"model at {resolution} px")
        images = torch.randn(count, 3, resolution, resolution, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        costs.append(_step_cost(step, images, resolution, seconds / len(resolutions), device))
        bar.update(1 / len(resolutions))
    return costs


def _step_cost(
    step: Callable[[torch.Tensor], None], images: torch.Tensor, resolution: int, seconds: float, device: torch.device
) -> StepCost:
    """Measure steps; whatever else the machine does can only make one longer, so that the shortest counts.

    On a CPU the work is measured in one thread, as several spend processor time waiting for each other where the cores
    are not theirs alone; they are taken to share it without loss.
    """
    threads, shared_by = torch.get_num_threads(), max(1, int(usable_cores()))
    if device.type == "cpu":
        torch.set_num_threads(1)
    elapsed: list[float] = []
    spent: list[float] = []
    try:
        step(images)  # algorithms are chosen, memory is allocated
        while len(elapsed) < 2 or sum(elapsed) < seconds:
            begin, cpu = time.perf_counter(), time.process_time()
            step(images)
            _synchronize(device)
            elapsed.append((time.perf_counter() - begin) / len(images))
            spent.append((time.process_time() - cpu) / len(images))
    finally:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        return StepCost(resolution, min(spent) / shared_by, min(spent))
    return StepCost(resolution, min(elapsed), min(spent))


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

    Returns:
        One prediction for each size that was measured, in the order of ``costs``.
    """
    from_disk = disk.bytes_per_second if disk is not None and disk.source == "disk" else math.inf
    cold = Machine(capacity.cores, disk=from_disk, bus=capacity.bus)
    fits = num_images * mean_bytes <= _FITS * capacity.available
    warm = replace(cold, disk=math.inf) if fits else cold
    by_size = {cost.resolution: cost for cost in steps}
    predictions = []
    for resolution in dict.fromkeys(cost.resolution for cost in costs):
        step = by_size.get(resolution, StepCost(resolution, 0.0, 0.0))
        demands = {
            cost.loader: demand_of(mean_bytes, cost, step, copied=capacity.device != "CPU")
            for cost in costs
            if cost.resolution == resolution
        }
        rates = {name: roofline(warm, demand).rate for name, demand in demands.items()}
        # Where the model is the limit with each of them, the one that takes the least of the processor.
        best = max(rates, key=lambda name: (round(rates[name], 1), -demands[name].loading_cpu_seconds))
        predictions.append(
            Prediction(
                resolution,
                best,
                demands[best],
                roofline(warm, demands[best]),
                roofline(cold, demands[best]).rate,
                workers_needed(warm, demands[best]),
                rates,
            )
        )
    return predictions


def demand_of(mean_bytes: float, cost: LoadingCost, step: StepCost, *, copied: bool) -> Demand:
    """Return what an image takes of everything.

    Args:
        mean_bytes: of its file.
        cost: of loading.
        step: of training.
        copied: the model computes on a device.
    """
    return Demand(
        cpu_seconds={cost.loader: cost.cpu_seconds},
        disk_bytes=mean_bytes,
        bus_bytes=3.0 * cost.resolution**2 if copied and not cost.device_seconds else 0.0,
        step_seconds=step.seconds + cost.device_seconds,
        step_cpu_seconds=step.cpu_seconds,
    )
