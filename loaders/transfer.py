"""From a loader's batches of bytes to what a model takes: copied to the device, augmented, normalized and mixed.

On CUDA the bytes go through a ring of page-locked buffers and are copied on a stream of their own, one batch ahead, so
that the copy of the next batch overlaps the step on this one. On a CPU, and for batches that are on the device already,
the same code runs without the copy.
"""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import torch

from kernels.device import Color, upload
from kernels.fused import fuse_into
from loaders.augment import Augmentation, augment, draw_erasing
from loaders.buffers import BufferPool
from loaders.contract import Batch
from loaders.mixing import draw_mix
from loaders.plan import BatchPlan

_HELD = 2  # batches on a CPU: one that is trained on while the next is made

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone


def return_free_memory() -> None:
    """Give what the process has freed back to the system, where the C library is glibc; elsewhere do nothing.

    glibc serves tensors on the CPU of up to 32 MB from its heap, and hardly finds room for an aligned block in the gaps
    that batches and activations of another size have left, so that each change of size leaves more of them: 100 MB and
    more in a few epochs, with not a byte more in use. Returning the gaps takes milliseconds, and then page faults until
    training has its memory again, so it is done when the size changes and not more often. (To map every large tensor by
    itself, M_MMAP_THRESHOLD, keeps memory as flat but took a training step a quarter more time, for page faults.)
    """
    if _malloc_trim is not None:
        _malloc_trim(ctypes.c_size_t(0))


@dataclass(frozen=True, eq=False)
class DeviceBatch:
    """One rank's share of one batch, ready for the model.

    Attributes:
        images: (n, 3, resolution, resolution), normalized, on the device.
        labels: int64 (n,), on the device.
        other_labels: int64 (n,), on the device: labels of what was mixed in; None without mixing.
        weight: float32 (n,), on the device: the share of ``labels`` in a mixed image; None without mixing.
        indices: int64 (n,), CPU: the samples delivered.
        plan: what was asked for.
        wait_seconds: how long the main thread waited for the loader to deliver this batch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    other_labels: torch.Tensor | None
    weight: torch.Tensor | None
    indices: torch.Tensor
    plan: BatchPlan
    wait_seconds: float

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class _Sent:
    """A batch on its way: device tensors, and the event behind their copy where there is one."""

    batch: Batch
    images: torch.Tensor
    labels: torch.Tensor
    copied: torch.cuda.Event | None
    wait_seconds: float


class StagingRing:
    """Host buffers that batches pass through on their way to the device, used in turn, grown to the largest batch.

    A buffer is written again only after its event, which the user records behind the copy out of it. Buffers serve
    training and evaluation, whichever of them made one.

    Args:
        allocate: makes a one-dimensional uint8 buffer of a size.
        make_event: makes an event; waiting for one never recorded returns at once.
        slots: number of buffers.
    """

    def __init__(
        self,
        allocate: Callable[[int], torch.Tensor],
        make_event: Callable[[], torch.cuda.Event],
        slots: int = 2,
    ) -> None:
        self._allocate = allocate
        self._slots = deque((allocate(0), make_event()) for _ in range(slots))

    def stage(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Copy dense uint8 images into the next buffer, in their layout; return the copy and its buffer's event."""
        buffer, event = self._slots.popleft()
        event.synchronize()
        if buffer.numel() < images.numel():
            with torch.inference_mode(False):  # evaluation asks in inference mode, where memory is for it alone
                buffer = self._allocate(images.numel())
        self._slots.append((buffer, event))
        return buffer.as_strided(images.shape, images.stride()).copy_(images), event


class _HostRoute:
    """The way to a device without streams: batches stay where they are, or are copied there and then."""

    ahead = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waited = 0.0

    def send(self, batch: Batch, wait_seconds: float) -> _Sent:
        return _Sent(batch, batch.images.to(self._device), batch.labels.to(self._device), None, wait_seconds)

    def receive(self, sent: _Sent) -> None:
        self._waited += sent.wait_seconds

    def step_issued(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def wait_seconds(self) -> float:
        return self._waited


class _CudaRoute:
    """The way to a CUDA device: page-locked memory, a copy stream, and waiting measured by events between steps."""

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._ring = StagingRing(
            lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=True), torch.cuda.Event, slots=self.ahead + 1
        )
        self._being_copied: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._step_end: torch.cuda.Event | None = None
        self._gaps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._waited = 0.0

    def send(self, batch: Batch, wait_seconds: float) -> _Sent:
        if batch.images.device == self._device:
            return _Sent(batch, batch.images, upload(batch.labels, self._device), None, wait_seconds)
        if batch.images.is_pinned():
            host, copied = batch.images, torch.cuda.Event()
        else:
            host, copied = self._ring.stage(batch.images)
        # Allocated in the copy stream's order: memory of the compute stream's would be free only after its last step.
        with torch.cuda.stream(self._stream):
            images = host.to(self._device, non_blocking=True)
            labels = upload(batch.labels, self._device)
            copied.record(self._stream)
        # A page-locked batch may lie in memory that its loader uses again once nobody refers to it.
        self._being_copied.append((copied, host))
        while self._being_copied and self._being_copied[0][0].query():
            self._being_copied.popleft()
        return _Sent(batch, images, labels, copied, wait_seconds)

    def receive(self, sent: _Sent) -> None:
        """Make the compute stream wait for the batch."""
        compute = torch.cuda.current_stream(self._device)
        if sent.copied is not None:
            compute.wait_event(sent.copied)
            sent.images.record_stream(compute)
            sent.labels.record_stream(compute)
        if self._step_end is not None:
            self._gaps.append((self._step_end, self._record(compute)))
            self._step_end = None
        self._collect()

    def step_issued(self) -> None:
        """Mark the end of what the compute stream has to do so far."""
        self._step_end = self._record(torch.cuda.current_stream(self._device))

    def finish(self) -> None:
        """Wait for the copies under way, a batch or two of them, and let go of what they read."""
        while self._being_copied:
            copied, _ = self._being_copied.popleft()
            copied.synchronize()

    def wait_seconds(self) -> float:
        self._collect()
        return self._waited

    @staticmethod
    def _record(stream: torch.cuda.Stream) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    def _collect(self) -> None:
        """Add up the gaps that the device has passed, without waiting for the others."""
        while self._gaps and self._gaps[0][1].query():
            step_end, arrival = self._gaps.popleft()
            self._waited += step_end.elapsed_time(arrival) / 1000


class Transfer:
    """Turns a loader's batches into batches for the model.

    Args:
        device: where the model is.
        mean, std: of the normalization, for pixel values from 0 to 1.
        dtype: of the images.
        channels_last: layout of the images; otherwise planar.
    """

    def __init__(
        self,
        device: torch.device | str,
        mean: Color,
        std: Color,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
    ) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.mean, self.std, self.dtype = mean, std, dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._resolution = 0  # of the last batch
        self._taken = 0.0  # seconds of waiting
        self._augment_seconds = 0.0  # not yet taken
        self._memory = BufferPool(pinned=False, keep=_HELD)
        self._route = _CudaRoute(self.device) if self.device.type == "cuda" else _HostRoute(self.device)

    def batches(self, batches: Iterable[Batch], augmentation: Augmentation | None = None) -> Iterator[DeviceBatch]:
        """Yield the batches in order, on the device.

        On CUDA the next batch is fetched and its copy begun before a batch is yielded. What is yielded is memory that
        nothing else uses for as long as a tensor made of it is there.
        The source is closed with this iterator, however it ends, once no copy reads its memory any longer; what the
        source raises is raised here. When the size of the images changes, the process's free memory goes back to the
        system: see ``return_free_memory``.

        Args:
            batches: as from ``Loader.run``, on the CPU or this device. One on the device must be ready in the order of
                the current stream, and stay as it is while the next one is fetched.
            augmentation: for training; None only normalizes.
        """
        try:
            self._route.step_issued()
            for sent in self._sent(batches):
                yield self._prepare(sent, augmentation)
                self._route.step_issued()
        finally:
            try:
                self._route.finish()
            finally:
                if isinstance(batches, Generator):
                    batches.close()

    def wait_seconds(self) -> float:
        """Return how long steps have waited for data so far, in seconds.

        On CUDA it is the time that the current stream had nothing to do between the end of a step and the arrival of
        the next batch, as far as the device has come; reading it does not wait for the device. Elsewhere it is the
        time that the main thread waited for the loader.
        """
        return self._route.wait_seconds()

    def take_wait_seconds(self) -> float:
        """Return what `wait_seconds` has grown by since the last call."""
        before, self._taken = self._taken, self.wait_seconds()
        return self._taken - before

    def take_augment_seconds(self) -> float:
        """Return how long augmenting has taken on a CPU since the last call, in seconds of the main thread.

        Mixing and normalizing do not count: every run does them in one pass with erasing. On CUDA it is 0.0: there the
        device augments on its own, while the main thread goes on.
        """
        seconds, self._augment_seconds = self._augment_seconds, 0.0
        return seconds

    def _sent(self, batches: Iterable[Batch]) -> Iterator[_Sent]:
        """Send batches on their way, as many ahead of the one yielded as the route wants."""
        under_way: deque[_Sent] = deque()
        begin = time.perf_counter()
        for batch in batches:
            under_way.append(self._route.send(batch, time.perf_counter() - begin))
            if len(under_way) > self._route.ahead:
                yield under_way.popleft()
            begin = time.perf_counter()
        yield from under_way

    def _prepare(self, sent: _Sent, augmentation: Augmentation | None) -> DeviceBatch:
        self._route.receive(sent)
        batch, plan, images = sent.batch, sent.batch.plan, sent.images
        if plan.resolution != self._resolution:
            return_free_memory()
            self._resolution = plan.resolution
        erase = None
        if augmentation is not None:
            begin = time.perf_counter()
            erase = draw_erasing(images, plan.seed, plan.epoch, batch.keys, augmentation)
            images = augment(images, plan.seed, plan.epoch, batch.keys, augmentation, fill=self.mean)
            if self.device.type == "cpu":
                self._augment_seconds += time.perf_counter() - begin
        labels, other_labels, weight, mixing = sent.labels, None, None, None
        if augmentation is not None and augmentation.mixes and len(batch):
            alphas = augmentation.mixup, augmentation.cutmix
            key, size = int(batch.keys[0]), images.shape[2:]
            mixing, mixed = draw_mix(labels, plan.seed, plan.epoch, key, *alphas, *size)
            other_labels, weight = mixed.other_labels, mixed.weight
        result = self._empty(images.shape)
        fuse_into(result, images, self.mean, self.std, erase=erase, mix=mixing)
        return DeviceBatch(result, labels, other_labels, weight, batch.indices, plan, sent.wait_seconds)

    def _empty(self, shape: torch.Size) -> torch.Tensor:
        """Return memory for a batch.

        CUDA's allocator keeps what is freed; that of a CPU gives large blocks back, and the page faults of getting them
        anew take ten times as long as normalizing does.
        """
        if self.device.type != "cpu" or shape.numel() == 0:
            return torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=self.memory_format)
        memory = self._memory.take((shape.numel() * self.dtype.itemsize,))
        flat = torch.from_numpy(memory).view(self.dtype)
        if self.memory_format == torch.contiguous_format:
            return flat.view(shape)
        count, channels, height, width = shape
        return flat.view(count, height, width, channels).permute(0, 3, 1, 2)
