"""What training does with an image here, beside loading it: augmentation, normalization and the step."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from engine.distributed import Process
from engine.learner import Learner, LossOptions, StepOptions
from engine.model import has_depthwise_convolutions, model_summary
from engine.optim import create_optimizer, parameter_groups
from engine.precision import resolve_amp
from loaders.augment import Augmentation
from loaders.bad_samples import BadSamples
from loaders.contract import Loader
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.feed import IMAGENET_MEAN, IMAGENET_STD
from loaders.plan import EpochPlan
from loaders.registry import create_loader
from loaders.transfer import Transfer

_SMALL_BATCH = 16  # of a model that takes long
_LONG = 0.25  # seconds of processor time of a step of a small batch


@dataclass(frozen=True)
class StepCost:
    """What training takes for an image that is loaded.

    Attributes:
        resolution: pixels.
        seconds: of normalization and step, by the clock, with all cores or the device to itself.
        cpu_seconds: their processor time.
        augment_seconds: of augmentation before it, where a CPU does it.
        augment_cpu_seconds: its processor time.
    """

    resolution: int
    seconds: float
    cpu_seconds: float
    augment_seconds: float = 0.0
    augment_cpu_seconds: float = 0.0


@dataclass(frozen=True)
class _Taken:
    """Seconds that a batch took, for each of its images."""

    elapsed: float
    cpu: float
    augmentation: float  # of the elapsed ones


def step_costs(
    model: nn.Module,
    dataset: ImageDataset,
    process: Process,
    resolutions: Sequence[int],
    augmentation: Augmentation,
    seconds: float,
    bar: tqdm[None],
    *,
    batch_size: int = 64,
    threads: int = 0,
) -> list[StepCost]:
    """Measure training as its loop does it by default, on synthetic images with a set's labels.

    Args:
        model: float32 (n, 3, resolution, resolution) to (n, classes of the set); it is moved to the device and changed.
        dataset: whose labels to train on.
        process: what computes.
        resolutions: pixels.
        augmentation: of the images.
        seconds: for all sizes together; at least two batches of each are taken.
        bar: to be moved on by 1 in all.
        batch_size: of a step, over whose images what it costs besides them spreads; a model that takes long is
            measured on fewer.
        threads: of PyTorch on a CPU; 0 for one for each core.

    Raises:
        ModelError: the model cannot take images of these sizes.
    """
    for resolution in resolutions:
        model_summary(model, resolution)  # refuses sizes that the architecture cannot take
    device, threads = process.device, threads or max(1, int(usable_cores(process.local_world)))
    precision = resolve_amp("auto", device, depthwise=has_depthwise_convolutions(model))
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = create_optimizer("sgd", parameter_groups(model, 0.0), lr=1e-4, momentum=0.9)
    learner = Learner(model, optimizer, process, precision, LossOptions(smoothing=0.1), StepOptions())
    transfer = Transfer(device, IMAGENET_MEAN, IMAGENET_STD, dtype=precision.dtype or torch.float32)
    costs = []
    with create_loader("synthetic", [dataset], 0, BadSamples(), device) as loader:
        for resolution in resolutions:
            bar.set_postfix_str(f"model at {resolution} px")
            steps = _Steps(learner, transfer, loader, augmentation, resolution)
            costs.append(_step_cost(steps, batch_size, seconds / len(resolutions), threads))
            bar.update(1 / len(resolutions))
    return costs


@dataclass(frozen=True)
class _Steps:
    """A training loop on images that cost nothing to load."""

    learner: Learner
    transfer: Transfer
    loader: Loader
    augmentation: Augmentation
    resolution: int

    def take(self, batch_size: int) -> Iterator[_Taken]:
        """Train without end; yield what each batch took."""
        (dataset,), augmentation, device = self.loader.datasets, self.augmentation, self.learner.device
        batch_size = min(batch_size, len(dataset))
        view = augmentation.view(self.resolution, batch_size, drop_last=True)
        plans = (EpochPlan(dataset, epoch, view) for epoch in itertools.count())
        batches = (batch for plan in plans for batch in self.transfer.batches(self.loader.run(plan), augmentation))
        while True:
            self.transfer.take_augment_seconds()
            begin, cpu = time.perf_counter(), time.process_time()
            batch = next(batches)
            self.learner.step(batch, batch_size, full=True, lr_factor=1.0, number=1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            elapsed, spent = time.perf_counter() - begin, time.process_time() - cpu
            augmenting = self.transfer.take_augment_seconds()
            yield _Taken(elapsed / batch_size, spent / batch_size, augmenting / batch_size)


def _step_cost(steps: _Steps, batch_size: int, seconds: float, threads: int) -> StepCost:
    """Measure batches; whatever else the machine does can only make one longer.

    On a CPU batches take turns: in one thread, whose processor time is the work to be done, and in as many threads as
    training takes, which need less time by the clock, but more of the processor, as they wait for each other.
    """
    on_cpu, before = steps.learner.device.type == "cpu", torch.get_num_threads()
    small = min(_SMALL_BATCH, batch_size)
    alone: list[_Taken] = []
    together: list[_Taken] = []
    try:
        torch.set_num_threads(1 if on_cpu else threads)
        taken = steps.take(small)
        next(taken)  # algorithms are chosen, memory is allocated
        first = next(taken)
        if small < batch_size and first.cpu * small < _LONG:
            taken = steps.take(batch_size)
            next(taken)
        else:
            alone.append(first)
        deadline = time.perf_counter() + seconds
        while not (together and (alone or not on_cpu)) or time.perf_counter() < deadline:
            in_one = on_cpu and len(alone) <= len(together)
            torch.set_num_threads(1 if in_one else threads)
            (alone if in_one else together).append(next(taken))
    finally:
        torch.set_num_threads(before)
    alone = alone or together
    cpu = statistics.median(one.cpu for one in alone)
    augment_cpu = cpu * statistics.median(one.augmentation / one.elapsed for one in alone)
    best = min(together, key=lambda one: one.elapsed)
    elapsed, augmentation = best.elapsed, best.augmentation / best.elapsed
    if on_cpu:
        # Not sooner than if the threads never waited, and not later than one alone.
        elapsed = min(max(elapsed, cpu / threads), cpu)
    return StepCost(
        steps.resolution, (1 - augmentation) * elapsed, cpu - augment_cpu, augmentation * elapsed, augment_cpu
    )
