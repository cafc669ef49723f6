"""Resampling of decoded tiles: Pillow, and the filter written down in floating point, are the oracles."""

from __future__ import annotations

import ctypes
import math
import mmap
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kernels.color import ycbcr_to_rgb
from kernels.planes import (
    Status,
    Window,
    nearest_plane,
    reach,
    resample_bytes,
    resample_gray_region,
    resample_plane,
    resample_region,
)
from kernels.tiles import Strip, Tiles

BLOCKS = st.sampled_from([1, 2, 4, 8, 16])
SIZES = st.one_of(st.integers(1, 6), st.integers(1, 130))
RESOLUTIONS = st.one_of(st.integers(1, 6), st.integers(7, 70))
SEEDS = st.integers(0, 999)
GUARD = 77


def content(height: int, width: int, seed: int) -> np.ndarray:
    """Return noise, extremes, stripes or a smooth slope."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    kinds = (pixels, np.where(pixels > 127, 255, 0), (x + y) % 2 * 255, x * 255 // width, np.full_like(pixels, 255))
    return kinds[seed % len(kinds)].astype(np.uint8)


def decoded(
    plane: np.ndarray, block: tuple[int, int], per_strip: int, region: tuple[int, int, int, int], seed: int = 0
) -> tuple[Strip, Tiles]:
    """Lay out a region of a plane as the decoder does: intervals of ``per_strip`` tiles, noise where there is no image.

    Args:
        block: width and height of a tile.
        region: first and last column (not included), first and last row of tiles.
    """
    random = np.random.default_rng(seed)
    (height, width), (block_width, block_height) = plane.shape, block
    columns, rows = -(-width // block_width), -(-height // block_height)
    padded = random.integers(0, 256, (rows * block_height, columns * block_width), np.uint8)
    padded[:height, :width] = plane
    tiles = (
        padded.reshape(rows, block_height, columns, block_width).swapaxes(1, 2).reshape(-1, block_height, block_width)
    )
    left, right, top, bottom = region
    intervals = sorted(
        {(row * columns + column) // per_strip for row in range(top, bottom) for column in range(left, right)}
    )
    stride = per_strip * block_width + seed % 3
    strip = random.integers(0, 256, (len(intervals) * block_height, stride), np.uint8)
    for line, interval in enumerate(intervals):
        for slot, tile in enumerate(tiles[interval * per_strip : (interval + 1) * per_strip]):
            strip[line * block_height : (line + 1) * block_height, slot * block_width : (slot + 1) * block_width] = tile
    firsts = [row * columns + left for row in range(top, bottom)]
    positions = [intervals.index(first // per_strip) * per_strip + first % per_strip for first in firsts]
    samples = np.concatenate([strip.ravel(), random.integers(0, 256, seed % 2 * 40, np.uint8)])
    return Strip(samples, stride, block_width, block_height), Tiles(
        np.array(positions, np.int64),
        right - left,
        per_strip,
        min(width, right * block_width) - left * block_width,
        min(height, bottom * block_height) - top * block_height,
    )


@dataclass(frozen=True)
class Case:
    """A window of a plane, and a region that holds all that the filter reaches."""

    box: tuple[float, float, float, float]
    block: tuple[int, int]
    per_strip: int
    region: tuple[int, int, int, int]
    resolution: int
    turned: tuple[bool, bool, bool]

    @property
    def window(self) -> Window:
        left, top = self.region[0] * self.block[0], self.region[2] * self.block[1]
        x0, y0, x1, y1 = self.box
        return Window(x0 - left, y0 - top, x1 - x0, y1 - y0, *self.turned)

    def turn(self, result: np.ndarray) -> np.ndarray:
        transposed, mirror_x, mirror_y = self.turned
        result = result.T if transposed else result
        return result[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]


def spans(size: int) -> st.SearchStrategy[tuple[float, float]]:
    """Begin and end of a window on an axis, at either edge or anywhere; Pillow's boxes have single precision."""

    @st.composite
    def span(draw: st.DrawFn) -> tuple[float, float]:
        units = size * 1024
        extent = draw(
            st.one_of(st.integers(1, size).map(lambda whole: whole * 1024), st.integers(min(300, units), units))
        )
        begin = draw(st.sampled_from([0, units - extent]) | st.integers(0, units - extent))
        return begin / 1024, (begin + extent) / 1024

    return span()


@st.composite
def cases(draw: st.DrawFn, height: int, width: int, smallest_block: int = 1) -> Case:
    (x0, x1), (y0, y1) = draw(spans(width)), draw(spans(height))
    blocks = BLOCKS.filter(lambda block: block >= smallest_block)
    block = draw(blocks), draw(blocks)
    resolution = draw(RESOLUTIONS)
    region = []
    for begin, end, size, side in ((x0, x1, width, block[0]), (y0, y1, height, block[1])):
        margin = reach(end - begin, resolution) + draw(st.integers(0, 9))
        region += [max(0, int(begin) - margin) // side * side, min(size, math.ceil(end) + margin)]
        region[-2:] = [region[-2] // side, -(-region[-1] // side)]
    flags = st.booleans()
    turned = draw(flags), draw(flags), draw(flags)
    return Case((x0, y0, x1, y1), block, draw(st.integers(1, 9)), tuple(region), resolution, turned)


def by_pillow(plane: np.ndarray, case: Case, kind: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
    size = case.resolution, case.resolution
    return case.turn(np.asarray(Image.fromarray(plane).resize(size, kind, box=case.box)))


def exactly(plane: np.ndarray, case: Case) -> np.ndarray:
    """Return the filter's result in floating point."""

    def weights(begin: float, end: float, size: int) -> np.ndarray:
        scale = (end - begin) / case.resolution
        centers = begin + (np.arange(case.resolution) + 0.5) * scale
        distances = np.abs(np.arange(size) + 0.5 - centers[:, None]) / max(scale, 1)
        triangle = np.maximum(0, 1 - distances)
        return triangle / triangle.sum(1, keepdims=True)

    x0, y0, x1, y1 = case.box
    return case.turn(weights(y0, y1, plane.shape[0]) @ plane.astype(float) @ weights(x0, x1, plane.shape[1]).T)


def upsampled(plane: np.ndarray, ratio: tuple[int, int], height: int, width: int) -> np.ndarray:
    """Upsample chroma as libjpeg does: three quarters of the nearer sample, one of the next; edges repeated."""
    result = plane.astype(float)
    for axis in (0, 1):
        if ratio[1 - axis] == 2:
            edges = np.pad(result, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge").swapaxes(0, axis)
            before, here, after = edges[:-2], edges[1:-1], edges[2:]
            both = np.stack([0.75 * here + 0.25 * before, 0.75 * here + 0.25 * after], 1)
            result = both.reshape(-1, *both.shape[2:]).swapaxes(0, axis)
    return result[:height, :width]


def scratch(strip: Strip, tiles: Tiles, resolution: int) -> np.ndarray:
    """Return as much memory as is asked for, within a larger array of guards, not zeroed."""
    side = max(tiles.columns * strip.block_width, len(tiles.positions) * strip.block_height)
    memory = np.full(resample_bytes(side, resolution) + 256, GUARD, np.uint8)
    return memory[128:-128]


def guarded(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array with guards in front and behind."""
    memory = np.full(math.prod(shape) + 256, GUARD, np.uint8)
    return memory[128:-128].reshape(shape)


def assert_guards(array: np.ndarray) -> None:
    memory = array.base
    while memory.base is not None:
        memory = memory.base
    assert (memory[:128] == GUARD).all()
    assert (memory[-128:] == GUARD).all()


def resampled(plane: np.ndarray, case: Case, seed: int) -> np.ndarray:
    strip, tiles = decoded(plane, case.block, case.per_strip, case.region, seed)
    memory, out = scratch(strip, tiles, case.resolution), guarded((case.resolution, case.resolution))
    assert resample_plane(strip, tiles, case.window, out, memory) == Status.OK
    assert_guards(memory)
    assert_guards(out)
    return out


@settings(deadline=None, max_examples=300)
@given(data=st.data(), height=SIZES, width=SIZES, seed=SEEDS)
def test_a_plane_is_resampled_as_pillow_does(data: st.DataObject, height: int, width: int, seed: int) -> None:
    plane = content(height, width, seed)
    case = data.draw(cases(height, width))
    out = resampled(plane, case, seed)
    assert np.abs(by_pillow(plane, case).astype(int) - out).max() <= 1
    assert np.abs(exactly(plane, case) - out).max() <= 0.75


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.1, 0.37, 0.98, 1.0, 1.02, 1.5, 2.0, 3.7, 9.1, 16.0])
def test_any_scale(scale: float, seed: int) -> None:
    plane = content(777, 816, seed)
    resolution = int(min(224, 770 / scale))
    extent = scale * resolution
    case = Case((3.3, 5.1, 3.3 + extent, 5.1 + extent), (16, 16), 4, (0, 51, 0, 49), resolution, (False, True, False))
    out = resampled(plane, case, seed)
    assert np.abs(by_pillow(plane, case).astype(int) - out).max() <= 1


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
@pytest.mark.parametrize("resolution", [30, 33, 224])
def test_flat_areas_stay_as_they_are(value: int, resolution: int) -> None:
    plane = np.full((700, 1300), value, np.uint8)
    case = Case((0.3, 0.7, 1299.2, 698.8), (16, 16), 5, (0, 82, 0, 44), resolution, (False, False, False))
    assert (resampled(plane, case, 0) == value).all()


@settings(deadline=None, max_examples=60)
@given(data=st.data(), height=SIZES, width=SIZES, seed=SEEDS)
def test_what_lies_outside_the_image_has_no_effect(data: st.DataObject, height: int, width: int, seed: int) -> None:
    plane = content(height, width, seed)
    case = data.draw(cases(height, width))
    # Other noise around the image, in other intervals, between rows and behind them, and left over in scratch.
    assert np.array_equal(resampled(plane, case, seed), resampled(plane, case, seed + 3000))


@settings(deadline=None, max_examples=200)
@given(data=st.data(), height=SIZES, width=SIZES, ratio=st.tuples(*[st.sampled_from([1, 2])] * 2), seed=SEEDS)
def test_a_region_becomes_rgb(data: st.DataObject, height: int, width: int, ratio: tuple[int, int], seed: int) -> None:
    chroma_size = -(-height // ratio[1]), -(-width // ratio[0])
    planes = [content(height, width, seed), content(*chroma_size, seed + 1), content(*chroma_size, seed + 7)]
    case = data.draw(cases(height, width, smallest_block=2))
    blocks = case.block, (case.block[0] // ratio[0], case.block[1] // ratio[1])
    strips, tiles = [], None
    for plane, block in zip(planes, (blocks[0], blocks[1], blocks[1]), strict=True):
        strip, own_tiles = decoded(plane, block, case.per_strip, case.region, seed)
        tiles = tiles or own_tiles
        strips.append(strip)
    assert tiles is not None
    memory, out = scratch(strips[0], tiles, case.resolution), guarded((3, case.resolution, case.resolution))
    assert resample_region(*strips, tiles, case.window, out, memory) == Status.OK
    assert_guards(memory)
    assert_guards(out)
    y = exactly(planes[0], case)
    cb, cr = (exactly(upsampled(plane, ratio, height, width), case) for plane in planes[1:])
    cb, cr = cb - 128, cr - 128
    expected = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]).clip(0, 255)
    assert np.abs(expected - out).max() <= 0.75


def test_a_region_without_color_becomes_rgb() -> None:
    plane = content(60, 50, 0)
    case = Case((3.0, 2.5, 48.0, 59.0), (8, 8), 3, (0, 7, 0, 8), 41, (True, False, True))
    strip, tiles = decoded(plane, case.block, case.per_strip, case.region)
    memory, out = scratch(strip, tiles, case.resolution), guarded((3, case.resolution, case.resolution))
    assert resample_gray_region(strip, tiles, case.window, out, memory) == Status.OK
    assert_guards(out)
    assert (out == resampled(plane, case, 0)).all()
    assert resample_gray_region(strip, tiles, case.window, out[:2], memory) == Status.BAD


def test_memory_behind_the_samples_is_never_read() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    area = mmap.mmap(-1, 9 * page)
    memory = np.frombuffer(area, np.uint8)
    behind = memory.ctypes.data + 8 * page
    assert libc.mprotect(ctypes.c_void_p(behind), ctypes.c_size_t(page), 0) == 0  # reading it ends the process
    plane = content(90, 70, 0)
    for block in ((16, 16), (8, 4), (1, 2)):
        for per_strip in (1, 3, 9):
            region = (0, -(-70 // block[0]), 0, -(-90 // block[1]))
            strip, tiles = decoded(plane, block, per_strip, region, seed=6)
            samples = memory[8 * page - len(strip.samples) : 8 * page]
            samples[:] = strip.samples
            out = np.empty((40, 40), np.uint8)
            for transposed in (False, True):
                window = Window(0.0, 0.0, 70.0, 90.0, transposed, False, False)
                status = resample_plane(strip._replace(samples=samples), tiles, window, out, scratch(strip, tiles, 40))
                assert status == Status.OK


def test_what_does_not_fit_is_refused() -> None:
    strip, tiles = decoded(content(64, 64, 0), (16, 16), 4, (0, 4, 0, 4))
    window = Window(0.0, 0.0, 64.0, 64.0, False, False, False)
    memory, out = scratch(strip, tiles, 20), np.full((3, 20, 20), GUARD, np.uint8)
    nan, inf = float("nan"), float("inf")
    first = tiles.positions[0]
    far = np.iinfo(np.int64).max
    regions = [
        (strip._replace(samples=strip.samples[:-1]), tiles),
        (strip._replace(stride=63), tiles),
        (strip._replace(stride=0), tiles),
        (strip._replace(block_width=0), tiles),
        (strip._replace(block_height=-16), tiles),
        (strip, tiles._replace(columns=0)),
        (strip, tiles._replace(columns=5)),
        (strip, tiles._replace(per_strip=0)),
        (strip, tiles._replace(per_strip=5)),
        (strip, tiles._replace(width=65)),
        (strip, tiles._replace(width=0)),
        (strip, tiles._replace(height=65)),
        (strip, tiles._replace(positions=tiles.positions[:0])),
        *((strip, tiles._replace(positions=np.full(4, wrong))) for wrong in (first - 1, first + 13, far, -far)),
    ]
    windows = [
        window._replace(**{name: value})
        for name, values in (
            ("x", (nan, inf, -inf, 0.5, -0.5)),
            ("y", (nan, inf, 64.0, -1e300)),
            ("width", (nan, inf, 0.0, -1.0, 65.0)),
            ("height", (nan, inf, 0.0, 64.01)),
        )
        for value in values
    ]
    for bad_strip, bad_tiles in regions:
        assert resample_plane(bad_strip, bad_tiles, window, out[0], memory) == Status.BAD
        assert resample_region(bad_strip, strip, strip, bad_tiles, window, out, memory) == Status.BAD
    for bad_window in windows:
        assert resample_plane(strip, tiles, bad_window, out[0], memory) == Status.BAD
        assert resample_region(strip, strip, strip, tiles, bad_window, out, memory) == Status.BAD
        assert resample_gray_region(strip, tiles, bad_window, out, memory) == Status.BAD
        assert nearest_plane(content(64, 64, 0), bad_window, out[0], memory) == Status.BAD
    for bad_chroma in (strip._replace(samples=strip.samples[:-1]), strip._replace(block_width=32)):
        assert resample_region(strip, bad_chroma, bad_chroma, tiles, window, out, memory) == Status.BAD
        assert resample_region(strip, strip, bad_chroma, tiles, window, out, memory) == Status.BAD
    little = memory[:-1]
    assert resample_plane(strip, tiles, window, out[0], little) == Status.SCRATCH_TOO_SMALL
    assert resample_region(strip, strip, strip, tiles, window, out, little) == Status.SCRATCH_TOO_SMALL
    assert nearest_plane(content(64, 64, 0), window, out[0], memory[:319]) == Status.SCRATCH_TOO_SMALL
    assert (out == GUARD).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colors_are_those_of_libjpeg(dtype: type) -> None:
    levels = np.r_[np.arange(0, 256, 5), 1, 127, 128, 129, 254].astype(np.uint8)
    planes = [np.ascontiguousarray(plane.ravel()) for plane in np.meshgrid(levels, levels, levels)]
    expected = Image.merge("YCbCr", [Image.fromarray(plane[None]) for plane in planes]).convert("RGB")
    results = [guarded(planes[0].shape) for _ in range(3)]
    ycbcr_to_rgb(*(plane.astype(dtype) * (256 if dtype is np.uint16 else 1) for plane in planes), *results)
    for result, plane in zip(results, expected.split(), strict=True):
        assert np.abs(np.asarray(plane, int)[0] - result).max() <= 1
        assert_guards(result)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_colors_of_any_number_of_pixels(count: int) -> None:
    planes = [content(1, 200, 5 * seed)[0] for seed in range(3)]
    expected, results = np.empty((3, 200), np.uint8), [guarded((count,)) for _ in range(3)]
    ycbcr_to_rgb(*planes, *expected)
    ycbcr_to_rgb(*planes, *results)
    for result, whole in zip(results, expected, strict=True):
        assert np.array_equal(result, whole[:count])
        assert_guards(result)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), height=SIZES, width=SIZES, seed=SEEDS)
def test_nearest_is_that_of_pillow(data: st.DataObject, height: int, width: int, seed: int) -> None:
    plane = content(height, width, 5 * seed)
    case = data.draw(cases(height, width))
    out, memory = guarded((case.resolution, case.resolution)), guarded((16 * case.resolution,))
    (x0, y0, x1, y1) = case.box
    assert nearest_plane(plane, Window(x0, y0, x1 - x0, y1 - y0, *case.turned), out, memory) == Status.OK
    assert_guards(out)
    assert_guards(memory)
    assert np.array_equal(out, by_pillow(plane, case, Image.Resampling.NEAREST))
