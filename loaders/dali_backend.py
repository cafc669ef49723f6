"""The DALI loader: decoding on the GPU where there is one, DALI's CPU pipeline where there is none.

One pipeline, driven by the plan: it pulls the files, windows, flips and size of a batch when that batch is scheduled,
so a batch in flight always has the size that it was planned with, and an epoch's end or a switch rebuilds nothing.
DALI gives up a whole pipeline for one bad file; then the file is found, replaced as the policy says, and a new pipeline
goes on from the same batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from loaders.bad_samples import BadSamples
from loaders.contract import Batch, Loader
from loaders.cores import decoding_threads, usable_cores
from loaders.dali_geometry import FIRST_TRANSPOSED
from loaders.dali_jobs import Job, JobMaker
from loaders.dali_pipeline import build_pipeline, import_dali, input_names, inputs_of
from loaders.dataset import ImageDataset
from loaders.plan import EpochPlan
from loaders.wording import plural

if TYPE_CHECKING:
    from nvidia.dali import Pipeline


class _Source:
    """Where the pipeline pulls from. Refers to neither pipeline nor loader, so that losing the loader frees both.

    Attributes:
        names: inputs of the pipeline.
        jobs: still to come.
        scheduled: pulled and not delivered, in order; those without samples are not known to the pipeline.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.jobs: Iterator[Job] = iter(())
        self.scheduled: deque[Job] = deque()

    def __call__(self) -> list[np.ndarray]:
        for job in self.jobs:
            self.scheduled.append(job)
            if len(job):
                return inputs_of(self.names, job.paths, job.geometry)
        raise StopIteration

    def clear(self) -> None:
        self.jobs = iter(())
        while self.scheduled:
            self.scheduled.popleft().discard()


class DaliLoader(Loader):
    """NVIDIA DALI.

    Args:
        datasets: what plans may refer to.
        num_workers: threads; at least 1 and at most the cores at hand are used.
        bad_samples: the policy for files that Pillow refuses.
        device: where to decode and to deliver.
        prefetch: batches in flight.

    Raises:
        ImportError: DALI is not installed.
    """

    name = "dali"
    layout = "NHWC"

    def __init__(
        self,
        datasets: Sequence[ImageDataset],
        num_workers: int,
        bad_samples: BadSamples,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
        prefetch: int = 2,
    ) -> None:
        super().__init__(datasets, num_workers, bad_samples)
        self._version = import_dali().__version__
        self.device = device
        self.prefetch = prefetch
        self._maker = JobMaker(self.datasets, self._num_threads, bad_samples)
        transposes = any((dataset.orientations >= FIRST_TRANSPOSED).any() for dataset in self.datasets)
        self._source = _Source(input_names(device, transposes))
        self._pipeline: Pipeline | None = None
        self._max_batch_size = 0
        self._runs = 0

    @property
    def _num_threads(self) -> int:
        return decoding_threads(self.num_workers, usable_cores())

    def describe(self) -> str:
        place = f"on {self.device}, " if self.device.type == "cuda" else ""
        return f"dali: DALI {self._version} {place}{plural(self._num_threads, 'thread')}"

    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        number = self.datasets.index(plan.dataset)
        self._end_epoch()
        share = -(-plan.view.batch_size // plan.world)
        if share > self._max_batch_size:
            self._max_batch_size = share
            self._pipeline = None
        self._runs += 1
        self._schedule(number, plan, plan.start_batch)
        return self._deliver(number, plan, self._runs)

    def _schedule(self, number: int, plan: EpochPlan, step: int) -> None:
        """Begin to decode the batches from ``step`` on."""
        maker = self._maker
        self._source.jobs = (maker.make(number, plan.batch(s)) for s in range(step, plan.num_batches))
        if self._pipeline is None:
            self._pipeline = build_pipeline(
                self._source, self._source.names, self._max_batch_size, self._num_threads, self.device, self.prefetch
            )
        self._pipeline.schedule_run()  # the first one of an epoch schedules as many batches as may be in flight

    def _deliver(self, number: int, plan: EpochPlan, current: int) -> Iterator[Batch]:
        while True:
            if current != self._runs:
                raise RuntimeError("this epoch has ended: the loader was closed or another epoch was started")
            if not self._source.scheduled:
                break
            job = self._source.scheduled.popleft()
            try:
                images = self._receive(job)
            finally:
                job.discard()
            if images is None:
                self._schedule(number, plan, job.plan.step)
                continue
            self.bad_samples.record(plan.dataset, job.bad)
            yield Batch(
                images,
                torch.from_numpy(plan.dataset.labels[job.indices]),
                torch.from_numpy(job.indices),
                job.keys,
                job.plan,
            )

    def _receive(self, job: Job) -> torch.Tensor | None:
        """Return the images of a job; None if it has to be made again because a sample turned out bad."""
        if not len(job):
            return torch.empty((0, 3, job.plan.resolution, job.plan.resolution), dtype=torch.uint8, device=self.device)
        assert self._pipeline is not None
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            images, *gains = self._pipeline.share_outputs(cuda_stream=stream)
        except RuntimeError as error:
            self._drop_pipeline()
            self._repair(job, error)
            return None
        self._pipeline.release_outputs()
        self._pipeline.schedule_run()
        pixels = torch.from_dlpack(images.as_tensor())
        if job.geometry.padded.any():
            if pixels.is_cuda:
                _apply_gains(pixels, torch.from_dlpack(gains[0].as_tensor()))
            else:
                _apply_gains_on_host(pixels.numpy(), job.geometry.gains, np.flatnonzero(job.geometry.padded))
        return pixels.permute(0, 3, 1, 2)

    def _repair(self, job: Job, error: RuntimeError) -> None:
        """Find out which samples made DALI fail, so that they are replaced or converted from now on.

        Raises:
            RuntimeError: the failure, if no sample is to blame.
        """
        bad = self._maker.examine(job.number, job.indices.tolist())
        if bad:
            self.bad_samples.record(self.datasets[job.number], bad)
            return
        refused = {int(job.indices[p]) for p in range(len(job)) if not self._accepts(job, p)}
        if not self._maker.convert_from_now_on(job.number, refused):
            raise error

    def _accepts(self, job: Job, position: int) -> bool:
        """Return whether DALI can decode this one sample of a job."""
        names = self._source.names
        inputs = inputs_of(names, job.paths[position : position + 1], job.geometry.row(position))
        pipeline = build_pipeline(lambda: inputs, names, 1, 1, self.device, 1)
        try:
            pipeline.run()
        except RuntimeError:
            return False
        return True

    def _end_epoch(self) -> None:
        """Discard what is in flight and make the pipeline ready for another epoch."""
        self._source.jobs = iter(())
        if self._pipeline is not None:
            try:
                while not self._pipeline.empty():
                    self._pipeline.share_outputs()
                    self._pipeline.release_outputs()
                self._pipeline.schedule_run()  # nothing is left to pull: tells the pipeline that the epoch is over
                self._pipeline.reset()
            except RuntimeError:  # a bad sample in a batch that nobody is going to see
                self._pipeline = None
        self._source.clear()

    def _drop_pipeline(self) -> None:
        self._source.clear()
        self._pipeline = None

    def close(self) -> None:
        self._runs += 1
        self._drop_pipeline()


def _apply_gains(pixels: torch.Tensor, gains: torch.Tensor) -> None:
    """Multiply the first and last rows and columns of ``pixels`` (uint8 NHWC) by ``gains`` (N, 4).

    Most gains are 1, but a few lines too many cost a GPU less than a list of samples to be sent there.
    """
    to_last = pixels.shape[1] - 1
    rows, columns = pixels[:, ::to_last], pixels[:, :, ::to_last]
    for lines, gain in ((rows, gains[:, :2, None, None]), (columns, gains[:, None, 2:, None])):
        lines.copy_((lines * gain).round_().clamp_(max=255))


def _apply_gains_on_host(pixels: np.ndarray, gains: np.ndarray, which: np.ndarray) -> None:
    """Multiply the first and last rows and columns of ``pixels[which]`` (uint8 NHWC) by ``gains[which]`` (N, 4).

    With numpy, because PyTorch's threads would wait for cores that are busy decoding.
    """
    to_last = pixels.shape[1] - 1
    rows, columns = pixels[:, ::to_last], pixels[:, :, ::to_last]
    for lines, gain in ((rows, gains[:, :2, None, None]), (columns, gains[:, None, 2:, None])):
        lines[which] = np.minimum(np.rint(lines[which] * gain[which]), 255)
