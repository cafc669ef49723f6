"""From JPEG records to a batch of crops, in compiled code that needs no GIL: only what a crop needs is decoded.

Threads call `load_samples` on the same batch and take samples from a shared counter, so that one slow image keeps one
thread busy and no other waiting. Nothing is raised in here: every sample ends with a status.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numba import njit

from kernels import jpeg_header
from kernels.checksum import xxh64
from kernels.files import close_file, file_size, open_file, read_at
from kernels.jpeg import create_handle, destroy_handle
from kernels.memory import bytes_at, fetch_add
from kernels.planes import resample_gray_region, resample_region
from kernels.region_decode import FACTS as FACTS  # what callers need beside `Status`
from kernels.region_decode import NOTHING, Decoded, component_count, decode_sample, round_up, strip_of, tiles_of

_LARGEST_FILE = 1 << 60  # bytes; a folder opened as a file claims to be larger


class Status(IntEnum):
    """How a sample ended; the first four are those of `kernels.jpeg_header.Status`."""

    OK = 0
    BAD = 1
    UNSUPPORTED = 2
    SCRATCH_TOO_SMALL = 3
    CHANGED = 4  # the record is not what its checksum says
    UNREADABLE = 5  # the file cannot be opened or read
    KNOWN_BAD = 6  # set beforehand
    BUFFER_FULL = 7  # the batch's memory has no room for the sample: see kernels.region_planes


OK, BAD, SCRATCH_TOO_SMALL = jpeg_header.OK, jpeg_header.BAD, jpeg_header.SCRATCH_TOO_SMALL
_CHANGED, _UNREADABLE = int(Status.CHANGED), int(Status.UNREADABLE)


@njit(cache=True, nogil=True)
def _resample(decoded: Decoded, facts: np.ndarray, scratch: np.ndarray, out: np.ndarray) -> int:
    """Resample what was decoded to uint8 (3, resolution, resolution)."""
    tiles, memory = tiles_of(decoded, facts), scratch[decoded.rest_at :]
    luma = strip_of(0, decoded, facts, scratch)
    if component_count(facts) == 1:
        return resample_gray_region(luma, tiles, decoded.window, out, memory)
    cb, cr = strip_of(1, decoded, facts, scratch), strip_of(2, decoded, facts, scratch)
    return resample_region(luma, cb, cr, tiles, decoded.window, out, memory)


@njit(cache=True, nogil=True, error_model="numpy")
def load_sample(
    handle: int,
    record: np.ndarray,
    starts: np.ndarray,
    orientation: int,
    window: np.ndarray,
    flip: bool,
    out: np.ndarray,
    facts: np.ndarray,
    scratch: np.ndarray,
) -> int:
    """Decode what a crop needs of a JPEG, and resize it.

    Args:
        handle: a decoder of `kernels.jpeg.create_handle`. It remembers the tables of earlier images: where a file that
            lacks its own must not be decoded by those, it has to be a new one.
        record: uint8, the whole JPEG.
        starts: uint32, its restart index from `kernels.restart.interval_starts`; empty where there is none, or it is
            not known.
        orientation: EXIF orientation, 1 to 8.
        window: float64 (4,): left, top, width, height in fractions of the upright image.
        flip: mirror the result, left to right.
        out: uint8 (3, resolution, resolution) to fill, C-contiguous: red, green, blue.
        facts: int64 (FACTS,), the thread's own.
        scratch: uint8, the thread's own.

    Returns:
        A Status. OK; BAD: a damaged image; UNSUPPORTED: to be left to Pillow; SCRATCH_TOO_SMALL: ``facts[0]`` bytes are
        needed, and nothing was done.
    """
    status, decoded = decode_sample(handle, record, starts, orientation, window, flip, out.shape[1], facts, scratch, 0)
    return _resample(decoded, facts, scratch, out) if status == OK else status


class Sources(NamedTuple):
    """Where the samples of a batch are.

    Attributes:
        paths, path_starts, path_lengths: uint8, int64 (n,) and (n,): the files, where there are no records in memory.
        addresses, lengths: int64 (n,): the records in memory; an address of 0 means a file.
        checksums: uint64 (n,), XXH64 of the records in memory.
        index_addresses, index_counts: int64 (n,): their restart indices.
        index_checksums: uint64 (n,), XXH64 of these.
        orientations: uint8 (n,).
    """

    paths: np.ndarray
    path_starts: np.ndarray
    path_lengths: np.ndarray
    addresses: np.ndarray
    lengths: np.ndarray
    checksums: np.ndarray
    index_addresses: np.ndarray
    index_counts: np.ndarray
    index_checksums: np.ndarray
    orientations: np.ndarray


@njit(cache=True, nogil=True, error_model="numpy")
def decode_next(
    counters: np.ndarray,
    again: int,
    statuses: np.ndarray,
    resolution: int,
    sources: Sources,
    windows: np.ndarray,
    flips: np.ndarray,
    facts: np.ndarray,
    scratch: np.ndarray,
) -> tuple[int, Decoded]:
    """Begin a sample of a batch and decode what its crop needs; arguments as those of `load_samples`.

    Returns:
        The sample's number, -1 when none is left, and what was decoded, if its status is OK.
    """
    sample = again if again >= 0 else fetch_add(counters, 0, 1)
    if sample >= statuses.shape[0]:
        return -1, NOTHING
    if statuses[sample] != OK:
        return sample, NOTHING
    begin = 0
    if sources.addresses[sample] != 0:
        record = bytes_at(sources.addresses[sample], sources.lengths[sample])
        index = bytes_at(sources.index_addresses[sample], 4 * sources.index_counts[sample])
        intact = xxh64(record) == sources.checksums[sample] and xxh64(index) == sources.index_checksums[sample]
        status = OK if intact else _CHANGED
        starts = index.view(np.uint32)
    else:
        path_start = sources.path_starts[sample]
        size = _read_whole(sources.paths[path_start : path_start + sources.path_lengths[sample]], scratch)
        status = OK
        if size < 0:
            status = _UNREADABLE
        elif size >= scratch.shape[0]:
            facts[0] = 2 * min(size, _LARGEST_FILE)
            status = SCRATCH_TOO_SMALL
        begin = min(round_up(max(size, 0)), scratch.shape[0])
        record, starts = scratch[: max(size, 0)], scratch[:0].view(np.uint32)
    decoded = NOTHING
    if status == OK:
        handle = create_handle()
        status, decoded = decode_sample(
            handle, record, starts, sources.orientations[sample], windows[sample], flips[sample], resolution, facts,
            scratch, begin,
        )  # fmt: skip
        destroy_handle(handle)
    statuses[sample] = status
    return sample, decoded


@njit(cache=True, nogil=True, error_model="numpy")
def load_samples(
    counters: np.ndarray,
    again: int,
    statuses: np.ndarray,
    out: np.ndarray,
    paths: np.ndarray,
    path_starts: np.ndarray,
    path_lengths: np.ndarray,
    addresses: np.ndarray,
    lengths: np.ndarray,
    checksums: np.ndarray,
    index_addresses: np.ndarray,
    index_counts: np.ndarray,
    index_checksums: np.ndarray,
    orientations: np.ndarray,
    windows: np.ndarray,
    flips: np.ndarray,
    facts: np.ndarray,
    scratch: np.ndarray,
) -> int:
    """Load samples of a batch until none is left to begin, or one has to be seen to by the caller.

    Args:
        counters: int64 (2,): samples begun and done, shared by all threads.
        again: a sample to begin with, which was begun before; below 0 for none.
        statuses: int32 (n,), shared; a sample that has one other than OK already is left to the caller.
        out: uint8 (n, 3, resolution, resolution), C-contiguous.
        paths to orientations: where the samples are: see `Sources`.
        windows: float64 (n, 4).
        flips: bool (n,).
        facts, scratch: the thread's own, as in `load_sample`.

    Returns:
        The number of a sample whose status the caller is to look at, or -1 when none is left. The caller counts that
        sample as done with `mark_done`, or has it begun again.
    """
    sources = Sources(
        paths, path_starts, path_lengths, addresses, lengths, checksums, index_addresses, index_counts,
        index_checksums, orientations,
    )  # fmt: skip
    while True:
        sample, decoded = decode_next(counters, again, statuses, out.shape[2], sources, windows, flips, facts, scratch)
        again = -1
        if sample < 0:
            return -1
        if statuses[sample] == OK:
            statuses[sample] = _resample(decoded, facts, scratch, out[sample])
        if statuses[sample] != OK:
            return sample
        fetch_add(counters, 1, 1)


@njit(cache=True, nogil=True)
def _read_whole(path: np.ndarray, out: np.ndarray) -> int:
    """Read a file; return its size, below 0 when that fails. Of a file that does not fit, nothing is read."""
    file = open_file(path, out)
    if file < 0:
        return -1
    size = file_size(file)
    if 0 <= size < out.shape[0] and read_at(file, 0, out[:size]) != size:
        size = -1
    close_file(file)
    return size


@njit(cache=True, nogil=True)
def mark_done(counters: np.ndarray) -> None:
    """Count a sample as done that the caller has seen to."""
    fetch_add(counters, 1, 1)
