"""The region loader: threads of compiled code that decode of each JPEG only what its crop needs.

It reads packed sets (loaders.pack), whose records can be entered at any restart marker, and plain files, of which it
leaves out the rows below the crop and decodes to planes at the scale that is needed. What the compiled code does not
read (PNG, CMYK and the like) takes the way over Pillow, in the same threads. Planes are resampled there as well, or
uploaded to be resampled on the device.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch

from kernels.compiling import announced
from kernels.jpeg import load_library
from loaders.bad_samples import BadSamples
from loaders.buffers import BufferPool
from loaders.contract import Batch, Loader
from loaders.cores import decoding_threads, usable_cores
from loaders.dataset import ImageDataset
from loaders.plan import BatchPlan, EpochPlan, View
from loaders.roi_device import DeviceResampler
from loaders.roi_jobs import Job, Worker
from loaders.wording import plural

logger = logging.getLogger("headrace")

ResampleOn = Literal["cpu", "device"]

_HELD = 3  # batches that a caller may hold, one fetched ahead included, while another is begun
EPOCH_ENDED = "this epoch has ended: the loader was closed or another epoch was started"


class _Crew:
    """Threads that work on the jobs at hand, the oldest first.

    It does not know the loader, so that losing the loader ends it.
    """

    def __init__(self, num_threads: int) -> None:
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._threads = [
            threading.Thread(target=self._work, args=(Worker(),), name=f"headrace-roi-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def give(self, job: Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def cancel(self) -> None:
        """Drop the jobs at hand; samples begun are finished into memory that nobody looks at."""
        with self._changed:
            for job in self._jobs:
                job.fail(RuntimeError(EPOCH_ENDED))
            self._jobs.clear()

    def end(self) -> None:
        """Stop the threads and wait for them."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self.cancel()
        if threading.current_thread() not in self._threads:  # where the collector may run, holding the others up
            for thread in self._threads:
                thread.join()

    def _work(self, worker: Worker) -> None:
        while (job := self._next()) is not None:
            job.work(worker)
            del job

    def _next(self) -> Job | None:
        """Wait for a job with samples left to begin; None when there will be no more."""
        with self._changed:
            while not self._ended:
                while self._jobs and self._jobs[0].is_taken:
                    self._jobs.popleft()
                if self._jobs:
                    return self._jobs[0]
                self._changed.wait()
            return None


class _Route(Protocol):
    """What begins batches, and makes images of those that the threads have finished."""

    def begin(self, dataset: ImageDataset, plan: BatchPlan, known_bad: dict[int, str], replace: bool) -> Any: ...

    def send(self, job: Any) -> None: ...

    def receive(self, job: Any) -> torch.Tensor: ...

    def close(self) -> None: ...


class _HostRoute:
    """Batches that the threads resample: what they finish are the images."""

    def __init__(self, pinned: bool, keep: int) -> None:
        self._pool = BufferPool(pinned, keep)

    def begin(self, dataset: ImageDataset, plan: BatchPlan, known_bad: dict[int, str], replace: bool) -> Job:
        pixels = self._pool.take((len(plan), 3, plan.resolution, plan.resolution))
        return Job(dataset, plan, pixels, known_bad, replace)

    def send(self, job: Job) -> None:
        pass

    def receive(self, job: Job) -> torch.Tensor:
        return torch.from_numpy(job.pixels if job.kept.all() else job.pixels[job.kept])

    def close(self) -> None:
        pass


class RoiLoader(Loader):
    """Decodes regions of JPEGs on the CPU, in threads without the GIL.

    Args:
        datasets: what plans may refer to, packed or not.
        num_workers: threads; at least 1 and at most the cores at hand are used.
        bad_samples: the policy for samples that cannot be decoded.
        device: where the batches go next.
        prefetch: batches in flight.
        resample_on: ``cpu``: the threads resample, and batches are delivered on the CPU, for CUDA in page-locked
            memory; ``device``: the threads decode only, and batches are resampled and delivered on ``device``.

    Raises:
        JpegLibraryError: libjpeg-turbo is not installed (an ImportError).
    """

    name = "roi"
    layout = "NCHW"

    def __init__(
        self,
        datasets: Sequence[ImageDataset],
        num_workers: int,
        bad_samples: BadSamples,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
        prefetch: int = 2,
        resample_on: ResampleOn = "cpu",
    ) -> None:
        super().__init__(datasets, num_workers, bad_samples)
        self._library = load_library()
        self.prefetch = prefetch
        self._route: _Route
        if resample_on == "device":
            self.device = _with_index(device)
            self._route = DeviceResampler(self.device, keep=prefetch + _HELD)
        else:
            self.device = torch.device("cpu")
            self._route = _HostRoute(pinned=device.type == "cuda", keep=prefetch + _HELD)
        self._resample_on = resample_on
        self._reported: set[tuple[str, int, int]] = set()  # damaged renditions: data set, index and number
        self._known_bad = [dict(bad_samples.known(dataset)) for dataset in self.datasets]
        self._crew: _Crew | None = None
        self._runs = 0
        with announced("roi: the decoder", "half a minute"):
            self._compile()

    def _compile(self) -> None:
        """Have the threads' code compiled or loaded now, so that no epoch has to wait for it."""
        none = BatchPlan(
            step=0, seed=0, epoch=0, view=View(resolution=1, batch_size=1), indices=np.zeros(0, np.int64),
            keys=np.zeros(0, np.uint64), windows=np.zeros((0, 4)), flips=np.zeros(0, np.bool_),
        )  # fmt: skip
        for dataset in self.datasets:
            job: Job = self._route.begin(dataset, none, {}, replace=False)
            job.work(Worker())
            if job.error is not None:
                raise job.error

    @property
    def _num_threads(self) -> int:
        return decoding_threads(self.num_workers, usable_cores())

    def describe(self) -> str:
        place = f", resampled on {self.device}" if self._resample_on == "device" else ""
        return f"roi: {self._library} in {plural(self._num_threads, 'thread')}{place}"

    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        number = self.datasets.index(plan.dataset)
        self._runs += 1
        if self._crew is None:
            self._crew = _Crew(self._num_threads)
            self._finalizer = weakref.finalize(self, _end, self._crew, self._route)
        self._crew.cancel()
        jobs = deque(self._give(number, plan, step) for step in self._steps(plan, 0, self.prefetch))
        return self._deliver(number, plan, jobs, self._runs)

    @staticmethod
    def _steps(plan: EpochPlan, first: int, count: int) -> range:
        """Return the numbers of ``count`` batches, counted from the plan's start, as far as there are any."""
        begin = min(plan.start_batch + first, plan.num_batches)
        return range(begin, min(begin + count, plan.num_batches))

    def _give(self, number: int, plan: EpochPlan, step: int) -> Job:
        """Have a batch begun."""
        crew = self._crew
        if crew is None:  # closed by another thread just now
            raise RuntimeError(EPOCH_ENDED)
        batch = plan.batch(step)
        job: Job = self._route.begin(plan.dataset, batch, self._known_bad[number], self.bad_samples.policy == "skip")
        crew.give(job)
        return job

    def _deliver(self, number: int, plan: EpochPlan, jobs: deque[Job], current: int) -> Iterator[Batch]:
        for delivered in range(len(plan)):
            if current != self._runs:
                raise RuntimeError(EPOCH_ENDED)
            job = jobs.popleft()
            jobs.extend(self._give(number, plan, step) for step in self._steps(plan, delivered + self.prefetch, 1))
            job.finished.wait()
            if current != self._runs:
                raise RuntimeError(EPOCH_ENDED)
            if job.error is not None:
                raise job.error
            if bad := job.bad:
                self.bad_samples.record(plan.dataset, bad)
            self._report_renditions(job)
            images = self._route.receive(job)
            if jobs and jobs[0].finished.is_set() and jobs[0].error is None:
                self._route.send(jobs[0])
            yield _batch_of(job, images)

    def _report_renditions(self, job: Job) -> None:
        """Warn of smaller versions that are damaged, once of each; the samples are as good as ever."""
        for index, (rendition, problem) in sorted(job.damaged_renditions.items()):
            key = job.dataset.name, index, rendition
            if key not in self._reported:
                self._reported.add(key)
                logger.warning(
                    "%s (sample %d of %s): %s. The image itself takes its place, which is slower; pack the data again "
                    "(%d of its smaller versions found damaged so far)",
                    job.dataset.paths[index], index, job.dataset.name, problem, len(self._reported),
                )  # fmt: skip

    def close(self) -> None:
        self._runs += 1
        if self._crew is not None:
            self._finalizer()
            self._crew = None


def _end(crew: _Crew, route: _Route) -> None:
    crew.end()
    route.close()


def _with_index(device: torch.device) -> torch.device:
    """Return a device as tensors on it name it."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _batch_of(job: Job, images: torch.Tensor) -> Batch:
    indices, keys = job.indices[job.kept], job.plan.keys[job.kept]
    return Batch(
        images,
        torch.from_numpy(job.dataset.labels[indices]),
        torch.from_numpy(indices),
        keys,
        job.plan,
    )
