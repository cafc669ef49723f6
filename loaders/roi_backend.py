"""The region loader: threads of compiled code that decode of each JPEG only what its crop needs.

It reads packed sets (loaders.pack), whose records can be entered at any restart marker, and plain files, of which it
leaves out the rows below the crop and decodes to planes at the scale that is needed. What the compiled code does not
read (PNG, CMYK and the like) takes the way over Pillow, in the same threads.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from kernels.jpeg import load_library
from loaders.bad_samples import BadSamples
from loaders.buffers import BufferPool
from loaders.contract import Batch, Loader
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.plan import EpochPlan
from loaders.roi_jobs import Job, Worker

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


class RoiLoader(Loader):
    """Decodes regions of JPEGs on the CPU, in threads without the GIL.

    Args:
        datasets: what plans may refer to, packed or not.
        num_workers: threads; at least 1 and at most the cores at hand are used.
        bad_samples: the policy for samples that cannot be decoded.
        device: where the batches go next; for CUDA they are delivered in page-locked memory.
        prefetch: batches in flight.

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
    ) -> None:
        super().__init__(datasets, num_workers, bad_samples)
        self._library = load_library()
        self.device = torch.device("cpu")
        self.prefetch = prefetch
        self._num_threads = max(1, min(num_workers, int(usable_cores())))
        self._buffers = BufferPool(pinned=device.type == "cuda", keep=prefetch + _HELD)
        self._known_bad = [dict(bad_samples.known(dataset)) for dataset in self.datasets]
        self._crew: _Crew | None = None
        self._runs = 0

    def describe(self) -> str:
        return f"roi: {self._library} in {self._num_threads} threads"

    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        number = self.datasets.index(plan.dataset)
        self._runs += 1
        if self._crew is None:
            self._crew = _Crew(self._num_threads)
            self._finalizer = weakref.finalize(self, self._crew.end)
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
        pixels = self._buffers.take((len(batch), 3, batch.resolution, batch.resolution))
        job = Job(plan.dataset, batch, pixels, self._known_bad[number], self.bad_samples.policy == "skip")
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
            yield _batch_of(job)

    def close(self) -> None:
        self._runs += 1
        if self._crew is not None:
            self._finalizer()
            self._crew = None


def _batch_of(job: Job) -> Batch:
    pixels, indices, keys = job.pixels, job.indices, job.plan.keys
    if not job.kept.all():
        pixels, indices, keys = pixels[job.kept], indices[job.kept], keys[job.kept]
    return Batch(
        torch.from_numpy(pixels),
        torch.from_numpy(job.dataset.labels[indices]),
        torch.from_numpy(indices),
        keys,
        job.plan,
    )
