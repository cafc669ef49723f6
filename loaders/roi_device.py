"""Batches of the region loader that a device resamples: threads decode to planes, which are uploaded as they are."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import torch

from kernels.device import upload
from kernels.device_regions import Plane, Regions, resample_regions
from kernels.region_planes import PlaneBuffer, decode_samples
from kernels.regions import Status
from loaders.buffers import BufferPool
from loaders.dataset import ImageDataset
from loaders.plan import BatchPlan
from loaders.roi_jobs import Job, Worker

_SPARE = 1.25  # memory for a batch, over what one of the same shape has taken
_FIRST_FACTOR, _FIRST_MARGIN = 2, 48  # bytes to begin with: 2 for each pixel of results with a margin


class PlanesJob(Job):
    """A batch that is decoded to planes; what Pillow loads of it is in its ``pixels``.

    Args:
        dataset, plan, known_bad, replace: as those of `Job`.
        pool: where memory for planes comes from.
        room: bytes to begin with; where they do not suffice, more is taken.

    Attributes:
        buffers: the planes, with the tables of them all; the last one is being filled.
        images: what became of the batch on the device, once it was sent there.
        ready: behind what makes the images, on CUDA.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        plan: BatchPlan,
        known_bad: dict[int, str],
        replace: bool,
        pool: BufferPool,
        room: int,
    ) -> None:
        # Pages that nobody writes to take no memory.
        pixels = np.empty((len(plan), 3, plan.resolution, plan.resolution), np.uint8)
        super().__init__(dataset, plan, pixels, known_bad, replace)
        self._pool = pool
        self._growing = threading.Lock()
        planes, windows = np.zeros((len(plan), 3, len(Plane)), np.int64), np.zeros((len(plan), 3, 4))
        turns = np.zeros((len(plan), 3), np.bool_)
        self.buffers = [PlaneBuffer(pool.take((room,)), np.zeros(1, np.int64), 0, planes, windows, turns)]
        self.images: torch.Tensor | None = None
        self.ready: torch.cuda.Event | None = None

    @property
    def from_pillow(self) -> np.ndarray:
        """Positions, int64, of samples that are in ``pixels``, once the batch is finished."""
        return np.flatnonzero((self._statuses != Status.OK) & self.kept)

    @property
    def num_bytes(self) -> int:
        """Up to where the bytes of all buffers are in use, the rest of those that are full included."""
        last = self.buffers[-1]
        return last.first + used_bytes(last)

    def _load_samples(self, again: int, worker: Worker) -> int:
        return decode_samples(
            self._counters, again, self._statuses, self.plan.resolution, self.buffers[-1], self._sources,
            self.plan.windows, self.plan.flips, worker.facts, worker.scratch,
        )  # fmt: skip

    def _make_room(self, position: int, worker: Worker) -> bool:
        if self._statuses[position] != Status.BUFFER_FULL:
            return super()._make_room(position, worker)
        needed = int(worker.facts[0])
        with self._growing:
            last = self.buffers[-1]
            if last.used[0] + needed > len(last.samples):  # no other thread has brought another one
                samples = self._pool.take((max(needed, len(last.samples) // 2),))
                first = last.first + len(last.samples)
                self.buffers.append(last._replace(samples=samples, used=np.zeros(1, np.int64), first=first))
        return True


def used_bytes(buffer: PlaneBuffer) -> int:
    """Return how many bytes of a buffer were taken."""
    return min(int(buffer.used[0]), len(buffer.samples))


class DeviceResampler:
    """Begins batches, and makes images of them on a device once they are decoded.

    On CUDA they are uploaded and resampled on a stream of its own, while the current stream does something else.

    Args:
        device: where the images go.
        keep: how many free buffers to keep at most.
    """

    def __init__(self, device: torch.device, keep: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pool = BufferPool(pinned=self._stream is not None, keep=keep)
        self._rooms: dict[tuple[int, int], int] = {}  # bytes for a batch, by resolution and length
        with torch.cuda.stream(self._stream):
            self._positions = torch.zeros(1, dtype=torch.int64, device=device)  # of the one tile of each plane
        self._being_copied: deque[tuple[torch.cuda.Event, list[PlaneBuffer]]] = deque()

    def begin(self, dataset: ImageDataset, plan: BatchPlan, known_bad: dict[int, str], replace: bool) -> PlanesJob:
        """Return a batch to decode; arguments as those of `Job`."""
        first_guess = len(plan) * _FIRST_FACTOR * (plan.resolution + _FIRST_MARGIN) ** 2
        room = self._rooms.get((plan.resolution, len(plan)), first_guess)
        return PlanesJob(dataset, plan, known_bad, replace, self._pool, room)

    def send(self, job: PlanesJob) -> None:
        """Begin to upload and resample a batch that is decoded, unless that was done; waits for nothing."""
        if job.images is not None:
            return
        with torch.cuda.stream(self._stream):
            job.images = self._resampled(job)
            if self._stream is not None:
                job.ready = torch.cuda.Event()
                job.ready.record(self._stream)
                self._being_copied.append((job.ready, job.buffers))
        while self._being_copied and self._being_copied[0][0].query():
            self._being_copied.popleft()

    def receive(self, job: PlanesJob) -> torch.Tensor:
        """Return the images that are kept of a batch, ready in the order of the current stream.

        Returns:
            uint8 (n, 3, resolution, resolution) on the device, contiguous.
        """
        self.send(job)
        assert job.images is not None
        if job.ready is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(job.ready)
            job.images.record_stream(current)
        return job.images

    def close(self) -> None:
        """Wait until no memory of a batch is being copied any more."""
        while self._being_copied:
            self._being_copied.popleft()[0].synchronize()

    def _resampled(self, job: PlanesJob) -> torch.Tensor:
        """Upload and resample a batch in the order of the current stream."""
        shape = job.plan.resolution, len(job.plan)
        if job.num_bytes > self._rooms.get(shape, 0):
            self._rooms[shape] = int(_SPARE * job.num_bytes)
        samples = torch.empty(job.num_bytes, dtype=torch.uint8, device=self._device)
        for buffer in job.buffers:
            used = torch.from_numpy(buffer.samples)[: used_bytes(buffer)]
            samples[buffer.first : buffer.first + len(used)].copy_(used, non_blocking=True)
        kept = slice(None) if job.kept.all() else np.flatnonzero(job.kept)
        tables = (upload(table[kept], self._device) for table in (buffer.planes, buffer.windows, buffer.turns))
        images = resample_regions(Regions(samples, self._positions, *tables), job.plan.resolution)
        positions = job.from_pillow
        if len(positions):
            places = np.cumsum(job.kept)[positions] - 1
            images[upload(places, self._device)] = upload(job.pixels[positions], self._device)
        return images
