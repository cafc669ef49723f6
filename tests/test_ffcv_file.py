"""The FFCV loader's file: what is stored, how it is written, and damage to it."""

from __future__ import annotations

import os
import shutil
import threading
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kernels.jpeg import load_library
from loaders.contract import LoaderError
from loaders.dataset import ImageDataset
from loaders.pixels import decode
from loaders.plan import EpochPlan, View
from tests.images import dataset_of, exif, photo, photos

pytest.importorskip("ffcv", reason="FFCV is not installed")

from loaders import ffcv_file
from loaders.ffcv_file import JPEG_500, RAW_256, Beton, Storage, open_beton
from loaders.ffcv_operation import Task, load_some
from tests.ffcv_files import RAW, loader_of, overwrite, stored


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    return dataset_of(photos(tmp_path, 12))


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
