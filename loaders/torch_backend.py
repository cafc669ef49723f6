"""The reference loader: PyTorch's DataLoader and worker processes, decoding on the CPU. Works everywhere.

A worker makes a whole batch at a time from a BatchPlan that reaches it through the sampler, so the same workers serve
every data set, epoch, resolution and batch size.
"""

from __future__ import annotations

import math
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader, Dataset, Sampler

from loaders.bad_samples import BadSample, BadSamples
from loaders.contract import Batch, Loader, LoaderError
from loaders.dataset import ImageDataset
from loaders.pixels import PixelError, load_into, pillow_version
from loaders.plan import BatchPlan, EpochPlan, substitute
from loaders.processes import (
    Transport,
    Workers,
    choose_transport,
    end_with_parent,
    warn_of_pipes,
    worker_context,
)
from loaders.wording import plural

MAX_REPLACEMENTS = 100  # tries to find a good sample in place of a bad one


@dataclass(frozen=True, eq=False)
class _Request:
    """What travels to a worker."""

    dataset: int
    plan: BatchPlan
    transport: Transport


@dataclass(frozen=True, eq=False)
class _Answer:
    """What comes back: pixels as uint8 NHWC, the samples delivered, and the bad ones met on the way."""

    pixels: torch.Tensor | np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    keys: np.ndarray
    plan: BatchPlan
    bad: tuple[BadSample, ...]


class _Decoder(Dataset[_Answer]):
    """Turns a request into pixels; lives in the workers."""

    def __init__(self, datasets: Sequence[ImageDataset], bad_samples: BadSamples) -> None:
        self.datasets = datasets
        self.replace = bad_samples.policy == "skip"
        self.known_bad: dict[tuple[int, int], str] = {
            (number, index): reason
            for number, dataset in enumerate(datasets)
            for index, reason in bad_samples.known(dataset).items()
        }

    def __getitem__(self, request: _Request) -> _Answer:  # type: ignore[override]
        dataset, plan = self.datasets[request.dataset], request.plan
        size = plan.resolution
        pixels = _empty((len(plan), size, size, 3), request.transport)
        view = pixels.numpy()
        indices, keys = plan.indices.copy(), plan.keys.copy()
        kept = np.ones(len(plan), np.bool_)
        bad: list[BadSample] = []
        for position in range(len(plan)):
            index = int(plan.indices[position])
            reason = self._load(request.dataset, plan, position, view[position])
            if reason is None:
                continue
            bad.append(BadSample(dataset.name, index, dataset.paths[index], reason))
            if not self.replace:  # the run ends here, with this sample named
                kept[:] = False
                break
            if plan.view.is_evaluation:
                kept[position] = False
            else:
                indices[position] = self._load_replacement(request.dataset, plan, position, view[position], bad)
        if not kept.all():
            pixels, indices, keys = pixels[torch.from_numpy(kept)], indices[kept], keys[kept]
        return _Answer(
            pixels.numpy() if request.transport == "pipe" else pixels,
            dataset.labels[indices],
            indices,
            keys,
            plan,
            tuple(bad),
        )

    def _load(self, number: int, plan: BatchPlan, position: int, out: np.ndarray) -> str | None:
        """Fill ``out`` (uint8 HWC); return the reason if the sample is bad."""
        index = int(plan.indices[position])
        reason = self.known_bad.get((number, index))
        if reason is not None:
            return reason
        dataset = self.datasets[number]
        try:
            load_into(
                dataset.paths[index],
                plan.windows[position],
                out,
                bool(plan.flips[position]),
                int(dataset.orientations[index]),
            )
        except PixelError as error:
            self.known_bad[number, index] = str(error)
            return str(error)
        return None

    def _load_replacement(
        self, number: int, plan: BatchPlan, position: int, out: np.ndarray, bad: list[BadSample]
    ) -> int:
        dataset = self.datasets[number]
        for attempt in range(MAX_REPLACEMENTS):
            candidate = substitute(dataset, plan, position, attempt)
            reason = self._load(number, candidate, 0, out)
            index = int(candidate.indices[0])
            if reason is None:
                return index
            bad.append(BadSample(dataset.name, index, dataset.paths[index], reason))
        raise LoaderError(
            f"no readable image found in place of {dataset.paths[int(plan.indices[position])]} "
            f"in {MAX_REPLACEMENTS} tries: most files of {dataset.name} seem to be damaged"
        )


def _empty(shape: tuple[int, ...], transport: Transport) -> torch.Tensor:
    """Return uint8 memory to fill; what is to be shared is allocated so, which saves a copy."""
    if transport != "shared-memory" or not math.prod(shape):
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


class _Requests(Sampler[_Request]):
    """The sampler through which plans reach the workers; ``start`` says which."""

    def __init__(self) -> None:
        self._number = 0
        self._plan: EpochPlan | None = None
        self._transport: Transport = "none"

    def start(self, number: int, plan: EpochPlan, transport: Transport) -> None:
        self._number, self._plan, self._transport = number, plan, transport

    def __iter__(self) -> Iterator[_Request]:
        assert self._plan is not None
        for batch in self._plan:
            yield _Request(self._number, batch, self._transport)


class TorchLoader(Loader):
    """DataLoader worker processes that decode what Pillow accepts.

    Args:
        datasets: what plans may refer to.
        num_workers: worker processes; 0 decodes in the calling thread.
        bad_samples: the policy for files that Pillow refuses.
        prefetch: batches in flight for each worker.
    """

    name = "torch"
    layout = "NHWC"

    def __init__(
        self, datasets: Sequence[ImageDataset], num_workers: int, bad_samples: BadSamples, prefetch: int = 2
    ) -> None:
        super().__init__(datasets, num_workers, bad_samples)
        self.device = torch.device("cpu")
        self.prefetch = prefetch
        self._requests = _Requests()
        self._loader: DataLoader[Any] | None = None
        self._batches: Iterator[_Answer] | None = None
        self._workers: Workers | None = None
        self._runs = 0
        self._warned = False

    def describe(self) -> str:
        place = "the main thread"
        if self.num_workers:
            place = plural(self.num_workers, "worker process", "es")
        return f"torch: torchvision {torchvision.__version__} and {pillow_version()} in {place}"

    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        number = self.datasets.index(plan.dataset)
        self._runs += 1
        current = self._runs
        if self._loader is None:
            self._loader = self._start()
        self._requests.start(number, plan, self._transport(plan))
        with self._loss_of_workers_explained():
            self._batches = iter(self._loader)
        if self.num_workers and self._workers is None:
            self._workers = Workers(self._batches)
            self._finalizer = weakref.finalize(self, self._workers.stop)
        return self._deliver(plan, current)

    def _deliver(self, plan: EpochPlan, current: int) -> Iterator[Batch]:
        for _ in range(len(plan)):
            if current != self._runs or self._batches is None:
                raise RuntimeError("this epoch has ended: the loader was closed or another epoch was started")
            with self._loss_of_workers_explained():
                answer = next(self._batches)
            if answer.bad:
                self.bad_samples.record(plan.dataset, answer.bad)
            yield Batch(
                torch.as_tensor(answer.pixels).permute(0, 3, 1, 2),
                torch.from_numpy(answer.labels),
                torch.from_numpy(answer.indices),
                answer.keys,
                answer.plan,
            )

    @contextmanager
    def _loss_of_workers_explained(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, RuntimeError) as error:
            # The queue of answers ends or breaks off, or the connection over which shared memory is handed over does,
            # or the DataLoader finds the worker dead.
            if self._workers is None or not self._workers.have_lost_one():
                raise
            self.close()
            raise LoaderError(
                "a worker process was killed, perhaps by the system for want of memory: lower --num-workers"
            ) from error

    def _transport(self, plan: EpochPlan) -> Transport:
        """Return how this epoch's batches come back, by the room that they need on this machine."""
        if not self.num_workers:
            return "none"
        batch_bytes = 3 * plan.view.resolution**2 * -(-plan.view.batch_size // plan.world)
        transport = choose_transport(batch_bytes * self.prefetch * self.num_workers)
        if transport == "pipe" and not self._warned:
            warn_of_pipes()
            self._warned = True
        return transport

    def _start(self) -> DataLoader[Any]:
        decoder = _Decoder(self.datasets, self.bad_samples)
        # A generator of its own: the DataLoader would draw from the global one, which dropout draws from as well.
        generator = torch.Generator()
        if not self.num_workers:
            return DataLoader(
                decoder, batch_size=None, sampler=self._requests, collate_fn=_identity, generator=generator
            )
        return DataLoader(
            decoder,
            batch_size=None,
            sampler=self._requests,
            collate_fn=_identity,
            generator=generator,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch,
            persistent_workers=True,
            worker_init_fn=_prepare_worker,
            multiprocessing_context=worker_context(),
        )

    def close(self) -> None:
        self._runs += 1
        self._batches = None
        self._loader = None
        if self._workers is not None:
            self._finalizer()
            self._workers = None


def _identity(answer: Any) -> Any:
    return answer


def _prepare_worker(number: int) -> None:
    """Leave signals to the main process, which finishes its step and then stops the workers.

    A signal to the whole group reaches the workers too. Only a second SIGTERM ends one, as multiprocessing sends it to
    what is left at the end.
    """

    def first_sigterm(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, first_sigterm)
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
