"""From a JPEG to a crop in one compiled call: the pixels of Pillow, whatever the file, the window and the threads."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kernels.checksum import xxh64
from kernels.jpeg import JpegLibraryError, create_handle, destroy_handle, load_library
from kernels.regions import FACTS, Status, load_sample, load_samples, mark_done
from kernels.restart import interval_starts
from loaders.pixels import load_window
from tests.images import photo
from tests.jpegs import SAMPLINGS, encode

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)

NO_INDEX = np.empty(0, np.uint32)
WHOLE = (0.0, 0.0, 1.0, 1.0)
SCRATCH = np.empty(8 << 20, np.uint8)


def load(
    record: np.ndarray,
    starts: np.ndarray = NO_INDEX,
    window: tuple[float, ...] = WHOLE,
    resolution: int = 32,
    orientation: int = 1,
    flip: bool = False,
    scratch: np.ndarray = SCRATCH,
) -> tuple[int, np.ndarray]:
    """Load a crop with a new decoder; return the status and uint8 (3, resolution, resolution)."""
    out = np.zeros((3, resolution, resolution), np.uint8)
    facts, handle = np.zeros(FACTS, np.int64), create_handle()
    status = load_sample(handle, record, starts, orientation, np.array(window), flip, out, facts, scratch)
    destroy_handle(handle)
    return status, out


def by_pillow(
    record: np.ndarray,
    window: tuple[float, ...] = WHOLE,
    resolution: int = 32,
    orientation: int = 1,
    flip: bool = False,
    scaled: bool = False,
) -> np.ndarray:
    image = load_window(io.BytesIO(record.tobytes()), np.array(window), resolution, orientation, scaled)
    return (image[:, ::-1] if flip else image).transpose(2, 0, 1)


def difference(record: np.ndarray, *arguments: Any, scaled: bool = False) -> float:
    """Return the mean absolute difference to Pillow, of 255; ``scaled`` lets it decode to a smaller size."""
    status, out = load(record, interval_starts(record), *arguments)
    assert status == Status.OK
    return float(np.abs(out.astype(int) - by_pillow(record, *arguments, scaled=scaled)).mean())


def luma_noise(width: int, height: int) -> np.ndarray:
    """Return a gray picture no two pixels of which are alike."""
    gray = np.random.default_rng(width * height).integers(20, 236, (height, width, 1), np.uint8)
    return gray.repeat(3, axis=2)


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


class Batch:
    """Samples for `load_samples`, in memory or in files."""

    def __init__(self, records: list[np.ndarray | Path], resolution: int = 24) -> None:
        count = len(records)
        self.records = [np.empty(0, np.uint8) if isinstance(r, Path) else r for r in records]
        paths = [str(r).encode() if isinstance(r, Path) else b"" for r in records]
        self.indices = [interval_starts(r) for r in self.records]
        self.counters, self.statuses = np.zeros(2, np.int64), np.zeros(count, np.int32)
        self.out = np.zeros((count, 3, resolution, resolution), np.uint8)
        self.windows = np.random.default_rng(0).uniform(0.01, 0.5, (count, 4))
        self.orientations = (np.arange(count) % 8 + 1).astype(np.uint8)
        self.flips = np.arange(count) % 3 == 0
        lengths = np.array([len(p) for p in paths], np.int64)
        in_memory = lengths == 0
        self.sources = (
            np.frombuffer(b"".join(paths) or b"-", np.uint8),
            np.cumsum(lengths) - lengths,
            lengths,
            np.array([r.ctypes.data for r in self.records], np.int64) * in_memory,
            np.array([len(r) for r in self.records], np.int64),
            np.array([xxh64(r) for r in self.records], np.uint64),
            np.array([i.ctypes.data for i in self.indices], np.int64),
            np.array([len(i) for i in self.indices], np.int64),
            np.array([xxh64(i.view(np.uint8)) for i in self.indices], np.uint64),
        )
        self.facts, self.scratch = np.zeros(FACTS, np.int64), np.empty(1 << 21, np.uint8)

    def run(self, again: int = -1) -> int:
        """Load what is left; return the number of a sample to look at, or -1."""
        return load_samples(
            self.counters, again, self.statuses, self.out, *self.sources, self.orientations, self.windows, self.flips,
            self.facts, self.scratch,
        )  # fmt: skip

    def expected(self, number: int, record: np.ndarray) -> np.ndarray:
        return load(
            record, NO_INDEX, tuple(self.windows[number]), self.out.shape[2], int(self.orientations[number]),
            bool(self.flips[number]),
        )[1]  # fmt: skip


def test_a_batch_from_memory_and_from_files(tmp_path: Path) -> None:
    records = [encode(np.asarray(photo(90, 70, n)), "4:2:0", 4 * (n % 2)) for n in range(9)]
    mixed: list[np.ndarray | Path] = []
    for number, record in enumerate(records):
        mixed.append(tmp_path / f"{number}.jpg" if number % 3 else record)
        (tmp_path / f"{number}.jpg").write_bytes(record.tobytes())
    batch = Batch(mixed)
    assert batch.run() == -1
    assert batch.counters.tolist() == [10, 9]
    for number, record in enumerate(records):
        assert np.array_equal(batch.out[number], batch.expected(number, record))


def test_samples_that_the_caller_has_to_look_at(tmp_path: Path) -> None:
    good = encode(np.asarray(photo(90, 70)), "4:2:0", 4)
    buffer = io.BytesIO()
    photo(50, 40).convert("CMYK").save(buffer, "JPEG")
    (tmp_path / "empty.jpg").touch()
    batch = Batch([
        good, good, good, np.frombuffer(buffer.getvalue(), np.uint8), good[:900], good, good, tmp_path / "missing.jpg",
        tmp_path / "empty.jpg", tmp_path, tmp_path / ("x" * 5000), good,
    ])  # fmt: skip
    batch.statuses[1] = Status.KNOWN_BAD
    batch.sources[5][5] += np.uint64(1)
    batch.sources[8][6] += np.uint64(1)
    found = []
    while (number := batch.run()) >= 0:
        found.append((number, Status(batch.statuses[number])))
        mark_done(batch.counters)
        if number == 9:
            assert batch.facts[0] > 1 << 40, "a folder, which claims to be as large as a file can be"
    assert found == [
        (1, Status.KNOWN_BAD),
        (3, Status.UNSUPPORTED),
        (4, Status.BAD),
        (5, Status.CHANGED),
        (6, Status.CHANGED),
        (7, Status.UNREADABLE),
        (8, Status.BAD),
        (9, Status.SCRATCH_TOO_SMALL),
        (10, Status.UNREADABLE),
    ]
    assert batch.counters[1] == len(batch.records)
    for number in (0, 2, 11):
        assert np.array_equal(batch.out[number], batch.expected(number, good))
    assert not batch.out[[1, 3, 4, 5, 6, 7, 8, 9, 10]].any()


@pytest.mark.parametrize("in_file", [False, True])
def test_a_sample_is_begun_again_with_more_scratch(tmp_path: Path, in_file: bool) -> None:
    large = encode(luma_noise(400, 300), "4:4:4", 4)
    (tmp_path / "large.jpg").write_bytes(large.tobytes())
    batch = Batch([encode(luma_noise(30, 20)), tmp_path / "large.jpg" if in_file else large, encode(luma_noise(9, 9))])
    batch.windows[:] = WHOLE
    batch.scratch = np.empty(60_000, np.uint8)
    tries = 0
    number = batch.run()
    while number >= 0:
        assert (number, batch.statuses[1]) == (1, Status.SCRATCH_TOO_SMALL)
        assert batch.facts[0] > len(batch.scratch)
        batch.scratch = np.empty(batch.facts[0], np.uint8)
        batch.statuses[1] = Status.OK
        number, tries = batch.run(again=1), tries + 1
    assert tries == 1 + in_file, "a file's size, then its picture's"
    assert batch.counters.tolist() == [4, 3]
    assert np.array_equal(batch.out[1], batch.expected(1, large))


def test_files_without_tables_are_not_decoded_by_those_of_others() -> None:
    """Frames of Motion JPEG leave out Huffman tables where they are the standard's, which the library fills in."""
    buffer = io.BytesIO()
    photo(80, 60, 1).save(buffer, "JPEG", optimize=True)
    optimized = np.frombuffer(buffer.getvalue(), np.uint8)
    record = encode(np.asarray(photo(80, 60, 2)))
    data, bare = record.tobytes(), b""
    while data[:1] == b"\xff" and data[1] != 0xDA:
        size = 2 if data[1] == 0xD8 else 2 + int.from_bytes(data[2:4], "big")
        bare += b"" if data[1] == 0xC4 else data[:size]
        data = data[size:]
    without = np.frombuffer(bare + data, np.uint8)
    assert len(without) < len(record) - 400
    batch = Batch([optimized, without, optimized, without])
    assert batch.run() == -1
    for number in (1, 3):
        assert np.array_equal(batch.out[number], batch.expected(number, record))


@pytest.mark.parametrize("num_threads", [2, 5])
def test_threads_share_a_batch(num_threads: int) -> None:
    records = [encode(np.asarray(photo(60 + n, 50, n)), sorted(SAMPLINGS)[n % 5], n % 4) for n in range(90)]
    alone, shared = Batch(records, 16), Batch(records, 16)
    for batch in (alone, shared):
        batch.statuses[::7] = Status.KNOWN_BAD
    while alone.run() >= 0:
        mark_done(alone.counters)
    seen: list[int] = []
    start = threading.Barrier(num_threads)

    def work(fill: int) -> None:
        facts, scratch = np.full(FACTS, fill, np.int64), np.full(1 << 20, fill, np.uint8)
        start.wait()
        while True:
            number = load_samples(
                shared.counters, -1, shared.statuses, shared.out, *shared.sources, shared.orientations, shared.windows,
                shared.flips, facts, scratch,
            )  # fmt: skip
            if number < 0:
                break
            seen.append(number)
            mark_done(shared.counters)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(0, 90, 7))
    assert shared.counters[1] == 90
    assert np.array_equal(shared.statuses, alone.statuses)
    assert np.array_equal(shared.out, alone.out)


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
