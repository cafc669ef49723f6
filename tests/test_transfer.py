"""The way from a loader's batch to the model's: what arrives, when the source is asked, and how waiting is counted."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from kernels.fused import fuse, fuse_into
from loaders.augment import PRESETS, Augmentation, augment, draw_erasing
from loaders.contract import Batch
from loaders.mixing import draw_mix
from loaders.plan import BatchPlan, View
from loaders.transfer import DeviceBatch, StagingRing, Transfer

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def batch(step: int, count: int = 4, resolution: int = 16, layout: Any = torch.channels_last) -> Batch:
    shape = (count, 3, resolution, resolution)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(step))
    indices = np.arange(step * count, (step + 1) * count)
    keys = indices.astype(np.uint64)
    plan = BatchPlan(
        step, 7, 2, View(resolution, max(count, 1)), indices, keys, np.zeros((count, 4)), np.zeros(count, bool)
    )
    labels = torch.from_numpy(indices % 3)
    return Batch(images.contiguous(memory_format=layout), labels, torch.from_numpy(indices), keys, plan)


class Source:
    """Counts what is asked for and notes its end."""

    def __init__(self, count: int = 4, fail_at: int = -1, pause: float = 0.0) -> None:
        self.count, self.fail_at, self.pause = count, fail_at, pause
        self.asked, self.closed = 0, False

    def run(self) -> Iterator[Batch]:
        try:
            for step in range(self.count):
                self.asked += 1
                if step == self.fail_at:
                    raise OSError("the disk is gone")
                time.sleep(self.pause)
                yield batch(step)
        finally:
            self.closed = True


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_arrive_in_order_and_normalized(layout: Any, channels_last: bool, dtype: torch.dtype) -> None:
    sources = [batch(step, layout=layout) for step in range(3)]
    arrived = list(Transfer("cpu", MEAN, STD, dtype, channels_last).batches(sources))
    assert [b.plan.step for b in arrived] == [0, 1, 2]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for got, source in zip(arrived, sources, strict=True):
        assert torch.equal(got.images, fuse(source.images, MEAN, STD, dtype))
        assert got.images.is_contiguous(memory_format=memory_format)
        assert torch.equal(got.labels, source.labels)
        assert torch.equal(got.indices, source.indices)
        assert (got.other_labels, got.weight) == (None, None)
        assert len(got) == 4


def test_augmentation_is_drawn_by_the_plan_and_filled_with_the_mean() -> None:
    augmentation = Augmentation(rotation=30, erasing=1.0)
    source = batch(1)
    (got,) = Transfer("cpu", MEAN, STD).batches([source], augmentation)
    erase = draw_erasing(source.images, source.plan.seed, source.plan.epoch, source.keys, augmentation)
    want = augment(source.images, source.plan.seed, source.plan.epoch, source.keys, augmentation, fill=MEAN)
    assert torch.equal(got.images, fuse(want, MEAN, STD, erase=erase))


def test_mixing_gives_two_labels_and_their_share() -> None:
    transfer = Transfer("cpu", MEAN, STD)
    (got,) = transfer.batches([batch(0, count=16)], PRESETS["strong"])
    assert got.weight is not None
    assert got.other_labels is not None
    assert got.weight.shape == got.other_labels.shape == (16,)
    (again,) = transfer.batches([batch(0, count=16)], PRESETS["strong"])
    assert torch.equal(got.images, again.images)


def test_loader_memory_is_never_written_to() -> None:
    source = batch(0, count=16)
    before = source.images.clone()
    for augmentation in (None, *PRESETS.values()):
        (got,) = Transfer("cpu", MEAN, STD).batches([source], augmentation)
        got.images.zero_()
    assert torch.equal(source.images, before)


def test_memory_is_used_again_when_the_last_tensor_made_of_a_batch_is_gone() -> None:
    sources = [batch(step) for step in range(40)]
    held, places, expected = [], [], []
    for step, got in enumerate(Transfer("cpu", MEAN, STD).batches(sources)):
        places.append(got.images.data_ptr())
        if step % 10 == 0:
            held.append(got.images[1:, :, 4:])  # a view is enough
            expected.append(held[-1].clone())
    assert len(set(places)) <= 4 + 2
    assert all(torch.equal(view, copy) for view, copy in zip(held, expected, strict=True))


@pytest.mark.parametrize("augmentation", [None, *PRESETS.values()])
def test_an_empty_share_arrives(augmentation: Augmentation | None) -> None:
    (got,) = Transfer("cpu", MEAN, STD).batches([batch(0, count=0)], augmentation)
    assert got.images.shape == (0, 3, 16, 16)
    assert len(got) == 0


def test_sizes_may_change_from_batch_to_batch() -> None:
    sources = [batch(0, 4, 16), batch(1, 2, 32), batch(2, 6, 8)]
    shapes = [got.images.shape for got in Transfer("cpu", MEAN, STD).batches(sources)]
    assert shapes == [(4, 3, 16, 16), (2, 3, 32, 32), (6, 3, 8, 8)]


def test_on_a_cpu_nothing_is_fetched_ahead() -> None:
    source = Source()
    batches = Transfer("cpu", MEAN, STD).batches(source.run())
    next(batches)
    assert source.asked == 1


def test_leaving_early_closes_the_source() -> None:
    source = Source()
    for _ in Transfer("cpu", MEAN, STD).batches(source.run()):
        break
    assert source.closed


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked for the memory in its gaps")
def test_gaps_in_the_heap_go_back_to_the_system() -> None:
    torch.ones(4 << 20)  # freeing 16 MB makes glibc take what is smaller from the heap
    blocks = [torch.ones(1 << 18) for _ in range(200)]
    del blocks[::2]
    before = psutil.Process().memory_info().rss
    for _ in Transfer("cpu", MEAN, STD).batches([batch(0)]):
        pass
    assert before - psutil.Process().memory_info().rss > 60 << 20


def test_an_error_of_the_consumer_closes_the_source() -> None:
    source = Source()

    def consume() -> None:
        for _ in Transfer("cpu", MEAN, STD).batches(source.run()):
            raise KeyError("consumer")

    with pytest.raises(KeyError):
        consume()
    assert source.closed


def test_copies_under_way_are_waited_for_before_the_source_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    source, transfer = Source(), Transfer("cpu", MEAN, STD)
    closed_when_finished: list[bool] = []
    monkeypatch.setattr(transfer._route, "finish", lambda: closed_when_finished.append(source.closed))
    for _ in transfer.batches(source.run()):
        break
    assert closed_when_finished == [False]
    assert source.closed


def test_the_source_is_closed_when_a_copy_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("the device is gone")

    source, transfer = Source(), Transfer("cpu", MEAN, STD)
    monkeypatch.setattr(transfer._route, "finish", fail)
    with pytest.raises(RuntimeError, match="the device is gone"):
        list(transfer.batches(source.run()))
    assert source.closed


def test_an_error_of_the_source_reaches_the_consumer() -> None:
    source = Source(fail_at=2)
    arrived: list[DeviceBatch] = []
    with pytest.raises(OSError, match="the disk is gone"):
        arrived.extend(Transfer("cpu", MEAN, STD).batches(source.run()))
    assert [got.plan.step for got in arrived] == [0, 1]
    assert source.closed


def test_waiting_is_time_in_the_loader_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("loaders.transfer.time.perf_counter", lambda: now)

    def slow_source() -> Iterator[Batch]:
        nonlocal now
        for step, seconds in enumerate((3.0, 1.0, 2.0)):
            now += seconds
            yield batch(step)

    transfer = Transfer("cpu", MEAN, STD)
    waits = []
    for got in transfer.batches(slow_source()):
        waits.append(got.wait_seconds)
        now += 10  # the step
    assert waits == [3, 1, 2]
    assert transfer.take_wait_seconds() == 6
    assert transfer.take_wait_seconds() == 0


def test_augmenting_is_measured_without_mixing_and_normalizing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def lasting(seconds: float, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr("loaders.transfer.time.perf_counter", lambda: now)
    for seconds, function in ((2, draw_erasing), (3, augment), (100, draw_mix), (100, fuse_into)):
        monkeypatch.setattr(f"loaders.transfer.{function.__name__}", lasting(seconds, function))
    transfer = Transfer("cpu", MEAN, STD)
    for _ in transfer.batches([batch(step) for step in range(4)], PRESETS["strong"]):
        now += 100  # the step
    assert transfer.take_augment_seconds() == 4 * (2 + 3)
    assert transfer.take_augment_seconds() == 0
    for _ in transfer.batches([batch(4)]):
        now += 100
    assert transfer.take_augment_seconds() == 0


class RecordedEvent:
    """Stands in for a CUDA event, noting in a shared journal what is waited for."""

    def __init__(self, journal: list[str], name: str) -> None:
        self.journal, self.name = journal, name

    def synchronize(self) -> None:
        self.journal.append(f"wait {self.name}")


def ring_with_journal(slots: int = 2) -> tuple[StagingRing, list[str], list[int]]:
    journal: list[str] = []
    sizes: list[int] = []

    def allocate(size: int) -> torch.Tensor:
        sizes.append(size)
        return torch.empty(size, dtype=torch.uint8)

    names = iter("abc")
    ring = StagingRing(allocate, lambda: RecordedEvent(journal, next(names)), slots)  # type: ignore[arg-type,return-value]
    return ring, journal, sizes


def test_ring_waits_for_a_buffers_own_copy_before_writing_to_it() -> None:
    ring, journal, _ = ring_with_journal()
    for _ in range(5):
        ring.stage(batch(0).images)
    assert journal == ["wait a", "wait b", "wait a", "wait b", "wait a"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_ring_keeps_pixels_and_layout_of_the_last_batches(layout: Any) -> None:
    ring, _, _ = ring_with_journal()
    sources = [batch(step, layout=layout).images for step in range(5)]
    staged = [ring.stage(images)[0] for images in sources]
    assert [torch.equal(a, b) for a, b in zip(staged[-2:], sources[-2:], strict=True)] == [True, True]
    assert staged[0].data_ptr() == staged[2].data_ptr() != staged[1].data_ptr()
    assert staged[0].stride() == sources[0].stride()


def test_ring_grows_to_the_largest_batch_and_stays() -> None:
    ring, _, sizes = ring_with_journal()
    for resolution in (8, 8, 32, 32, 16, 16, 32, 8):
        ring.stage(batch(0, resolution=resolution).images)
    per_pixel = 4 * 3
    assert sizes == [0, 0, per_pixel * 64, per_pixel * 64, per_pixel * 1024, per_pixel * 1024]


def test_ring_takes_an_empty_share() -> None:
    ring, _, _ = ring_with_journal()
    assert ring.stage(batch(0, count=0).images)[0].shape == (0, 3, 16, 16)


def test_a_ring_that_grew_in_evaluation_serves_training() -> None:
    ring, _, _ = ring_with_journal()
    small, large = batch(0, resolution=8).images, batch(0, resolution=32).images
    ring.stage(small)
    with torch.inference_mode():
        for _ in range(2):
            ring.stage(large)
    for _ in range(2):
        assert torch.equal(ring.stage(small)[0], small)


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", [None, PRESETS["light"]])
@pytest.mark.parametrize("pinned", [True, False])
def test_cuda_delivers_what_the_cpu_delivers(augmentation: Augmentation | None, pinned: bool) -> None:
    sources = [batch(step, 8, resolution) for step, resolution in enumerate((16, 16, 64, 64, 32, 16, 64))]
    if pinned:
        sources = [Batch(b.images.pin_memory(), b.labels, b.indices, b.keys, b.plan) for b in sources]
    expected = list(Transfer("cpu", MEAN, STD).batches(sources, augmentation))
    for got, want in zip(Transfer("cuda", MEAN, STD).batches(sources, augmentation), expected, strict=True):
        torch.cuda._sleep(1_000_000)  # a step that lasts longer than the next copy
        torch.testing.assert_close(got.images.cpu(), want.images)
        assert torch.equal(got.labels.cpu(), want.labels)


@pytest.mark.gpu
def test_cuda_sends_one_batch_ahead_and_never_waits_for_a_step() -> None:
    source = Source(count=6)
    transfer = Transfer("cuda", MEAN, STD)
    list(transfer.batches(Source(count=6).run(), PRESETS["strong"]))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number, _ in enumerate(transfer.batches(source.run(), PRESETS["strong"]), start=1):
            assert source.asked == min(number + 1, 6)
            torch.cuda._sleep(100_000)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("pinned", [True, False])
def test_cuda_holds_no_batch_when_an_epoch_is_left(pinned: bool) -> None:
    sources = [batch(step) for step in range(4)]
    if pinned:
        sources = [Batch(b.images.pin_memory(), b.labels, b.indices, b.keys, b.plan) for b in sources]
    transfer = Transfer("cuda", MEAN, STD)
    for _ in transfer.batches(sources):
        break
    assert not transfer._route._being_copied  # type: ignore[union-attr]


@pytest.mark.gpu
def test_cuda_trains_after_an_evaluation_of_larger_batches() -> None:
    transfer = Transfer("cuda", MEAN, STD)
    list(transfer.batches([batch(0)]))
    with torch.inference_mode():
        list(transfer.batches([batch(step, resolution=64) for step in range(4)]))
    for got, source in zip(transfer.batches([batch(0), batch(1)]), (batch(0), batch(1)), strict=True):
        torch.testing.assert_close(got.images.cpu(), fuse(source.images, MEAN, STD))


@pytest.mark.gpu
def test_cuda_counts_the_time_without_work() -> None:
    transfer = Transfer("cuda", MEAN, STD)
    list(transfer.batches(Source(count=3).run()))
    torch.cuda.synchronize()
    transfer.take_wait_seconds()
    list(transfer.batches(Source(count=5, pause=0.05).run()))
    torch.cuda.synchronize()
    assert transfer.take_wait_seconds() >= 0.2
    assert transfer.take_wait_seconds() == 0


@pytest.mark.gpu
def test_cuda_augments_on_its_own() -> None:
    transfer = Transfer("cuda", MEAN, STD)
    list(transfer.batches(Source(count=3).run(), PRESETS["strong"]))
    assert transfer.take_augment_seconds() == 0


@pytest.mark.gpu
def test_batches_on_the_device_are_not_copied() -> None:
    source = batch(0)
    on_device = Batch(source.images.cuda(), source.labels, source.indices, source.keys, source.plan)
    (got,) = Transfer("cuda", MEAN, STD).batches([on_device])
    torch.testing.assert_close(got.images.cpu(), fuse(source.images, MEAN, STD))
