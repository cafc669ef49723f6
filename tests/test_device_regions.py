"""Resampling of regions on the device: the filter in floating point and Pillow are the oracles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kernels.device_regions import Plane, Regions, bus_bytes, regions_fit, resample_by_torch, resample_regions
from tests.without_gpu import compile_only, run_interpreted

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True)
class Sample:
    """A decoded image, and a window and turns to see it by.

    Attributes:
        planes: Y, Cb, Cr, uint8 (rows, columns) each, or Y alone.
        block: samples of each component in a tile, width and height.
        box: left, top, right, bottom in samples of Y.
        turns: transposed, mirrored left to right, mirrored top to bottom.
    """

    planes: list[np.ndarray]
    block: list[tuple[int, int]]
    per_strip: int
    box: tuple[float, float, float, float]
    turns: tuple[bool, bool, bool]

    def boxes(self) -> list[tuple[float, ...]]:
        """Return the box in samples of each component."""
        return [
            tuple(edge * own[i % 2] / self.block[0][i % 2] for i, edge in enumerate(self.box)) for own in self.block
        ]


@dataclass(frozen=True)
class Batch:
    """Samples, and what is uploaded of them."""

    samples: list[Sample]
    regions: Regions
    resolution: int


def content(height: int, width: int, seed: int) -> np.ndarray:
    """Return noise, extremes, or a smooth slope."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width), np.uint8)
    slope = np.add.outer(np.arange(height), np.arange(width)) * 255 // (height + width)
    return (pixels, np.where(pixels > 127, 255, 0), slope)[seed % 3].astype(np.uint8)


def batch_of(samples: list[Sample], resolution: int) -> Batch:
    """Lay out what the filters reach of the samples as the decoder does, with noise where there is no image."""
    random = np.random.default_rng(len(samples))
    strips, positions, planes, windows = [np.empty(0, np.uint8)], [], [], []
    for sample in samples:
        block_width, block_height = sample.block[0]
        height, width = sample.planes[0].shape
        columns, rows = -(-width // block_width), -(-height // block_height)
        unit = max(block_width // sample.block[-1][0], block_height // sample.block[-1][1])
        reach = max(sample.box[2] - sample.box[0], sample.box[3] - sample.box[1]) / resolution + 2 * unit
        left, top = (
            max(0, int((edge - reach) // size)) for edge, size in zip(sample.box[:2], sample.block[0], strict=True)
        )
        right = min(columns, math.ceil((sample.box[2] + reach) / block_width))
        bottom = min(rows, math.ceil((sample.box[3] + reach) / block_height))
        k = sample.per_strip
        intervals = sorted({(r * columns + c) // k for r in range(top, bottom) for c in range(left, right)})
        firsts = [r * columns + left for r in range(top, bottom)]
        first = len(positions)
        positions += [intervals.index(tile // k) * k + tile % k for tile in firsts]
        planes.append([])
        windows.append([])
        for plane, (w, h), box in zip(sample.planes, sample.block, sample.boxes(), strict=True):
            padded = random.integers(0, 256, (rows * h, columns * w), np.uint8)
            padded[: plane.shape[0], : plane.shape[1]] = plane
            tiles = padded.reshape(rows, h, columns, w).swapaxes(1, 2).reshape(-1, h, w)
            stride = k * w + len(positions) % 3
            strip = random.integers(0, 256, (len(intervals) * h, stride), np.uint8)
            for line, interval in enumerate(intervals):
                for slot, tile in enumerate(tiles[interval * k : (interval + 1) * k]):
                    strip[line * h : (line + 1) * h, slot * w : (slot + 1) * w] = tile
            valid = min(plane.shape[1], right * w) - left * w, min(plane.shape[0], bottom * h) - top * h
            planes[-1].append([sum(map(len, strips)), stride, w, h, k, first, *valid])
            windows[-1].append([box[0] - left * w, box[1] - top * h, box[2] - box[0], box[3] - box[1]])
            strips.append(strip.ravel())
        while len(planes[-1]) < 3:
            planes[-1].append([0] * 8)
            windows[-1].append([0, 0, 1, 1])
    return Batch(
        samples,
        Regions(
            torch.from_numpy(np.concatenate(strips)),
            torch.tensor(positions, dtype=torch.int64),
            torch.tensor(planes, dtype=torch.int64).view(-1, 3, 8),
            torch.tensor(windows, dtype=torch.float64).view(-1, 3, 4),
            torch.tensor([sample.turns for sample in samples], dtype=torch.bool).view(-1, 3),
        ),
        resolution,
    )


@st.composite
def batches(draw: st.DrawFn, longest: int = 90, lowest_resolution: int = 1) -> Batch:
    resolution = draw(st.integers(lowest_resolution, 40))

    def span(size: int) -> tuple[float, float]:
        extent = draw(st.integers(min(300, 1024 * size), 1024 * size))
        begin = draw(st.sampled_from([0, 1024 * size - extent]) | st.integers(0, 1024 * size - extent))
        return begin / 1024, (begin + extent) / 1024  # Pillow's boxes have single precision

    def sample() -> Sample:
        width, height = draw(st.integers(1, longest)), draw(st.integers(1, longest))
        seed = draw(st.integers(0, 999))
        ratio = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (1, 2)]))
        blocks = st.sampled_from([2, 4, 8, 16])
        block = draw(blocks), draw(blocks)
        planes = [content(height, width, seed)]
        if draw(st.integers(0, 4)):
            planes += [content(-(-height // ratio[1]), -(-width // ratio[0]), seed + i) for i in (1, 2)]
        chroma = block[0] // ratio[0], block[1] // ratio[1]
        (left, right), (top, bottom) = span(width), span(height)
        turns = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
        own_blocks = [block, chroma, chroma][: len(planes)]
        return Sample(planes, own_blocks, draw(st.integers(1, 9)), (left, top, right, bottom), turns)

    return batch_of([sample() for _ in range(draw(st.integers(0, 3)))], resolution)


def turned(result: np.ndarray, turns: tuple[bool, bool, bool]) -> np.ndarray:
    """Turn (..., rows, columns) as asked for."""
    transposed, mirror_x, mirror_y = turns
    result = result.swapaxes(-1, -2) if transposed else result
    return result[..., :: -1 if mirror_y else 1, :: -1 if mirror_x else 1]


def upsampled(plane: np.ndarray, ratio: int) -> np.ndarray:
    """Make one or two rows of each: two have a quarter from the next row on their side, as libjpeg does it."""
    if ratio == 1:
        return plane
    padded = np.concatenate([plane[:1], plane, plane[-1:]])
    return np.stack([0.75 * plane + 0.25 * padded[:-2], 0.75 * plane + 0.25 * padded[2:]], axis=1).reshape(
        2 * len(plane), -1
    )


def exactly(sample: Sample, resolution: int) -> np.ndarray:
    """Return the filter's result in floating point, as RGB (3, resolution, resolution)."""

    def weights(begin: float, end: float, size: int) -> np.ndarray:
        scale = (end - begin) / resolution
        centers = begin + (np.arange(resolution) + 0.5) * scale
        triangle = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centers[:, None]) / max(scale, 1))
        return triangle / triangle.sum(1, keepdims=True)

    x0, y0, x1, y1 = sample.box
    pixels = [
        upsampled(upsampled(plane.astype(float), sample.block[0][1] // h).T, sample.block[0][0] // w).T
        for plane, (w, h) in zip(sample.planes, sample.block, strict=True)
    ]
    resized = [weights(y0, y1, len(plane)) @ plane @ weights(x0, x1, plane.shape[1]).T for plane in pixels]
    y, cb, cr = resized if len(resized) == 3 else (resized[0], 128.0, 128.0)
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])
    return turned(rgb.clip(0, 255), sample.turns)


@settings(deadline=None, max_examples=200)
@given(batch=batches(), memory_format=st.sampled_from(LAYOUTS))
def test_regions_become_rgb(batch: Batch, memory_format: torch.memory_format) -> None:
    assert regions_fit(batch.regions).all()
    result = resample_regions(batch.regions, batch.resolution, memory_format)
    assert result.shape == (len(batch.samples), 3, batch.resolution, batch.resolution)
    assert result.is_contiguous(memory_format=memory_format)
    for got, sample in zip(result.numpy(), batch.samples, strict=True):
        assert np.abs(got - exactly(sample, batch.resolution)).max() <= 0.51


@settings(deadline=None, max_examples=200)
@given(batch=batches())
def test_a_plane_is_resampled_as_pillow_does(batch: Batch) -> None:
    gray = [Sample(s.planes[:1], s.block[:1], s.per_strip, s.box, s.turns) for s in batch.samples]
    batch = batch_of(gray, batch.resolution)
    size = (batch.resolution, batch.resolution)
    for got, sample in zip(resample_regions(batch.regions, batch.resolution).numpy(), gray, strict=True):
        expected = Image.fromarray(sample.planes[0]).resize(size, Image.Resampling.BILINEAR, box=sample.box)
        for channel in got:
            assert np.abs(turned(np.asarray(expected, int), sample.turns) - channel).max() <= 1


def one_sample(resolution: int = 24) -> Batch:
    planes = [content(90, 70, 0), content(45, 35, 1), content(45, 35, 2)]
    sample = Sample(planes, [(16, 16), (8, 8), (8, 8)], 3, (20.0, 30.0, 64.0, 85.5), (False, True, False))
    return batch_of([sample], resolution)


def test_what_does_not_fit_is_found() -> None:
    regions = one_sample().regions
    assert regions_fit(regions).tolist() == [True]
    far = 2**62
    changes = [
        (component, column, value)
        for component in range(3)
        for column, values in (
            (Plane.OFFSET, (-1, len(regions.samples) - 100, far)),
            (Plane.STRIDE, (0, -1, 23, far)),
            (Plane.BLOCK_WIDTH, (0, 17, far)),
            (Plane.BLOCK_HEIGHT, (0, -16, 512, far)),
            (Plane.PER_STRIP, (0, -1, 7, far)),
            (Plane.POSITIONS, (-1, 1, far)),
            (Plane.WIDTH, (-1, 1000, far)),
            (Plane.HEIGHT, (0, 1000, far)),
        )
        for value in values
    ]
    for component, column, value in changes:
        planes = regions.planes.clone()
        planes[0, component, column] = value
        wrong = Regions(regions.samples, regions.positions, planes, regions.windows, regions.turns)
        assert not regions_fit(wrong).any(), (component, column, value)
    for value in (float("nan"), float("inf"), -1.0, 1000.0):
        for column in range(4):
            windows = regions.windows.clone()
            windows[0, 1, column] = value
            wrong = Regions(regions.samples, regions.positions, regions.planes, windows, regions.turns)
            assert not regions_fit(wrong).any()
    for value in (-1, 10_000, far):
        positions = regions.positions.clone()
        positions[-1] = value
        wrong = Regions(regions.samples, positions, regions.planes, regions.windows, regions.turns)
        assert not regions_fit(wrong).any()


def test_what_fits_is_told_for_each_sample() -> None:
    batch = one_sample()
    batch = batch_of(batch.samples * 3, batch.resolution)
    batch.regions.planes[1, 2, Plane.STRIDE] = 0
    assert regions_fit(batch.regions).tolist() == [True, False, True]


def test_bytes_on_the_bus() -> None:
    batch = one_sample(24)
    as_regions, as_rgb = bus_bytes(batch.regions, 24)
    tables = 8 * len(batch.regions.positions) + 3 * (8 * 8 + 4 * 8) + 3
    assert as_regions == len(batch.regions.samples) + tables
    assert as_rgb == 3 * 24 * 24


def test_the_kernel_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    run_interpreted("interpreted_device_regions.py")


def test_the_kernel_compiles_for_cuda_once_for_all_resolutions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from kernels import device_regions_triton

    compilations = compile_only(monkeypatch, tmp_path, device_regions_triton._resample)
    for resolution in (1, 16, 31, 224):
        batch = one_sample(resolution)
        for count in (1, 3):
            regions = batch_of(batch.samples * count, resolution).regions
            device_regions_triton.resample_by_triton(regions, resolution, torch.contiguous_format)
    assert compilations() == 1


@pytest.mark.gpu
@settings(deadline=None, max_examples=200)
@given(batch=batches(), memory_format=st.sampled_from(LAYOUTS))
def test_cuda_gives_what_the_twin_gives(batch: Batch, memory_format: torch.memory_format) -> None:
    pytest.importorskip("triton")
    result = resample_regions(batch.regions.to("cuda"), batch.resolution, memory_format)
    assert result.is_contiguous(memory_format=memory_format)
    twin = resample_by_torch(batch.regions, batch.resolution, memory_format)
    difference = (result.cpu().int() - twin.int()).abs()
    assert difference.numel() == 0 or int(difference.max()) <= 1


@pytest.mark.gpu
def test_a_new_resolution_neither_compiles_nor_waits() -> None:
    pytest.importorskip("triton")
    from kernels.device_regions_triton import _resample

    def compiled() -> int:
        return sum(len(caches[0]) for caches in _resample.device_caches.values())

    regions = one_sample().regions.to("cuda")
    resample_regions(regions, 32)
    before = compiled()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for resolution in (31, 64, 96):
            resample_regions(regions, resolution)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert compiled() == before
