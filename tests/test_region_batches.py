"""Batches of regions: samples from memory and from files, what the caller has to look at, and threads."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest

from kernels.checksum import xxh64
from kernels.jpeg import JpegLibraryError, load_library
from kernels.regions import FACTS, Status, load_samples, mark_done
from kernels.restart import interval_starts
from tests.images import photo
from tests.jpegs import SAMPLINGS, encode
from tests.regions import NO_INDEX, WHOLE, load, luma_noise

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)


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
