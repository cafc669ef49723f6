"""Mutated JPEGs through the region loader's compiled code, between pages that nobody may touch.

Run by tests/test_fuzz.py, in a process of its own, as ``python -m tests.fuzz_regions COUNT SEED [FIRST]``. A record is
a function of its number and the seed alone. Numbers are printed as they come, so that the last one is that of a record
that ends the process, and at last how many ended how, as JSON.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import mmap
import resource
import signal
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from kernels.checksum import xxh64
from kernels.device_regions import Plane, Regions, regions_fit
from kernels.jpeg import create_handle, destroy_handle, load_library
from kernels.jpeg_header import (
    ENTROPY_AT,
    FRAME_SIZE_AT,
    HEADER_FIELDS,
    LAYOUT_FIELDS,
    MCU_COLUMNS,
    MCU_ROWS,
    read_header,
)
from kernels.region_planes import PlaneBuffer, decode_samples
from kernels.regions import FACTS, Sources, Status, load_sample
from kernels.restart import decode_region, interval_count, interval_starts, region_bytes
from tests.images import photo
from tests.jpegs import SAMPLINGS, encode, header_of

SECONDS = 20.0  # of CPU time for one record; the slowest takes a hundredth of it
BASES = 150  # good records, to be mutated
MAX_SCRATCH = 1 << 30
MAX_RESOLUTION = 256
_MARKERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xD0, 0xD3, 0xD7, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE, 0x01)
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0)

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Guarded:
    """Memory between two pages that end the process when they are touched."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        size = -(-size // page) * page
        self._map = mmap.mmap(-1, size + 2 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        whole = np.frombuffer(self._map, np.uint8)
        for begin in (whole.ctypes.data, whole.ctypes.data + page + size):
            if _mprotect(begin, page, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self._bytes = whole[page:-page]

    def take(self, size: int, at_end: bool) -> np.ndarray:
        """Return ``size`` bytes that begin or end at a page that may not be touched."""
        return self._bytes[len(self._bytes) - size :] if at_end else self._bytes[:size]

    def put(self, data: np.ndarray, at_end: bool) -> np.ndarray:
        """Return a copy of an array that begins or ends at a page that may not be touched."""
        memory = self.take(data.nbytes, at_end)
        memory[:] = data.view(np.uint8)
        return memory.view(data.dtype)

    def release(self) -> None:
        """Give the memory back to the system; it reads as zeros then."""
        self._map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Case:
    """What one call is given."""

    record: np.ndarray
    starts: np.ndarray
    window: np.ndarray
    orientation: int
    resolution: int
    flip: bool
    at_end: bool


def good_records(random: np.random.Generator) -> list[np.ndarray]:
    """Return JPEGs of every kind, with sides of 1 to 600 pixels."""
    records = []
    for number in range(BASES):
        width, height = np.exp(random.uniform(0, np.log(601), 2)).astype(int)
        if number % 3 == 0:
            width, height = random.integers(100, 601, 2)
        interval = int(random.choice([0, 0, 1, 2, 3, 4, 7, 8, 40, -(-int(width) // 16)]))
        progressive = bool(random.random() < 0.2)
        pixels = np.asarray(photo(int(width), int(height), number))
        quality = int(random.integers(20, 96))
        records.append(encode(pixels, sorted(SAMPLINGS)[number % 5], interval, progressive, quality))
    return records


def _markers(record: np.ndarray) -> np.ndarray:
    """Return where the codes of markers stand."""
    return np.flatnonzero((record[:-1] == 0xFF) & (record[1:] != 0) & (record[1:] != 0xFF)) + 1


def _flip_bits(record: np.ndarray, random: np.random.Generator, other: np.ndarray) -> np.ndarray:
    end = len(record) if random.random() < 0.5 else min(len(record), 640)
    places = random.integers(0, end, random.integers(1, 12))
    record[places] ^= (1 << random.integers(0, 8, len(places))).astype(np.uint8)
    return record


def _truncate(record: np.ndarray, random: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return record[: random.integers(0, len(record) + 1)]


def _change_markers(record: np.ndarray, random: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """Swap two markers, remove one, put one twice, or make one another."""
    found = _markers(record)
    if len(found) < 2:
        return record
    one, two = np.sort(random.choice(found, 2, replace=False)).tolist()
    kind = random.integers(0, 4)
    if kind == 0:
        record[[one, two]] = record[[two, one]]
    elif kind == 1:
        record = np.delete(record, [one - 1, one])
    elif kind == 2:
        record = np.insert(record, two - 1, record[one - 1 : one + int(random.choice([1, 19, 60]))])
    else:
        record[one] = random.choice(_MARKERS)
    return record


def _lie(record: np.ndarray, random: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """Write another size, sampling, number of components, restart interval or segment length into the header."""
    header = np.zeros(HEADER_FIELDS, np.int64)
    if read_header(record, header) != Status.OK:
        return record
    at, kind = int(header[FRAME_SIZE_AT]), random.integers(0, 5)
    if kind == 0:
        place = at + 2 * int(random.integers(0, 2))
        size = int(random.choice([0, 1, 7, 8, 9, 16, 65_500, 65_535, *random.integers(1, 2000, 4)]))
        record[place : place + 2] = size >> 8, size & 255
    elif kind == 1:
        record[at + 6 + 3 * int(random.integers(0, 2))] = random.choice([0x11, 0x12, 0x21, 0x22, 0x41, 0x14, 0x00])
    elif kind == 2:
        record[at + int(random.choice([-1, 4, 5, 8]))] = random.integers(0, 13)
    elif kind == 3:
        interval = int(random.choice([0, 1, 2, 3, 5, 8, 100, 4000, 65_535]))
        segment = np.array([0xFF, 0xDD, 0, 4, interval >> 8, interval & 255], np.uint8)
        record = np.insert(record, at - 5, segment)  # before the frame header
    else:
        place = int(random.choice(_markers(record[: header[ENTROPY_AT]])))
        record[place + 1 : place + 3] = (
            random.integers(0, 256, 2) if random.random() < 0.5 else (0, random.integers(90))
        )
    return record


def _splice(record: np.ndarray, random: np.random.Generator, other: np.ndarray) -> np.ndarray:
    cut = random.integers(0, len(record) + 1)
    resumed = cut if random.random() < 0.5 else random.integers(0, len(other) + 1)
    return np.concatenate([record[:cut], other[min(resumed, len(other)) :]])


def _shift(record: np.ndarray, random: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """Insert or remove bytes."""
    place, count = int(random.integers(0, len(record) + 1)), int(random.integers(1, 40))
    if random.random() < 0.5:
        return np.insert(record, place, random.integers(0, 256, count, np.uint8))
    return np.delete(record, slice(place, place + count))


_MUTATIONS = (_flip_bits, _truncate, _change_markers, _lie, _lie, _splice, _shift)


def _window(random: np.random.Generator) -> np.ndarray:
    kind = random.random()
    if kind < 0.15:
        return np.array([0.0, 0.0, 1.0, 1.0])
    if kind < 0.2:
        return random.choice([-1.0, 0.0, 0.5, 1.0, 2.0, 1e300, -1e300, np.inf, -np.inf, np.nan], 4)
    size = random.random(2) ** random.choice([0.5, 2, 20])
    begin = np.where(random.random(2) < 0.3, random.integers(0, 2, 2), random.random(2)) * (1 - size)
    return np.concatenate([begin, size])


def _starts(record: np.ndarray, original: np.ndarray, random: np.random.Generator) -> np.ndarray:
    kind = random.integers(0, 4)
    if kind == 0:
        return np.empty(0, np.uint32)
    true = interval_starts(record if kind == 1 else original)
    if kind == 3 and len(true):
        places = random.integers(0, len(true), random.integers(1, 4))
        true[places] = random.choice(
            [0, 1, len(record), 2**32 - 1, *random.integers(0, len(record) + 9, 4)], len(places)
        )
    return true


def make_case(number: int, seed: int, bases: list[np.ndarray]) -> Case:
    """Return the case of a number: a mutated record, or in one of ten cases a good one, and how to read it."""
    random = np.random.default_rng([seed, number])
    original = bases[random.integers(len(bases))]
    record, other = original.copy(), bases[random.integers(len(bases))]
    for _ in range(random.choice([0, 1, 1, 1, 1, 1, 1, 2, 2, 4])):
        record = np.ascontiguousarray(_MUTATIONS[random.integers(len(_MUTATIONS))](record, random, other))
        if len(record) < 4:
            break
    return Case(
        record,
        _starts(record, original, random),
        _window(random),
        int(random.integers(1, 9)),
        int(np.exp(random.uniform(0, np.log(MAX_RESOLUTION)))),
        bool(random.integers(2)),
        number % 2 == 0,
    )


def most_scratch(length: int, resolution: int) -> int:
    """Return how much scratch a record of a length may ask for at most.

    A block of 64 samples takes a bit at least, a region of intervals holds at most twice the image, and the resampler
    keeps the rows that it reads, for three components in two bytes, at the width of the result.
    """
    side = min(16 * 8 * length, 1 << 16)
    return (2 * 8 * 64 + 40) * length + (6 * (resolution + 32) + 160) * side + 500 * (resolution + 32)


class Fuzzer:
    """The memory that calls work in."""

    def __init__(self) -> None:
        self._record, self._starts = Guarded(1 << 20), Guarded(1 << 20)
        self._out, self._scratch = Guarded(3 * MAX_RESOLUTION**2), Guarded(MAX_SCRATCH)
        self._planes = Guarded(MAX_SCRATCH)
        self._facts = np.zeros(FACTS, np.int64)
        self._handle = create_handle()

    def load(self, case: Case) -> Status:
        """Load a sample with as much scratch as it asks for, twice into different memory."""
        self._record.put(np.zeros(len(case.record) + 64, np.uint8), case.at_end)
        record, starts = self._record.put(case.record, case.at_end), self._starts.put(case.starts, case.at_end)
        side = case.resolution
        out = self._out.take(3 * side * side, case.at_end).reshape(3, side, side)

        def load(scratch: np.ndarray, fill: int) -> int:
            scratch[: 1 << 22] = fill
            out[:] = fill
            handle = create_handle()  # a used one has the tables of earlier images
            status = load_sample(
                handle, record, starts, case.orientation, case.window, case.flip, out, self._facts, scratch
            )
            destroy_handle(handle)
            return status

        status = load(self._scratch.take(0, case.at_end), 0)
        if status != Status.SCRATCH_TOO_SMALL:
            assert status != Status.OK, "done with nothing to work in"
            return Status(status)
        assert not out.any(), "pixels written before there was enough to work in"
        needed = int(self._facts[0])
        limit = most_scratch(len(record), side)
        assert 0 < needed <= limit, f"{needed} bytes of scratch for a record of {len(record)}, above {limit}"
        scratch = self._scratch.take(needed, case.at_end)
        status = load(scratch, 0xA5)
        assert status in (Status.OK, Status.BAD), f"{Status(status)!r} with what was asked for"
        if status == Status.OK:
            first = out.copy()
            assert load(scratch, 0x5A) == Status.OK
            assert np.array_equal(first, out), "pixels not written, or from memory that nobody wrote"
        if needed > 1 << 24:
            self._scratch.release()
        return Status(status)

    def decode(self, case: Case, number: int) -> None:
        """Decode a region with no more scratch than it needs: the library's input and output end where it ends."""
        header = np.zeros(HEADER_FIELDS, np.int64)
        if read_header(case.record, header) != Status.OK:
            return
        random = np.random.default_rng(number)
        row0, row1 = np.sort(random.choice(int(header[MCU_ROWS]) + 1, 2, replace=False)).tolist()
        column0, column1 = np.sort(random.choice(int(header[MCU_COLUMNS]) + 1, 2, replace=False)).tolist()
        starts = case.starts if len(case.starts) == interval_count(header) + 1 else np.empty(0, np.uint32)
        region, shift = (row0, row1, column0, column1), int(random.integers(4))
        needed = region_bytes(header, len(starts), *region, shift, len(case.record))
        scratch = self._scratch.take(needed, case.at_end)
        positions, layout = np.empty(row1 - row0, np.int64), np.empty(LAYOUT_FIELDS, np.int64)
        status = decode_region(self._handle, case.record, header, starts, *region, shift, scratch, positions, layout)
        assert status in (Status.OK, Status.BAD), f"{Status(status)!r} with what is needed"
        if needed > 1 << 24:
            self._scratch.release()

    def planes(self, case: Case, expected: Status) -> None:
        """Decode to planes, with no more memory for them than they need; it ends as loading the sample did."""
        record, starts = self._record.put(case.record, case.at_end), self._starts.put(case.starts, case.at_end)
        sources = _source_of(record, starts, case.orientation)
        statuses, counters = np.zeros(1, np.int32), np.array([1, 0])  # the one sample is begun
        windows, flips = case.window[None], np.array([case.flip])
        memory, needed, scratch = self._out.take(0, case.at_end), 0, 0
        while True:
            tables = np.zeros((1, 3, len(Plane)), np.int64), np.zeros((1, 3, 4)), np.zeros((1, 3), np.bool_)
            memory[:] = 0xA5
            buffer = PlaneBuffer(memory, np.zeros(1, np.int64), 0, *tables)
            statuses[0], again = Status.OK, 0
            taken = self._scratch.take(scratch, case.at_end)
            decode_samples(
                counters, again, statuses, case.resolution, buffer, sources, windows, flips, self._facts, taken
            )
            status = Status(int(statuses[0]))
            if status == Status.SCRATCH_TOO_SMALL and not scratch:
                scratch = int(self._facts[0])
            elif status == Status.BUFFER_FULL and not needed:
                assert not any(table.any() for table in tables), "tables written before there was room"
                needed = int(self._facts[0])
                assert 0 < needed <= scratch + 64, f"{needed} bytes of planes out of {scratch} bytes of scratch"
                memory = self._planes.take(needed, case.at_end)
            else:
                break
        assert status == expected, f"{status!r} as planes, {expected!r} as pixels"
        if status == Status.OK:
            regions = Regions(*(torch.from_numpy(each) for each in (memory, np.zeros(1, np.int64), *tables)))
            assert regions_fit(regions), "planes that a device would read beside"
        if needed > 1 << 24:
            self._planes.release()
        if scratch > 1 << 24:
            self._scratch.release()


def _source_of(record: np.ndarray, starts: np.ndarray, orientation: int) -> Sources:
    """Return one record in memory, as a batch has it."""
    none, one = np.empty(0, np.uint8), np.zeros(1, np.int64)
    return Sources(
        none, one, one,
        np.array([record.ctypes.data]), np.array([len(record)]), np.array([xxh64(record)], np.uint64),
        np.array([starts.ctypes.data]), np.array([len(starts)]), np.array([xxh64(starts.view(np.uint8))], np.uint64),
        np.array([orientation], np.uint8),
    )  # fmt: skip


def main() -> None:
    count, seed, first = (int(argument) for argument in (*sys.argv[1:], "0")[:3])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    load_library()
    bases = good_records(np.random.default_rng(seed))
    assert all(len(header_of(record)) for record in bases)
    fuzzer, ended = Fuzzer(), Counter[str]()
    for number in range(first, first + count):
        print(number, flush=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # the signal ends the process, in compiled code too
        case = make_case(number, seed, bases)
        status = fuzzer.load(case)
        ended[status.name] += 1
        fuzzer.planes(case, status)
        fuzzer.decode(case, number)
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
