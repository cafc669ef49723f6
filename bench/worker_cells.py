"""What bench/num_workers.py measures: a loader with its transfer to the device, alone or with a model that trains."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

from bench.bad_files import StopAtBad
from bench.measure import Batches, Cell, Step
from bench.peers import FLIP, MEAN, RATIO, SCALE, STD
from bench.throughput import long_epoch
from bench.variants import split_name
from engine.distributed import Process, process
from engine.learner import Learner, LossOptions, StepOptions
from engine.model import create_model, has_depthwise_convolutions
from engine.optim import create_optimizer, parameter_groups
from engine.precision import resolve_amp
from loaders.bad_samples import BadSamples
from loaders.contract import Batch
from loaders.dataset import ImageDataset
from loaders.packed import open_packed
from loaders.plan import EpochPlan, View
from loaders.registry import create_loader
from loaders.synthetic_backend import SyntheticLoader
from loaders.transfer import Transfer

_WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        loader: its name, with its variant.
        num_workers: worker processes or threads.
        prefetch: batches in flight, for each worker (``torch``) or in all.
        resolution: side of the images, pixels.
        batch_size: images of a batch.
        model: trained on the batches; empty for none.
        device: ``cpu`` or ``cuda``.
    """

    loader: str
    num_workers: int
    prefetch: int
    resolution: int
    batch_size: int
    model: str
    device: str


def cell(setting: Setting, dataset: ImageDataset, packed: Path | None) -> Cell:
    """Return a setting as something to measure.

    Args:
        setting: what is measured.
        dataset: the images.
        packed: the folder of a packed set to read in their place.
    """
    title = f"{setting.loader}, {setting.num_workers} workers, prefetch {setting.prefetch}, {setting.resolution} px"
    processes = max(1, setting.num_workers) if setting.loader == "torch" else 1
    if not setting.model:
        return Cell(title, partial(load, setting, dataset, packed), together=processes)
    held = processes * setting.prefetch + 1  # one more on its way to the device
    return Cell(f"{title}, {setting.model}", partial(train, setting, dataset, packed), held, processes)


def load(setting: Setting, dataset: ImageDataset, packed: Path | None) -> Batches:
    """Run a loader without end and bring its batches to the device, normalized."""
    device = torch.device(setting.device)
    transfer = Transfer(device, MEAN, STD)
    with closing(_epochs(setting, dataset, packed, device)) as epochs:
        for batches in epochs:
            for batch in transfer.batches(batches):
                yield len(batch)


def train(setting: Setting, dataset: ImageDataset, packed: Path | None) -> Batches:
    """Train a model on a loader's batches without end, as the engine's loop does, but for those it is told to leave."""
    with process(setting.device) as this:
        learner = _learner(setting, len(dataset.classes), this)
        transfer = Transfer(this.device, MEAN, STD, dtype=learner.precision.dtype or torch.float32)
        _warm_up(learner, transfer, setting, dataset)
        meter, untrained = Meter(), False
        with closing(_epochs(setting, dataset, packed, this.device)) as epochs:
            for batches in epochs:
                for batch in transfer.batches(meter.watch(batches)):
                    if not untrained:
                        learner.step(batch, len(batch), full=True, lr_factor=1.0, number=1)
                    step = Step(len(batch), transfer.take_wait_seconds(), meter.take_trainer_seconds())
                    untrained = bool((yield step))


def _epochs(
    setting: Setting, dataset: ImageDataset, packed: Path | None, device: torch.device
) -> Generator[Iterator[Batch], None, None]:
    """Yield one epoch of full batches after another."""
    if packed is not None:
        dataset = long_epoch(open_packed(packed).train)
    name, _ = split_name(setting.loader)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores: that is asked
    with create_loader(name, [dataset], setting.num_workers, StopAtBad(), device, setting.prefetch) as loader:
        for epoch in itertools.count():
            yield loader.run(EpochPlan(dataset, epoch, _view(setting)))


def _view(setting: Setting) -> View:
    return View(setting.resolution, setting.batch_size, scale=SCALE, ratio=RATIO, flip=FLIP, drop_last=True)


def _learner(setting: Setting, num_classes: int, this: Process) -> Learner:
    """Return what trains the model from scratch, in the number format that the engine would choose."""
    torch.manual_seed(0)
    model = create_model(setting.model, num_classes, resolution=setting.resolution)
    model = model.to(this.device).to(memory_format=torch.channels_last).train()
    precision = resolve_amp("auto", this.device, depthwise=has_depthwise_convolutions(model))
    optimizer = create_optimizer("sgd", parameter_groups(model, weight_decay=5e-4), lr=0.01, momentum=0.9)
    return Learner(model, optimizer, this, precision, LossOptions(smoothing=0.1), StepOptions())


def _warm_up(learner: Learner, transfer: Transfer, setting: Setting, dataset: ImageDataset) -> None:
    """Train on made-up images, so that all threads that training needs have started."""
    with SyntheticLoader([dataset], BadSamples(), learner.device) as loader:
        batches = transfer.batches(loader.run(EpochPlan(dataset, 0, _view(setting))))
        for batch in itertools.islice(batches, _WARM_UP_STEPS):
            learner.step(batch, len(batch), full=True, lr_factor=1.0, number=1)
    transfer.take_wait_seconds()


class Meter:
    """Tells the CPU time of training from that of loading.

    Training is what this thread does outside of the loader, and what the other threads do that exist when the meter is
    made. Those that a loader starts later, and its processes, are not counted.
    """

    def __init__(self) -> None:
        self._threads = {thread.id for thread in psutil.Process().threads()}
        self._loading = 0.0  # CPU time of this thread within the loader
        self._before = self._trainer_seconds()

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield a loader's batches."""
        while True:
            begin = time.thread_time()
            batch = next(batches, None)
            self._loading += time.thread_time() - begin
            if batch is None:
                return
            yield batch

    def take_trainer_seconds(self) -> float:
        """Return the CPU time of training since the last call, in steps of the system's clock of 10 ms."""
        now = self._trainer_seconds()
        spent, self._before = now - self._before, now
        return spent

    def _trainer_seconds(self) -> float:
        threads = [thread for thread in psutil.Process().threads() if thread.id in self._threads]
        return sum(thread.user_time + thread.system_time for thread in threads) - self._loading
