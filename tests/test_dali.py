"""What is special to the DALI loader: geometry, border, conversion and recovery. The rest: test_loader_contract.py."""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loaders.bad_samples import BadSamples
from loaders.contract import Batch
from loaders.dali_geometry import lay_out
from loaders.dataset import ImageDataset
from loaders.pixels import decode, load_window
from loaders.plan import BatchPlan, EpochPlan, View
from loaders.wording import plural
from tests.images import damaged, dataset_of, exif, photo, photos

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

from loaders import dali_backend, dali_jobs
from loaders.dali_backend import DaliLoader


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    return dataset_of(photos(tmp_path, 12))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the largest batch of every pipeline that is built."""
    sizes: list[int] = []
    build = dali_backend.build_pipeline

    def recording(source: Any, names: Any, max_batch_size: int, *arguments: Any) -> Any:
        sizes.append(max_batch_size)
        return build(source, names, max_batch_size, *arguments)

    monkeypatch.setattr(dali_backend, "build_pipeline", recording)
    return sizes


def differences(dataset: ImageDataset, batch: Batch) -> np.ndarray:
    """Return the mean absolute difference to Pillow of every image of a batch."""
    out = []
    for image, index, window, flip in zip(
        batch.images.permute(0, 2, 3, 1).cpu().numpy(), batch.indices, batch.plan.windows, batch.plan.flips, strict=True
    ):
        orientation = int(dataset.orientations[index])
        expected = load_window(dataset.paths[index], window, batch.plan.resolution, orientation, scaled=False)
        out.append(np.abs(image.astype(int) - (expected[:, ::-1] if flip else expected)).mean())
    return np.array(out)


@given(
    data=st.data(),
    resolution=st.integers(1, 64),
    orientation=st.integers(1, 8),
    width=st.integers(1, 300),
    height=st.integers(1, 300),
)
@settings(deadline=None, max_examples=200)
def test_layout_covers_what_the_filter_reads(
    data: st.DataObject, resolution: int, orientation: int, width: int, height: int
) -> None:
    left, top = data.draw(st.floats(0, 0.98)), data.draw(st.floats(0, 0.98))
    window = np.array([[left, top, data.draw(st.floats(0.01, 1 - left)), data.draw(st.floats(0.01, 1 - top))]])
    geometry = lay_out(
        window, np.array([False]), np.array([width]), np.array([height]), np.array([orientation], np.uint8), resolution
    )
    stored = np.array([height, width] if orientation < 5 else [width, height])
    anchor, shape = geometry.anchor[0], geometry.shape[0]
    assert (anchor >= 0).all()
    assert (shape >= 1).all()
    assert (anchor + shape <= stored).all()
    begin = np.minimum(geometry.region_start, geometry.region_end)[0]
    extent = np.abs(geometry.region_end - geometry.region_start)[0]
    np.testing.assert_allclose(np.sort(extent), np.sort(window[0, 2:] * [width, height]), rtol=1e-3, atol=1e-3)

    scale = np.maximum(extent / resolution, 1)
    for axis in range(2):
        centers = begin[axis] + (np.array([0.5, resolution - 0.5]) * extent[axis] / resolution)
        first = anchor[axis] + geometry.padded_anchor[0, axis]
        size = geometry.padded_shape[0, axis]
        low, high = centers[0] - scale[axis], centers[1] + scale[axis]
        assert low > -0.5 or first <= 0  # no pixel's center that the filter reaches is missing
        assert high < size + 0.5 or first + size >= stored[axis]
    assert (geometry.gains >= 1).all()


@pytest.mark.parametrize("resolution", [4, 7, 33, 90, 250])
@pytest.mark.parametrize("crop", ["random-resized", "center"])
def test_borders_are_pillows_at_any_scale(tmp_path: Path, resolution: int, crop: Any) -> None:
    paths = []
    for orientation in range(1, 9):
        paths.append(tmp_path / f"{orientation}.png")
        noise = np.random.default_rng(orientation).integers(0, 256, (70, 131, 3), dtype=np.uint8)
        noise[:2], noise[:, -3:] = 255, 0  # a frame, which repeated would show
        Image.fromarray(noise).save(paths[-1], exif=exif(orientation))
    dataset = dataset_of(paths * 4)
    view = View(resolution, 32, crop=crop, scale=(0.3, 1.0))
    with DaliLoader([dataset], 1, BadSamples()) as loader:
        (batch,) = loader.run(EpochPlan(dataset, 0, view))
    assert differences(dataset, batch).max() < 0.5


def test_one_pipeline_serves_everything(dataset: ImageDataset, built: list[int]) -> None:
    with DaliLoader([dataset], 1, BadSamples()) as loader:
        for epoch, (resolution, batch_size) in enumerate([(16, 6), (48, 4), (24, 6), (24, 9), (16, 6)]):
            for batch in loader.run(EpochPlan(dataset, epoch, View(resolution, batch_size))):
                assert batch.images.shape[-1] == resolution
            next(loader.run(EpochPlan(dataset, epoch, View(resolution, batch_size))))
    assert built == [6, 9]


def test_nothing_is_scheduled_beyond_the_plan(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    make = dali_jobs.JobMaker.make

    def recording(self: dali_jobs.JobMaker, number: int, plan: BatchPlan) -> dali_jobs.Job:
        steps.append(plan.step)
        return make(self, number, plan)

    monkeypatch.setattr(dali_jobs.JobMaker, "make", recording)
    with DaliLoader([dataset], 1, BadSamples(), prefetch=3) as loader:
        epoch = loader.run(EpochPlan(dataset, 0, View(16, 2)))
        assert steps == [0, 1, 2]
        next(epoch)
        assert steps == [0, 1, 2, 3]
        assert len(list(epoch)) == 5
    assert steps == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8, 0.95, 0.99, 0.999])
def test_truncation_below_the_crop_is_found(tmp_path: Path, keep: float) -> None:
    paths = photos(tmp_path, 5, [(200, 400)])
    data = paths[2].read_bytes()
    paths[2].write_bytes(data[: int(keep * len(data))])
    dataset = dataset_of(paths)
    found = BadSamples(max_fraction=0.5)
    with DaliLoader([dataset], 1, found) as loader:
        (batch,) = loader.run(EpochPlan(dataset, 0, View.evaluation(16, 5, crop_fraction=0.1)))
    assert batch.indices.tolist() == [0, 1, 3, 4]
    assert [sample.index for sample in found] == [2]


def test_bytes_after_a_jpeg_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = photos(tmp_path, 4)
    paths[1].write_bytes(paths[1].read_bytes() + b"\0\0some camera's notes")
    examined: list[str] = []

    def recording(path: str) -> Image.Image:
        examined.append(path)
        return decode(path)

    monkeypatch.setattr(dali_jobs, "decode", recording)
    dataset = dataset_of(paths)
    with DaliLoader([dataset], 1, BadSamples("raise")) as loader:
        for epoch in range(3):
            assert sum(len(batch) for batch in loader.run(EpochPlan(dataset, epoch, View(24, 2)))) == 4
    assert examined == [str(paths[1])]  # once


def _bitmap_555(path: Path) -> None:
    """Write a BMP of 16 bits a pixel, which Pillow reads and DALI does not."""
    pixels = np.asarray(photo(40, 30, seed=5)).astype(np.uint16) >> 3
    packed = (pixels[::-1, :, 0] << 10 | pixels[::-1, :, 1] << 5 | pixels[::-1, :, 2]).astype("<u2").tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, 40, 30, 1, 16, 0, len(packed), 0, 0, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54 + len(packed), 0, 0, 54) + header + packed)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own for temporary files."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def test_files_that_only_pillow_reads_are_converted(tmp_path: Path, scratch: Path, built: list[int]) -> None:
    paths = photos(tmp_path, 8)
    _bitmap_555(tmp_path / "555.bmp")
    photo(60, 80, seed=3).convert("CMYK").save(tmp_path / "cmyk.jpg")
    dataset = dataset_of([*paths, tmp_path / "555.bmp", tmp_path / "cmyk.jpg"])
    with DaliLoader([dataset], 1, BadSamples("raise")) as loader:
        for epoch in range(3):
            for batch in loader.run(EpochPlan(dataset, epoch, View(32, 5))):
                assert differences(dataset, batch).max() < 0.5
            assert list(scratch.iterdir()) == []
        built_so_far = len(built)
        next(loader.run(EpochPlan(dataset, 3, View(32, 5))))
        next(loader.run(EpochPlan(dataset, 4, View(32, 5))))
        assert len(built) == built_so_far
    assert list(scratch.iterdir()) == []


def test_many_bad_files_in_flight(tmp_path: Path) -> None:
    kinds = ("early", "png", "empty", "webp")
    paths = [
        damaged(tmp_path, kinds[n % 4], f"bad{n}") if n % 3 == 0 else photos(tmp_path, n + 1)[n] for n in range(24)
    ]
    dataset = dataset_of(paths)
    found = BadSamples(max_fraction=0.5)
    with DaliLoader([dataset], 2, found, prefetch=3) as loader:
        first = [batch.indices.tolist() for batch in loader.run(EpochPlan(dataset, 0, View(16, 4)))]
        assert [batch.indices.tolist() for batch in loader.run(EpochPlan(dataset, 0, View(16, 4)))] == first
    assert {sample.index for sample in found} == set(range(0, 24, 3))
    assert all(index % 3 for batch in first for index in batch)


def test_break_with_a_bad_batch_in_flight(tmp_path: Path) -> None:
    paths = [*photos(tmp_path, 8), damaged(tmp_path, "early")]
    dataset = dataset_of(paths)
    with DaliLoader([dataset], 1, BadSamples(max_fraction=0.5), prefetch=2) as loader:
        for _ in range(3):
            next(loader.run(EpochPlan(dataset, 0, View.evaluation(16, 8))))
        batches = list(loader.run(EpochPlan(dataset, 0, View.evaluation(16, 8))))
    assert [len(batch) for batch in batches] == [8, 0]


def test_failure_without_a_culprit_is_raised(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from nvidia.dali import Pipeline

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with DaliLoader([dataset], 1, BadSamples()) as loader:
        epoch = loader.run(EpochPlan(dataset, 0, View(16, 4)))
        with monkeypatch.context() as patch:
            patch.setattr(Pipeline, "share_outputs", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                next(epoch)
        assert sum(len(batch) for batch in loader.run(EpochPlan(dataset, 0, View(16, 4)))) == len(dataset)


def test_threads_are_the_cores_at_most(dataset: ImageDataset) -> None:
    cores = len(os.sched_getaffinity(0))
    for num_workers, threads in ((0, 1), (1, 1), (10_000, cores)):
        assert f" {plural(threads, 'thread')}" in DaliLoader([dataset], num_workers, BadSamples()).describe()


def test_without_dali_the_message_says_what_to_do(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ImportError, match=r"headrace\[dali\].*nvidia-dali-cuda130.*--loader torch"):
        DaliLoader([dataset], 1, BadSamples())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pixels_on_a_gpu(tmp_path: Path) -> None:
    paths = photos(tmp_path, 16, [(200, 150), (97, 131), (60, 60)])
    for name, mode in (("a.png", "RGBA"), ("b.png", "P"), ("c.png", "L"), ("d.jpg", "CMYK"), ("e.webp", "RGB")):
        photo(90, 70, seed=9).convert(mode).save(tmp_path / name)
        paths.append(tmp_path / name)
    photo(90, 70, seed=9).save(tmp_path / "f.jpg", exif=exif(6))
    bad = damaged(tmp_path, "early")
    dataset = dataset_of([*paths, tmp_path / "f.jpg", bad])
    found = BadSamples(max_fraction=0.1)
    with DaliLoader([dataset], 2, found, torch.device("cuda")) as loader:
        for view in (View.evaluation(64, 6), View.evaluation(24, 8, crop_fraction=0.9), View.evaluation(160, 8)):
            for batch in loader.run(EpochPlan(dataset, 0, view)):
                assert batch.images.is_cuda
                assert batch.images.is_contiguous(memory_format=torch.channels_last)
                whole = [index for index in batch.plan.indices if dataset.paths[index] != str(bad)]
                assert batch.indices.tolist() == whole
                if len(whole) == len(batch.plan):
                    assert differences(dataset, batch).max() < 1
    assert [sample.path for sample in found] == [str(bad)]
