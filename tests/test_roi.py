"""The region loader on packed sets: what tests/test_loader_contract.py asks of files, damage, and memory."""

from __future__ import annotations

import gc
import io
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from engine import train
from engine.setup import limit
from kernels.jpeg import JpegLibraryError, load_library
from loaders import roi_backend, roi_jobs
from loaders.bad_samples import BadSampleError, BadSamples
from loaders.buffers import BufferPool
from loaders.contract import Batch, LoaderError
from loaders.dataset import ImageDataset
from loaders.opening import open_data
from loaders.pack_job import pack
from loaders.pack_records import PackOptions
from loaders.pack_sources import source_of
from loaders.packed import PackedDataset, open_packed
from loaders.packed_manifest import MANIFEST
from loaders.pixels import load_window
from loaders.plan import EpochPlan, View, draw_batch, substitute
from loaders.registry import create_loader
from loaders.roi_backend import RoiLoader
from tests.folders import image_folder
from tests.images import dataset_of, photo, photos

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)

TOLERANCE = 0.5  # mean absolute difference to Pillow on the stored bytes, of 255
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed set with two shards for training and two renditions."""
    root = tmp_path_factory.mktemp("packed")
    for split, count in (("train", 31), ("val", 10)):
        for number in range(count):
            path = root / "photos" / split / ("cat", "dog")[number % 2] / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(400 - 3 * number, 310 + 2 * number, number).save(path, quality=92)
    source = source_of(open_data(str(root / "photos"), show_progress=False))
    pack(source, root / "set", PackOptions(shard_mb=1, renditions=(200, 100)), workers=1, show_progress=False)
    return root / "set"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(original, tmp_path / "set"))


def opened(folder: Path) -> PackedDataset:
    train = open_packed(folder).train
    assert isinstance(train, PackedDataset)
    return train


@pytest.fixture(scope="module")
def dataset(original: Path) -> PackedDataset:
    return opened(original)


def create(*datasets: ImageDataset, threads: int = 2, bad_samples: BadSamples | None = None) -> RoiLoader:
    return RoiLoader(datasets, threads, BadSamples() if bad_samples is None else bad_samples)


def contents(batches: Iterator[Batch]) -> list[tuple[list[int], list[int], bytes]]:
    return [(b.indices.tolist(), b.labels.tolist(), b.images.numpy().tobytes()) for b in batches]


def version_for(dataset: PackedDataset, index: int, window: np.ndarray, resolution: int) -> int | None:
    """Return the smallest rendition of a sample whose window has the resolution; None for the image."""
    chosen = None
    for number, rendition in enumerate(dataset.renditions):
        if min(window[2] * rendition.widths[index], window[3] * rendition.heights[index]) >= resolution:
            chosen = number
    return chosen


def differences(dataset: PackedDataset, batch: Batch, version: int | str | None = "chosen") -> list[float]:
    """Return the mean absolute difference to Pillow on the stored bytes, of each sample."""
    view = batch.plan.view
    plan = draw_batch(dataset, view, batch.plan.seed, batch.plan.epoch, 0, batch.indices.numpy(), batch.keys)
    found = []
    for position, index in enumerate(plan.indices.tolist()):
        window = plan.windows[position]
        which = version_for(dataset, index, window, view.resolution) if version == "chosen" else version
        record = io.BytesIO(dataset.record(index, which).tobytes())  # type: ignore[arg-type]
        expected = load_window(record, window, view.resolution, int(dataset.orientations[index]))
        if plan.flips[position]:
            expected = expected[:, ::-1]
        found.append(float(np.abs(batch.images[position].permute(1, 2, 0).numpy().astype(int) - expected).mean()))
    return found


@pytest.mark.parametrize(
    "view",
    [
        View(160, 8),
        View(64, 8),
        View(48, 8, scale=(0.02, 0.2)),
        View(32, 8, crop="padded"),
        View.evaluation(90, 8, crop_fraction=0.875),
    ],
    ids=["image", "renditions", "enlarged", "padded", "center"],
)
def test_pixels_are_those_of_the_stored_bytes(dataset: PackedDataset, view: View) -> None:
    with create(dataset) as loader:
        for batch in loader.run(EpochPlan(dataset, 1, view, seed=3)):
            assert max(differences(dataset, batch)) < TOLERANCE


def test_the_smallest_rendition_that_serves_is_read(dataset: PackedDataset) -> None:
    counts = dict.fromkeys((None, 0, 1), 0)
    near: dict[int | None, list[float]] = {None: [], 0: [], 1: []}
    with create(dataset) as loader:
        for resolution in (40, 90, 150):
            for batch in loader.run(EpochPlan(dataset, 0, View(resolution, 8))):
                chosen = differences(dataset, batch)
                whole = differences(dataset, batch, None)
                for position, index in enumerate(batch.indices.tolist()):
                    version = version_for(dataset, index, batch.plan.windows[position], resolution)
                    counts[version] += 1
                    near[version].append(whole[position])
                    assert chosen[position] < TOLERANCE
    assert min(counts.values()) > 5
    assert np.mean(near[None]) < TOLERANCE
    for rendition in (0, 1):
        assert 0.5 < np.mean(near[rendition]) < 8, "another file, the same picture"


def test_order_labels_and_keys(dataset: PackedDataset) -> None:
    plan = EpochPlan(dataset, 2, View(16, 5), seed=9)
    with create(dataset) as loader:
        for expected, batch in zip(plan, loader.run(plan), strict=True):
            assert batch.indices.tolist() == expected.indices.tolist()
            assert batch.labels.tolist() == dataset.labels[expected.indices].tolist()
            assert batch.keys.tolist() == expected.keys.tolist()
            assert batch.images.is_contiguous()


def test_same_batches_with_any_number_of_threads(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_backend, "usable_cores", lambda: 4.0)
    epochs = []
    for threads in (0, 1, 2, 4):
        with create(dataset, threads=threads) as loader:
            assert f"in {max(1, threads)} threads" in loader.describe()
            epochs.append(contents(loader.run(EpochPlan(dataset, 1, View(24, 4), seed=5))))
    assert epochs[1:] == epochs[:1] * 3


def test_start_in_the_middle_equals_the_tail(dataset: PackedDataset) -> None:
    plan = EpochPlan(dataset, 1, View(16, 4))
    with create(dataset) as loader:
        whole = contents(loader.run(plan))
        for begin in range(plan.num_batches + 1):
            assert contents(loader.run(plan.starting_at(begin))) == whole[begin:]


def test_sizes_batches_and_splits_switch(original: Path) -> None:
    data = open_packed(original)
    assert isinstance(data.val, PackedDataset) and isinstance(data.train, PackedDataset)
    with create(data.train, data.val) as loader:
        for epoch, (resolution, batch_size) in enumerate([(24, 4), (48, 8), (32, 3), (32, 31), (24, 4)]):
            for split, view in (
                (data.train, View(resolution, batch_size)),
                (data.val, View.evaluation(resolution, batch_size)),
            ):
                plan = EpochPlan(split, epoch, view)
                for expected, batch in zip(plan, loader.run(plan), strict=True):
                    assert batch.indices.tolist() == expected.indices.tolist()
                    assert max(differences(split, batch)) < TOLERANCE


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_break_then_another_epoch(dataset: PackedDataset, taken: int) -> None:
    second = EpochPlan(dataset, 2, View(24, 6))
    with create(dataset) as loader:
        expected = contents(loader.run(second))
        abandoned = loader.run(EpochPlan(dataset, 1, View(16, 3)))
        for _ in range(taken):
            next(abandoned)
        assert contents(loader.run(second)) == expected
        with pytest.raises(RuntimeError, match="another epoch was started"):
            next(abandoned)


@pytest.mark.parametrize("end", ["close", "with", "del"])
def test_no_thread_is_left(dataset: PackedDataset, end: str) -> None:
    loader = create(dataset)
    epoch = loader.run(EpochPlan(dataset, 0, View(16, 4)))
    next(epoch)
    assert any(thread.name.startswith("headrace-roi") for thread in threading.enumerate())
    if end == "close":
        loader.close()
        loader.close()
    elif end == "with":
        with loader:
            pass
    del loader, epoch
    gc.collect()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace-roi")]


def test_a_closed_loader_may_run_again(dataset: PackedDataset) -> None:
    plan = EpochPlan(dataset, 0, View(16, 4))
    loader = create(dataset)
    expected = contents(loader.run(plan))
    loader.close()
    with loader:
        assert contents(loader.run(plan)) == expected


def test_parts_of_a_set(original: Path) -> None:
    data = limit(open_packed(original), 12, 5, seed=1)
    chosen = data.train.select(np.array([7, 3, 3, 0]))
    relabeled = data.val.relabeled(("a", "b", "c"), np.full(5, 2, np.int64))
    with create(data.train, chosen, relabeled) as loader:
        for part, count in ((data.train, 12), (chosen, 4), (relabeled, 5)):
            assert isinstance(part, PackedDataset)
            batches = list(loader.run(EpochPlan(part, 0, View(40, 4))))
            assert sum(map(len, batches)) == count
            for batch in batches:
                assert max(differences(part, batch)) < TOLERANCE
                assert batch.labels.tolist() == part.labels[batch.indices.numpy()].tolist()


def flip_byte(folder: Path, dataset: PackedDataset, index: int, address: int) -> str:
    """Change a byte of a sample's shard; return where the sample is stored."""
    where = dataset.locate(index)
    shard = dataset.shards.files.index(where.removeprefix("shard ").split(",")[0])
    with (folder / dataset.shards.files[shard]).open("r+b") as file:
        file.seek(int(address - dataset.shards.bases[shard]))
        value = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([value ^ 16]))
    return where


@pytest.mark.parametrize("part", ["record", "restart index"])
def test_a_flipped_byte_is_a_bad_sample(folder: Path, part: str) -> None:
    dataset = opened(folder)
    bad = 25
    records = dataset.records
    address = records.addresses[bad] + 3000 if part == "record" else records.index_addresses[bad] + 8
    where = flip_byte(folder, dataset, bad, address)
    checksum = "checksum" if part == "record" else "checksum of the restart index"
    reason = f"{where}: {checksum} differs"
    plan = EpochPlan(dataset, 0, View(250, 4))  # larger than the renditions

    found = BadSamples(max_fraction=0.2)
    with create(dataset, bad_samples=found) as loader:
        for _ in range(2):
            for expected, batch in zip(plan, loader.run(plan), strict=True):
                indices = expected.indices.copy()
                for position in np.flatnonzero(indices == bad).tolist():
                    indices[position] = substitute(dataset, expected, position, 0).indices[0]
                assert batch.indices.tolist() == indices.tolist()
                assert max(differences(dataset, batch)) < TOLERANCE
        (sample,) = found
        assert (sample.index, sample.path, sample.reason) == (bad, dataset.paths[bad], reason)
        evaluated = loader.run(EpochPlan(dataset, 0, View.evaluation(250, 4)))
        delivered = [index for batch in evaluated for index in batch.indices.tolist()]
        assert delivered == [index for index in range(len(dataset)) if index != bad]

    with create(dataset, bad_samples=BadSamples("raise")) as loader, pytest.raises(BadSampleError) as raised:
        list(loader.run(plan))
    assert reason in str(raised.value)
    assert dataset.paths[bad] in str(raised.value)


def test_a_damaged_rendition_is_made_up_for_by_the_image(folder: Path) -> None:
    dataset = opened(folder)
    flip_byte(folder, dataset, 5, dataset.renditions[1].addresses[5] + 700)
    found = BadSamples()
    with create(dataset, bad_samples=found) as loader:
        batches = list(loader.run(EpochPlan(dataset, 0, View.evaluation(40, 31))))
    assert len(found) == 0
    assert differences(dataset, batches[0], None)[5] < TOLERANCE
    assert differences(dataset, batches[0])[4] < TOLERANCE


def test_an_exception_in_a_thread_reaches_the_caller(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = EpochPlan(dataset, 0, View(16, 4))

    def fail(*arguments: object) -> int:
        raise ZeroDivisionError("in a thread")

    raised = threading.Event()
    with create(dataset) as loader:
        expected = contents(loader.run(plan))
        for attribute in ("load_samples", "mark_done"):
            with monkeypatch.context() as patched:
                patched.setattr(roi_jobs, attribute, fail)
                if attribute == "mark_done":
                    patched.setattr(roi_jobs, "load_samples", lambda *arguments: 0)
                caller = threading.Thread(target=lambda: _expect_division(loader, plan, raised))
                caller.start()
                assert raised.wait(10)
                caller.join()
            raised.clear()
            assert contents(loader.run(plan)) == expected


def _expect_division(loader: RoiLoader, plan: EpochPlan, raised: threading.Event) -> None:
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        list(loader.run(plan))
    raised.set()


def test_closing_ends_a_wait(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def wait(*arguments: object) -> int:
        begun.set()
        assert go_on.wait(10)
        return -1

    def consume() -> None:
        try:
            list(loader.run(EpochPlan(dataset, 0, View(16, 4))))
        except RuntimeError as error:
            errors.append(error)

    monkeypatch.setattr(roi_jobs, "load_samples", wait)
    loader = create(dataset)
    consumer = threading.Thread(target=consume)
    consumer.start()
    assert begun.wait(10)
    closing = threading.Thread(target=loader.close)
    closing.start()
    consumer.join(10)
    assert not consumer.is_alive(), "it does not wait for what the threads are at"
    assert "the loader was closed" in str(errors[0])
    go_on.set()
    closing.join(10)
    assert not closing.is_alive()


def test_held_batches_and_views_of_them_stay(dataset: PackedDataset) -> None:
    with create(dataset) as loader:
        plan = EpochPlan(dataset, 0, View(24, 4))
        whole = [batch.images for batch in loader.run(plan)]
        views = [batch.images[1:, :, 3:9].float().sub_(1) if i % 2 else batch.images[2].permute(1, 2, 0)
                 for i, batch in enumerate(loader.run(plan))]  # fmt: skip
        arrays = [batch.images.numpy() for batch in loader.run(plan)]
        copies = [tensor.clone() for tensor in (*whole, *views)], [array.copy() for array in arrays]
        for epoch in range(1, 4):
            for _ in loader.run(EpochPlan(dataset, epoch, View(24, 4))):
                pass
    assert all(torch.equal(*pair) for pair in zip((*whole, *views), copies[0], strict=True))
    assert all(np.array_equal(*pair) for pair in zip(arrays, copies[1], strict=True))


def test_buffers_are_used_again(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    allocated: list[int] = []
    allocate = BufferPool._allocate
    monkeypatch.setattr(BufferPool, "_allocate", lambda pool, size: allocated.append(size) or allocate(pool, size))
    with create(dataset) as loader:
        places = {batch.images.data_ptr() for batch in loader.run(EpochPlan(dataset, 0, View(24, 4)))}
        assert len(places) <= loader.prefetch + 3
        counts = []
        for epoch in range(1, 9):
            for resolution, batch_size in ((24, 4), (64, 4), (32, 8)):
                for _ in loader.run(EpochPlan(dataset, epoch, View(resolution, batch_size))):
                    pass
            counts.append(len(allocated))
    assert counts[-1] - counts[3] <= 3, "what the largest batches have had serves, but for a thread that was late"


def test_memory_does_not_grow(dataset: PackedDataset) -> None:
    process = psutil.Process()

    def epochs(first: int, count: int) -> int:
        for epoch in range(first, first + count):
            for resolution, batch_size in ((96, 8), (160, 31), (128, 16)):
                for _ in loader.run(EpochPlan(dataset, epoch, View(resolution, batch_size))):
                    pass
        gc.collect()
        return process.memory_full_info().uss

    with create(dataset) as loader:
        before = epochs(0, 5)
        assert epochs(5, 20) - before < 8 << 20


@pytest.mark.parametrize("name", ["torch", "dali"])
def test_other_loaders_refuse_packed_sets(dataset: PackedDataset, name: str) -> None:
    with pytest.raises(LoaderError, match=r"photos/train is packed: only the loader roi reads packed sets"):
        create_loader(name, [dataset], 1, BadSamples())
    with create_loader("roi", [dataset], 1, BadSamples()) as loader:
        assert len(list(loader.run(EpochPlan(dataset, 0, View(16, 31))))) == 1


def test_a_missing_library_is_named() -> None:
    program = (
        "from loaders.registry import create_loader\n"
        "from loaders.bad_samples import BadSamples\n"
        "try: create_loader('roi', [], 1, BadSamples())\n"
        "except ImportError as error: print(error)"
    )
    environment = {**os.environ, "HEADRACE_TURBOJPEG": "/nonexistent"}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    for part in ("/nonexistent", "libturbojpeg0", "--loader torch", "--loader dali"):
        assert part in ended.stdout


def test_files_that_need_too_much_memory_are_left_to_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataset_of(photos(tmp_path, 6, [(300, 200)]))
    plan = EpochPlan(dataset, 0, View(32, 6))
    with create(dataset) as loader:
        (expected,) = loader.run(plan)
    monkeypatch.setattr(roi_jobs, "_FIRST_SCRATCH", 9000)
    monkeypatch.setattr(roi_jobs, "_MAX_SCRATCH", 20_000)
    with create(dataset) as loader:
        (batch,) = loader.run(plan)
    assert batch.indices.tolist() == expected.indices.tolist()
    assert float((batch.images.float() - expected.images.float()).abs().mean()) < 1
    monkeypatch.setattr(roi_jobs, "_MAX_SCRATCH", 1 << 28)
    with create(dataset) as loader:  # memory grows as it is needed
        (batch,) = loader.run(plan)
    assert torch.equal(batch.images, expected.images)


def test_a_folder_in_place_of_a_file_is_bad(tmp_path: Path) -> None:
    paths = photos(tmp_path, 6)
    dataset = dataset_of(paths)
    paths[2].unlink()
    paths[2].mkdir()
    found = BadSamples(max_fraction=0.2)
    with create(dataset, bad_samples=found) as loader:
        assert len(list(loader.run(EpochPlan(dataset, 0, View(16, 6))))) == 1
    assert [(sample.index, sample.reason) for sample in found] == [(2, "Is a directory")]


SMALL = ["--model", "resnet10t", "--batch-size", "8", "--resolutions", "32", "--num-workers", "1", "--threads", "1"]
ENGINE = [*SMALL, "--epochs", "1", "--loader", "roi"]


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "colors", train=24, val=9)


def train_on(folder: Path, root: Path, *options: str) -> None:
    assert (
        train.main([str(folder), *ENGINE, "--output", str(root / "runs"), "--cache", str(root / "cache"), *options])
        == 0
    )


def packing_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if "Packing" in record.getMessage()]
    caplog.clear()
    return messages


def test_training_packs_a_folder_once(colors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace")
    train_on(colors, tmp_path)
    (manifest,) = (tmp_path / "cache").glob(f"packed/*/{MANIFEST}")
    (message,) = packing_messages(caplog)
    assert str(manifest.parent) in message
    assert "--pack off" in message
    written = manifest.stat().st_mtime_ns
    train_on(colors, tmp_path)
    assert packing_messages(caplog) == []
    assert manifest.stat().st_mtime_ns == written
    assert len(list((tmp_path / "cache" / "packed").iterdir())) == 1


def test_training_on_files_as_they_are(colors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace")
    train_on(colors, tmp_path, "--pack", "off")
    assert packing_messages(caplog) == []
    assert not (tmp_path / "cache" / "packed").exists()


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="jpegtran is not installed")
def test_training_on_the_original_data(colors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace")
    train_on(colors, tmp_path, "--pack", "keep")
    (message,) = packing_messages(caplog)
    assert "original" in message
    (manifest,) = (tmp_path / "cache").glob(f"packed/*/{MANIFEST}")
    packed, plain = opened(manifest.parent), open_data(str(colors), show_progress=False).train
    by_name = {Path(plain.paths[index]).name: index for index in range(len(plain))}
    view = View.evaluation(32, len(packed))
    with create(packed, plain) as loader:
        (kept,) = loader.run(EpochPlan(packed, 0, view))
        (read,) = loader.run(EpochPlan(plain, 0, view))
    order = [by_name[Path(packed.paths[index]).name] for index in range(len(packed))]
    assert torch.equal(kept.images, read.images[order]), "without loss"
