"""Resizing a window: Pillow is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kernels.resample import resize_window

SIZES = st.one_of(st.integers(1, 4), st.integers(1, 90))


@st.composite
def spans(draw: st.DrawFn, size: int) -> tuple[float, float]:
    """Start and extent of a window on an axis, at either edge or anywhere."""
    whole = draw(st.booleans())
    extent = draw(st.integers(1, size)) if whole else draw(st.floats(0.3, size))
    room = size - extent
    start = draw(st.sampled_from([0.0, room]) | st.floats(0, 1).map(lambda fraction: fraction * room))
    return float(start), float(extent)


def by_pillow(pixels: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box=box))


@settings(deadline=None, max_examples=300)
@given(data=st.data(), height=SIZES, width=SIZES, rows=SIZES, columns=SIZES, seed=st.integers(0, 99))
def test_windows_are_resized_as_pillow_does(
    data: st.DataObject, height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), np.uint8)
    if seed % 3 == 0:  # the extremes, where a sum could overflow
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    left, extent_x = data.draw(spans(width))
    top, extent_y = data.draw(spans(height))
    right, bottom = min(width, left + extent_x), min(height, top + extent_y)
    out = np.empty((rows, columns, 3), np.uint8)
    resize_window(pixels, left, top, right - left, bottom - top, out)
    expected = by_pillow(pixels, (left, top, right, bottom), (columns, rows))
    assert np.abs(expected.astype(np.int16) - out).max() <= 1


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_flat_areas_stay_as_they_are(value: int) -> None:
    pixels = np.full((700, 2600, 3), value, np.uint8)
    for size in (1, 5, 33, 224):
        out = np.empty((size, size, 3), np.uint8)
        resize_window(pixels, 0.3, 0.7, 2599.2, 698.8, out)
        assert (out == value).all()


@pytest.mark.parametrize("resolution", [3, 16, 41])
def test_results_are_written_through_any_strides(resolution: int) -> None:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (60, 80, 3), np.uint8)
    pixels.flags.writeable = False
    box = (3.25, 1.5, 70.0, 50.75)
    expected = np.empty((resolution, resolution, 3), np.uint8)
    resize_window(pixels, *box, expected)
    memory = np.full((resolution + 2, resolution + 4, 3), 9, np.uint8)
    inner = memory[1:-1, 2:-2]
    planar = np.empty((3, resolution, resolution), np.uint8).transpose(1, 2, 0)
    for view in (inner, inner[:, ::-1], inner[::-1], inner.swapaxes(0, 1), inner.swapaxes(0, 1)[::-1], planar):
        resize_window(pixels, *box, view)
        assert np.array_equal(view, expected)
        inner[:] = 9
        assert (memory == 9).all()  # nothing beside the view was written


def test_only_what_the_filter_reaches_is_read() -> None:
    random = np.random.default_rng(2)
    pixels = random.integers(0, 256, (100, 120, 3), np.uint8)
    changed = pixels.copy()
    changed[:28], changed[72:], changed[:, :38], changed[:, 92:] = 0, 255, 255, 0
    results = np.empty((2, 20, 20, 3), np.uint8)
    for source, out in zip((pixels, changed), results, strict=True):
        resize_window(source, 40.0, 30.0, 50.0, 40.0, out)
    assert np.array_equal(results[0], results[1])
