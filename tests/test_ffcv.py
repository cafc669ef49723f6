"""What is special to the FFCV loader: its file, damage to it, and FFCV's traps. The rest: test_loader_contract.py."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import sys
import threading
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from PIL import Image

from kernels.jpeg import load_library
from loaders.bad_samples import BadSampleError, BadSamples
from loaders.contract import Batch, LoaderError
from loaders.dataset import ImageDataset
from loaders.pixels import decode
from loaders.plan import BatchPlan, EpochPlan, View, substitute
from tests.images import DAMAGES, damaged, dataset_of, exif, photo, photos

pytest.importorskip("ffcv", reason="FFCV is not installed")

from loaders import ffcv_backend, ffcv_file
from loaders.ffcv_backend import FfcvLoader
from loaders.ffcv_file import JPEG_500, RAW_256, Beton, Storage, open_beton
from loaders.ffcv_operation import Task, load_some

RAW = Storage(500, None)  # the tests' photos, as they are


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    return dataset_of(photos(tmp_path, 12))


def loader_of(dataset: ImageDataset, cache: Path, storage: Storage = JPEG_500, **options: Any) -> FfcvLoader:
    options = {"num_workers": 1, "bad_samples": BadSamples(max_fraction=0.5)} | options
    return FfcvLoader([dataset], storage=storage, cache=cache, show_progress=False, **options)


def stored(beton: Beton, index: int) -> Image.Image:
    """Decode a record with Pillow."""
    data = beton.record(index).tobytes()
    if beton.modes[index] == ffcv_file.JPEG:
        return Image.open(io.BytesIO(data))
    return Image.frombytes("RGB", (int(beton.widths[index]), int(beton.heights[index])), data)


def differences(beton: Beton, batch: Batch) -> np.ndarray:
    """Return the mean absolute difference to Pillow of every image of a batch, on the stored bytes."""
    out = []
    size = batch.plan.resolution
    for image, index, window, flip in zip(
        batch.images.permute(0, 2, 3, 1).numpy(), batch.indices, batch.plan.windows, batch.plan.flips, strict=True
    ):
        whole = stored(beton, int(index))
        left, top, width, height = window * (whole.size * 2)
        box = (left, top, min(left + width, whole.width), min(top + height, whole.height))
        expected = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box=box))
        out.append(np.abs(image.astype(int) - (expected[:, ::-1] if flip else expected)).mean())
    return np.array(out)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(data)


# The file


@pytest.mark.parametrize("storage", [JPEG_500, RAW_256, Storage(40, 90), Storage(40, None)], ids=lambda s: s.name)
def test_stored_images_are_the_files_upright_and_reduced(tmp_path: Path, cache: Path, storage: Storage) -> None:
    paths = []

    def save(image: Image.Image, name: str, **options: Any) -> None:
        paths.append(tmp_path / name)
        image.save(paths[-1], **options)

    rgb = photo(61, 47, seed=1)
    translucent = rgb.copy()
    translucent.putalpha(photo(61, 47, seed=2).convert("L"))
    save(rgb, "a.png")
    save(rgb.convert("L"), "gray.jpg", quality=95, comment=b"not to be copied")
    save(rgb.convert("CMYK"), "cmyk.jpg", quality=95)
    save(rgb.quantize(64), "palette.png")
    save(translucent, "alpha.webp", lossless=True)
    save(Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257), "gray16.png")
    save(photo(3, 180), "narrow.png")
    for orientation in (3, 6):
        save(rgb, f"phone{orientation}.jpg", exif=exif(orientation), quality=95)

    dataset = dataset_of(paths)
    beton = open_beton(dataset, storage, cache, show_progress=False)
    assert beton.bad == {}
    for index, path in enumerate(paths):
        whole, image = decode(path), stored(beton, index)
        reduction = min(1, storage.max_side / max(whole.size))
        assert image.size == tuple(max(1, round(side * reduction)) for side in whole.size)
        assert image.size == (beton.widths[index], beton.heights[index])
        assert image.mode == "RGB"
        assert not {"comment", "exif"} & set(image.info)
        expected = np.asarray(whole.resize(image.size, Image.Resampling.LANCZOS)).astype(int)
        assert np.abs(np.asarray(image) - expected).mean() < (8 if storage.quality else 1e-9), path.name


@pytest.mark.parametrize("storage", [RAW, RAW_256, Storage(32, None)], ids=lambda s: s.name)
@pytest.mark.parametrize("view", [View(48, 5), View(24, 5, scale=(0.02, 0.1)), View.evaluation(33, 5, 0.9)])
def test_raw_pixels_are_pillows(dataset: ImageDataset, cache: Path, storage: Storage, view: View) -> None:
    with loader_of(dataset, cache, storage) as loader:
        batches = list(loader.run(EpochPlan(dataset, 0, view)))
    beton = open_beton(dataset, storage, cache)
    assert max(differences(beton, batch).max() for batch in batches) < 0.5


def test_a_file_is_written_once(dataset: ImageDataset, cache: Path) -> None:
    for _ in range(2):
        for storage in (JPEG_500, RAW_256):
            with loader_of(dataset, cache, storage) as loader:
                next(loader.run(EpochPlan(dataset, 0, View(16, 4))))
        files = {path.name: path.stat().st_mtime_ns for path in (cache / "ffcv").glob("*.beton")}
        assert len(files) == 2
    assert files == {path.name: path.stat().st_mtime_ns for path in (cache / "ffcv").glob("*.beton")}
    assert not list((cache / "ffcv").glob(".*"))


def test_samples_of_one_file_share_a_record(dataset: ImageDataset, cache: Path) -> None:
    many = dataset.select(np.tile(np.arange(len(dataset)), 40))
    beton = open_beton(many, JPEG_500, cache, show_progress=False)
    assert len(np.unique(beton.offsets)) == len(dataset)
    for index in (0, 5, 12 * 39 + 5):
        whole = np.asarray(decode(many.paths[index])).astype(int)
        assert np.abs(np.asarray(stored(beton, index)) - whole).mean() < 8


def test_of_two_that_need_a_file_one_writes_it(
    dataset: ImageDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = ffcv_file._write

    def recording(path: Path, *arguments: Any) -> None:
        written.append(path)
        write(path, *arguments)

    monkeypatch.setattr(ffcv_file, "_write", recording)
    threads = [threading.Thread(target=open_beton, args=(dataset, JPEG_500, cache, False)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1


def test_an_error_while_writing_leaves_nothing(
    dataset: ImageDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> Image.Image:
        if path == dataset.paths[7]:
            raise OSError(28, "No space left on device")
        return decode(path)

    with monkeypatch.context() as patch:
        patch.setattr(ffcv_file, "decode", fail)
        with pytest.raises(OSError, match="No space left"):
            open_beton(dataset, JPEG_500, cache, show_progress=False)
    assert [path.suffix for path in (cache / "ffcv").iterdir()] == [".lock"]
    assert len(open_beton(dataset, JPEG_500, cache, show_progress=False).offsets) == len(dataset)


def test_room_is_looked_for_first(dataset: ImageDataset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LoaderError, match=r"takes about .* GB .* has 0\.0 GB free"):
        open_beton(dataset, JPEG_500, cache, show_progress=False)
    assert not list((cache / "ffcv").glob("*.beton"))


# Bad files and damaged records


@pytest.mark.parametrize("storage", [JPEG_500, RAW_256], ids=lambda s: s.name)
def test_bad_files_keep_their_place(tmp_path: Path, cache: Path, storage: Storage) -> None:
    good = photos(tmp_path, 9)
    paths = [path for pair in zip(good, [damaged(tmp_path, d, d) for d in DAMAGES], strict=False) for path in pair]
    dataset = dataset_of(paths)
    bad = {i for i, path in enumerate(paths) if path not in good}
    beton = open_beton(dataset, storage, cache, show_progress=False)
    assert set(beton.bad) == bad
    assert all(beton.bad.values())
    rows = beton.path.with_suffix(".bad.csv").read_text().splitlines()
    assert len(rows) == len(bad) + 1
    assert all(str(paths[i]) in row for i, row in zip(sorted(bad), rows[1:], strict=True))
    for _ in range(2):  # the second time from the list
        found = BadSamples(max_fraction=1)
        with loader_of(dataset, cache, storage, bad_samples=found) as loader:
            delivered = [
                i for b in loader.run(EpochPlan(dataset, 0, View.evaluation(16, 4))) for i in b.indices.tolist()
            ]
        assert delivered == sorted(set(range(len(paths))) - bad)
        assert {sample.index: sample.reason for sample in found} == beton.bad


def test_what_an_earlier_run_found_bad_stays_bad(dataset: ImageDataset, cache: Path) -> None:
    found = BadSamples(max_fraction=0.5)
    found.load_state_dict([(dataset.name, 3, dataset.paths[3], "found by another loader")])
    with loader_of(dataset, cache, bad_samples=found) as loader:
        (batch,) = loader.run(EpochPlan(dataset, 0, View(16, 12)))
    assert 3 not in batch.indices.tolist()
    assert len(batch) == 12


def damage_record(beton: Beton, index: int) -> None:
    overwrite(beton.path, int(beton.offsets[index]) + 2, bytes(int(beton.lengths[index]) // 2))


@pytest.mark.parametrize("known", [False, True])
def test_a_damaged_record_is_a_bad_sample(dataset: ImageDataset, cache: Path, known: bool) -> None:
    beton = open_beton(dataset, JPEG_500, cache, show_progress=False)
    damage_record(beton, 5)
    plan = EpochPlan(dataset, 0, View(32, 4))
    found = BadSamples(max_fraction=0.5)
    with loader_of(dataset, cache, bad_samples=found) as loader:
        if known:
            list(loader.run(plan))
        for expected, batch in zip(plan, loader.run(plan), strict=True):
            indices = expected.indices.copy()
            for position in np.flatnonzero(indices == 5).tolist():
                indices[position] = _first_replacement(dataset, expected, position, {5})
            assert batch.indices.tolist() == indices.tolist()
            assert batch.images.float().std(dim=(1, 2, 3)).min() > 5  # no empty image, no leftover
        left = [b.indices.tolist() for b in loader.run(EpochPlan(dataset, 0, View.evaluation(32, 4)))]
    assert left == [[0, 1, 2, 3], [4, 6, 7], [8, 9, 10, 11]]
    (sample,) = found
    assert (sample.index, sample.path) == (5, dataset.paths[5])
    assert str(beton.path) in sample.reason
    with (
        loader_of(dataset, cache, bad_samples=BadSamples("raise")) as loader,
        pytest.raises(BadSampleError, match=r"sample 5 of test"),
    ):
        list(loader.run(plan))


def _first_replacement(dataset: ImageDataset, plan: BatchPlan, position: int, bad: set[int]) -> int:
    attempts = (int(substitute(dataset, plan, position, attempt).indices[0]) for attempt in range(100))
    return next(index for index in attempts if index not in bad)


def test_a_damaged_replacement_is_replaced_as_well(dataset: ImageDataset, cache: Path) -> None:
    beton = open_beton(dataset, JPEG_500, cache, show_progress=False)
    plan = EpochPlan(dataset, 0, View(16, 12))
    batch = plan.batch(0)
    position = int(np.flatnonzero(batch.indices == 2)[0])
    second = _first_replacement(dataset, batch, position, {2})
    damage_record(beton, 2)
    damage_record(beton, second)
    found = BadSamples(max_fraction=0.5)
    with loader_of(dataset, cache, bad_samples=found) as loader:
        (delivered,) = loader.run(plan)
    assert delivered.indices[position] == _first_replacement(dataset, batch, position, {2, second})
    assert {sample.index for sample in found} == {2, second}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageDataset, Beton]:
    folder = tmp_path_factory.mktemp("example")
    dataset = dataset_of(photos(folder, 6))
    load_library()
    return dataset, open_beton(dataset, RAW, folder / "cache", show_progress=False)


@pytest.mark.parametrize("keep", [0, 1, 20, 1000, 3000, 0.3, 0.99, 0.999999])
def test_a_file_cut_off_is_an_error(example: tuple[ImageDataset, Beton], keep: float) -> None:
    dataset, beton = example
    whole = beton.path.read_bytes()
    cut = beton.path.parent / "cut.beton"
    cut.write_bytes(whole[: keep if isinstance(keep, int) else min(len(whole) - 1, int(keep * len(whole)))])
    with pytest.raises((ValueError, LookupError, AssertionError, OSError)):
        ffcv_file._opened(cut, {}, len(dataset))


def test_the_message_names_the_damaged_file(dataset: ImageDataset, cache: Path) -> None:
    path = open_beton(dataset, JPEG_500, cache, show_progress=False).path
    os.truncate(path, path.stat().st_size - 8)
    with loader_of(dataset, cache) as loader, pytest.raises(LoaderError, match=rf"{path.name} is damaged .*remove it"):
        loader.run(EpochPlan(dataset, 0, View(16, 4)))


@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    window=st.sampled_from([(0.0, 0.0, 1.0, 1.0), (0.1, 0.5, 0.9, 0.5), (0.99, 0.0, 0.01, 0.01)]),
)
@settings(max_examples=200, deadline=None)
def test_whatever_the_tables_say_nothing_else_is_read(
    example: tuple[ImageDataset, Beton], places: list[tuple[float, int]], window: tuple[float, ...]
) -> None:
    dataset, beton = example
    size = beton.path.stat().st_size
    count = len(dataset)
    example_plan = EpochPlan(dataset, 0, View(8, 1)).batch(0)
    told = [*range(24), *range(2106, 2106 + 24 * count), *range(size - 24 * count, size)]  # header, samples, records
    before = {told[int(place * len(told))]: b"" for place, _ in places}
    for offset in before:
        before[offset] = beton.data[offset : offset + 1].tobytes()
    try:
        for place, value in places:
            overwrite(beton.path, told[int(place * len(told))], bytes([value]))
        try:
            opened = ffcv_file._opened(beton.path, {}, count)
        except (ValueError, LookupError, AssertionError, OSError):
            return
        for index in range(count):
            assert 0 <= opened.offsets[index] <= opened.offsets[index] + opened.lengths[index] <= size
            images = np.zeros((1, 3, 8, 8), np.uint8)
            plan = replace(example_plan, indices=np.array([index]), windows=np.array([window]))
            task = Task.of(plan, images, 1)
            task.records[0] = opened.place(index)
            load_some(task)
            fits = opened.lengths[index] == 3 * int(opened.widths[index]) * int(opened.heights[index])
            assert (task.statuses[0] == 0) == (fits and opened.modes[index] == ffcv_file.RAW)
    finally:
        for offset, byte in before.items():
            overwrite(beton.path, offset, byte)


# FFCV's traps


def test_an_exception_in_the_thread_reaches_the_consumer(
    dataset: ImageDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = EpochPlan.batch

    def failing(self: EpochPlan, step: int) -> BatchPlan:
        if step == 2:
            raise MemoryError("no room for the plan")
        return batch(self, step)

    plan = EpochPlan(dataset, 0, View(16, 2))
    with loader_of(dataset, cache) as loader:
        with monkeypatch.context() as patch:
            patch.setattr(EpochPlan, "batch", failing)
            epoch = loader.run(plan)
            assert [len(next(epoch)) for _ in range(2)] == [2, 2]
            with pytest.raises(LoaderError, match="no room for the plan"):
                next(epoch)
        assert sum(len(b) for b in loader.run(plan)) == len(dataset)


def test_one_library_loader_serves_every_epoch(
    dataset: ImageDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    build = ffcv_backend.build_loader

    def recording(beton: Beton, *arguments: Any) -> Any:
        built.append(beton.path)
        return build(beton, *arguments)

    monkeypatch.setattr(ffcv_backend, "build_loader", recording)
    with loader_of(dataset, cache, RAW) as loader:
        beton = open_beton(dataset, RAW, cache)
        for epoch, (resolution, batch_size) in enumerate([(16, 6), (48, 4), (24, 6), (24, 9), (16, 6)]):
            for batch in loader.run(EpochPlan(dataset, epoch, View(resolution, batch_size))):
                assert differences(beton, batch).max() < 0.5
    assert built == [beton.path]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_loaders_side_by_side(dataset: ImageDataset, tmp_path: Path, cache: Path, num_workers: int) -> None:
    (tmp_path / "other").mkdir()
    other = dataset_of(photos(tmp_path / "other", 12, [(40, 60)]), name="other")
    with loader_of(dataset, cache, RAW, num_workers=num_workers) as one, loader_of(other, cache, RAW) as two:
        betons = [open_beton(d, RAW, cache, show_progress=False) for d in (dataset, other)]
        for epoch in range(2):
            plans = [EpochPlan(dataset, epoch, View(40, 3)), EpochPlan(other, epoch, View.evaluation(24, 3))]
            pairs = zip(one.run(plans[0]), two.run(plans[1]), strict=True)
            assert (
                max(differences(b, batch).max() for pair in pairs for b, batch in zip(betons, pair, strict=True)) < 0.5
            )


def test_leaving_epochs_early_leaves_no_threads(dataset: ImageDataset, cache: Path) -> None:
    with loader_of(dataset, cache) as loader:
        next(loader.run(EpochPlan(dataset, 0, View(16, 2))))
        running = threading.active_count()
        for epoch in range(6):
            next(loader.run(EpochPlan(dataset, epoch, View(16, 2))))
        assert threading.active_count() == running
    assert threading.active_count() < running


def test_pytorch_keeps_its_threads(dataset: ImageDataset, cache: Path) -> None:
    def threads_elsewhere() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with loader_of(dataset, cache) as loader:
            for _ in loader.run(EpochPlan(dataset, 0, View(16, 4))):
                assert torch.get_num_threads() == threads_elsewhere() == 3
        assert torch.get_num_threads() == threads_elsewhere() == 3
    finally:
        torch.set_num_threads(before)


def test_numba_compiles_what_writes_to_bytes(dataset: ImageDataset, cache: Path) -> None:
    @njit
    def fill(array: np.ndarray) -> None:
        array[:] = 7

    with loader_of(dataset, cache) as loader:
        next(loader.run(EpochPlan(dataset, 0, View(16, 4))))
        array = np.zeros(3, np.uint8)
        fill(array)
    assert array.tolist() == [7, 7, 7]


def test_global_generators_are_left_alone(dataset: ImageDataset, cache: Path) -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    states = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with loader_of(dataset, cache) as loader:
        list(loader.run(EpochPlan(dataset, 0, View(16, 4))))
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def test_threads_are_the_cores_at_most(dataset: ImageDataset, cache: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    for num_workers, threads in ((0, 1), (1, 1), (10_000, cores)):
        assert int(loader_of(dataset, cache, num_workers=num_workers).describe().split()[-2]) in range(1, threads + 1)


def test_without_a_threading_layer_one_thread_works(
    dataset: ImageDataset, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ffcv_backend.numba, "threading_layer", lambda: "workqueue")
    with loader_of(dataset, cache, num_workers=2) as loader:
        assert sum(len(b) for b in loader.run(EpochPlan(dataset, 0, View(16, 4)))) == len(dataset)
        assert loader.describe().endswith("1 threads")
    assert any("installing tbb" in record.message for record in caplog.records)


def test_without_ffcv_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ffcv.fields", None)
    monkeypatch.delitem(sys.modules, "loaders.ffcv_library")
    with pytest.raises(ImportError, match=r"(?s)apt-get install .*libturbojpeg0-dev.*headrace\[ffcv\].*--loader torch"):
        importlib.import_module("loaders.ffcv_library")
