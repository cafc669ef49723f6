"""From a JPEG to a crop in one compiled call: the pixels of Pillow, whatever the file and the window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kernels.jpeg import JpegLibraryError, create_handle, destroy_handle, load_library
from kernels.regions import FACTS, Status, load_sample
from kernels.restart import interval_starts
from tests.images import photo
from tests.jpegs import SAMPLINGS, encode
from tests.regions import NO_INDEX, WHOLE, difference, load, luma_noise

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.mark.parametrize("resolution", [23, 64, 150, 300])
@pytest.mark.parametrize("sampling", sorted(SAMPLINGS))
def test_every_orientation_and_flip(sampling: str, resolution: int) -> None:
    record = encode(np.asarray(photo(233, 178, 1)), sampling, 4)
    found = {
        (orientation, flip): difference(record, (0.21, 0.08, 0.57, 0.83), resolution, orientation, flip)
        for orientation in range(1, 9)
        for flip in (False, True)
    }
    assert max(found.values()) < 0.6, found


@pytest.mark.parametrize("sampling", sorted(SAMPLINGS))
@pytest.mark.parametrize(("interval", "progressive"), [(0, False), (3, False), (4, False), (14, False), (0, True)])
def test_windows_at_every_edge(sampling: str, interval: int, progressive: bool) -> None:
    record = encode(np.asarray(photo(215, 187, 2)), sampling, interval, progressive)
    found = {}
    for left, width in ((0.0, 0.31), (0.333, 0.31), (0.69, 0.31), (0.0, 1.0)):
        for top, height in ((0.0, 0.27), (0.41, 0.27), (0.73, 0.27), (0.0, 1.0)):
            for resolution in (50, 90):  # at less than a quarter of the window, it is decoded smaller
                window = (left, top, width, height)
                found[window, resolution] = difference(record, window, resolution)
    assert max(found.values()) < 0.8, found


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (7, 5), (16, 1), (1, 300), (17, 16), (33, 8)])
@pytest.mark.parametrize("sampling", sorted(SAMPLINGS))
def test_tiny_images(sampling: str, size: tuple[int, int]) -> None:
    for progressive in (False, True):
        record = encode(luma_noise(*size), sampling, 0, progressive)
        for window in (WHOLE, (0.4, 0.4, 0.3, 0.2), (0.9, 0.0, 0.1, 0.001)):
            for resolution in (3, 8, 40):
                if min(size) * max(window[2:]) < 4 * resolution:  # otherwise, it is decoded smaller
                    assert difference(record, window, resolution, 6, True) < 0.8


@pytest.mark.parametrize("sampling", sorted(SAMPLINGS))
def test_windows_of_less_than_a_pixel(sampling: str) -> None:
    record = encode(np.asarray(photo(90, 70, 3)), sampling, 4)
    for extent in (1 / 100, 1 / 1000, 1e-9):
        for begin in (0.0, 0.37, 1 - extent):
            assert difference(record, (begin, begin, extent, extent), 16) < 1.0


@pytest.mark.parametrize(
    "window",
    [
        (0.5, 0.5, 0.0, 0.5),
        (0.5, 0.5, 0.5, -0.1),
        (1.0, 0.0, 0.5, 0.5),
        (-1.0, 0.0, 0.5, 0.5),
        (np.nan, 0.0, 1.0, 1.0),
        (0.0, 0.0, np.nan, 1.0),
        (np.inf, 0.0, 1.0, 1.0),
    ],
)
def test_windows_without_pixels_are_bad(window: tuple[float, ...]) -> None:
    status, out = load(encode(luma_noise(40, 30)), window=window)
    assert status == Status.BAD
    assert not out.any()


def test_windows_that_leave_the_image_by_rounding() -> None:
    record = encode(np.asarray(photo(90, 70)), "4:2:0", 4)
    beyond = (-1e-16, -1e-16, 1 + 1e-15, 1 + 1e-15)
    assert np.array_equal(load(record, window=beyond)[1], load(record)[1])


@pytest.mark.parametrize(("interval", "progressive"), [(0, False), (4, False), (0, True)])
def test_parity_at_full_scale(interval: int, progressive: bool) -> None:
    found = []
    random = np.random.default_rng(interval)
    for number in range(24):
        width, height = random.integers(60, 500, 2).tolist()
        sampling = ("4:2:0", "4:4:4", "4:2:2")[number % 3]
        record = encode(np.asarray(photo(width, height, number)), sampling, interval, progressive)
        size = random.uniform(0.3, 1, 2)
        begin = random.random(2) * (1 - size)
        resolution = max(8, int(min(size * (width, height)) / random.uniform(0.8, 3.9)))  # at four it is scaled
        found.append(difference(record, (*begin, *size), resolution))
    assert np.mean(found) <= 0.8
    assert max(found) <= 2.0


@pytest.mark.parametrize("factor", [4, 8, 16, 40])
def test_decoding_smaller_stays_near(factor: int) -> None:
    for number, sampling in enumerate(sorted(SAMPLINGS)):
        soft = photo(120, 100, number).resize((480, 400), Image.Resampling.BICUBIC)
        record = encode(np.asarray(soft), sampling, 4)
        assert difference(record, WHOLE, 400 // factor) <= 1.0
        assert difference(record, WHOLE, 400 // factor, scaled=True) <= 0.7


@settings(deadline=None, max_examples=150)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 150),
    sampling=st.sampled_from(sorted(SAMPLINGS)),
    interval=st.one_of(st.integers(1, 8), st.integers(1, 60)),
    box=st.tuples(*[st.floats(0, 1)] * 4),
    resolution=st.integers(1, 100),
    orientation=st.integers(1, 8),
    flip=st.booleans(),
)
def test_the_restart_index_changes_no_pixel(
    width: int,
    height: int,
    sampling: str,
    interval: int,
    box: tuple[float, ...],
    resolution: int,
    orientation: int,
    flip: bool,
) -> None:
    """Neither does its being found in the file, nor that there are no restart markers at all."""
    pixels = np.asarray(photo(200, 150, 4))[:height, :width]
    extent_x, extent_y = max(box[2], 1e-3), max(box[3], 1e-3)
    window = (box[0] * (1 - extent_x), box[1] * (1 - extent_y), extent_x, extent_y)
    record, plain = encode(pixels, sampling, interval), encode(pixels, sampling)
    cases = [(record, interval_starts(record)), (record, NO_INDEX), (plain, NO_INDEX)]
    results = [load(r, starts, window, resolution, orientation, flip) for r, starts in cases]
    assert [status for status, _ in results] == [Status.OK] * 3
    assert np.array_equal(results[0][1], results[1][1])
    assert np.array_equal(results[0][1], results[2][1])


@pytest.mark.parametrize(("interval", "indexed"), [(0, False), (4, True), (4, False), (7, False), (9, True)])
def test_just_enough_scratch_is_enough(interval: int, indexed: bool) -> None:
    """And less is said before anything is done. Four MCUs do not divide a row: the strips are larger than the image."""
    record = encode(np.asarray(photo(96, 80)), "4:2:0", interval)
    starts = interval_starts(record) if indexed else NO_INDEX
    expected = load(record, starts)[1]
    facts, handle = np.zeros(FACTS, np.int64), create_handle()
    out, window = np.full((3, 32, 32), 7, np.uint8), np.array(WHOLE)

    def run(scratch: np.ndarray) -> int:
        return load_sample(handle, record, starts, 1, window, False, out, facts, scratch)

    assert run(np.empty(0, np.uint8)) == Status.SCRATCH_TOO_SMALL
    needed = int(facts[0])
    short = np.full(needed - 1, 9, np.uint8)
    assert run(short) == Status.SCRATCH_TOO_SMALL
    assert (out == 7).all()
    assert (short == 9).all()
    for fill in (0, 255):
        assert run(np.full(needed, fill, np.uint8)) == Status.OK
        assert np.array_equal(out, expected)
    destroy_handle(handle)


def test_damage_is_bad() -> None:
    record = encode(np.asarray(photo(96, 80)), "4:2:0", 4)
    starts = interval_starts(record)
    assert load(record[:-2], NO_INDEX)[0] == Status.BAD
    assert load(record[:400], starts)[0] == Status.BAD
    assert load(record, starts[:-1])[0] == Status.BAD
    assert load(record, starts + np.uint32(40))[0] == Status.BAD
    assert load(np.arange(99, dtype=np.uint8))[0] == Status.BAD
    assert load(record[:0])[0] == Status.BAD


@pytest.mark.parametrize(("resolution", "mean"), [(128, 0.8), (224, 0.8), (24, 1.0)])
def test_real_photos(photos: Path, resolution: int, mean: float) -> None:
    """At full scale, and in the last case of crops that are decoded to a smaller size."""
    random = np.random.default_rng(resolution)
    found = []
    for path in sorted(photos.glob("*/*"))[::12]:
        with Image.open(path) as image:
            sides = np.array(image.size)
            size = random.uniform(0.3, 1, 2)
            if image.mode == "RGB" and (min(size * sides) >= 4 * resolution) == (resolution == 24):
                window = (*(random.random(2) * (1 - size)), *size)
                found.append(difference(np.fromfile(path, np.uint8), window, resolution))
    assert len(found) > 9
    assert np.mean(found) <= mean
    assert max(found) <= 2.0 or resolution == 24
    print(f"mean {np.mean(found):.2f}, worst {max(found):.2f} of {len(found)}")
