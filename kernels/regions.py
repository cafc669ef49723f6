"""From JPEG records to a batch of crops, in compiled code that needs no GIL: only what a crop needs is decoded.

Threads call `load_samples` on the same batch and take samples from a shared counter, so that one slow image keeps one
thread busy and no other waiting. Nothing is raised in here: every sample ends with a status.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
from numba import njit

from kernels import jpeg_header
from kernels.checksum import xxh64
from kernels.files import close_file, file_size, open_file, read_at
from kernels.jpeg import create_handle, destroy_handle
from kernels.jpeg_header import (
    BLOCK_HEIGHT,
    BLOCK_WIDTH,
    COMPONENTS,
    HEADER_FIELDS,
    HEIGHT,
    LAYOUT_FIELDS,
    MCU_COLUMNS,
    MCU_HEIGHT,
    MCU_ROWS,
    MCU_WIDTH,
    PLANE_OFFSET,
    PLANE_STRIDE,
    STRIP_COLUMNS,
    WIDTH,
    read_header,
    scaled_size,
)
from kernels.memory import bytes_at, fetch_add
from kernels.planes import Window, reach, resample_bytes, resample_gray_region, resample_region
from kernels.restart import decode_region, find_intervals, interval_count, region_bytes
from kernels.tiles import Strip, Tiles

_MAX_SHIFT = 3  # libjpeg-turbo decodes at 1/1, 1/2, 1/4 and 1/8 with vector instructions
_MAX_MCU_ROWS = 8192  # of the highest JPEG
_ALIGNMENT = 64
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


OK, BAD, SCRATCH_TOO_SMALL = jpeg_header.OK, jpeg_header.BAD, jpeg_header.SCRATCH_TOO_SMALL
_CHANGED, _UNREADABLE = int(Status.CHANGED), int(Status.UNREADABLE)

# The parts of the array of numbers that a thread works with. The first is how much scratch is needed, bytes.
_HEADER = 1
_LAYOUT = _HEADER + HEADER_FIELDS
_POSITIONS = _LAYOUT + LAYOUT_FIELDS
FACTS = _POSITIONS + _MAX_MCU_ROWS


@njit(cache=True, nogil=True, error_model="numpy")
def _stored_window(window: np.ndarray, orientation: int) -> tuple[float, float, float, float]:
    """Turn a window of the upright image into left, top, right, bottom of the stored one, all in fractions."""
    left, top = window[0], window[1]
    right, bottom = left + window[2], top + window[3]
    if orientation == 2 or orientation == 3 or orientation == 6 or orientation == 7:
        left, right = 1 - right, 1 - left
    if orientation == 3 or orientation == 4 or orientation == 7 or orientation == 8:
        top, bottom = 1 - bottom, 1 - top
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    return max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _scale_shift(width: float, height: float, resolution: int) -> int:
    """Return by how much to decode smaller: as long as the window stays at least twice as large as the result.

    That moves pixels by 0.6 of 255 on average; down to once the size it would be 1.5, for a twentieth of the time.
    """
    shift = 0
    while shift < _MAX_SHIFT and min(width, height) >= resolution << (shift + 2):
        shift += 1
    return shift


@njit(cache=True, nogil=True, error_model="numpy")
def _units_reached(begin: float, extent: float, resolution: int, unit: int, count: int) -> tuple[int, int]:
    """Return the first MCU that the filters reach along an axis, and one past the last.

    Args:
        begin, extent: the window, in samples of luma.
        resolution: of the result.
        unit: samples of an MCU.
        count: MCUs of the image.
    """
    margin = reach(extent, resolution)
    first = max(0, math.floor((begin - margin) / unit))
    return first, min(count, math.ceil((begin + extent + margin) / unit))


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
    header, layout, positions = facts[_HEADER:_LAYOUT], facts[_LAYOUT:_POSITIONS], facts[_POSITIONS:]
    status = read_header(record, header)
    if status != OK:
        return status
    left, top, right, bottom = _stored_window(window, orientation)
    left, right = left * header[WIDTH], right * header[WIDTH]
    top, bottom = top * header[HEIGHT], bottom * header[HEIGHT]
    if not (right > left and bottom > top):
        return BAD
    resolution = out.shape[1]
    shift = _scale_shift(right - left, bottom - top, resolution)
    # From here on in samples of luma, at the scale of decoding.
    scale = 1.0 / (1 << shift)
    x, y, width, height = left * scale, top * scale, (right - left) * scale, (bottom - top) * scale
    unit_width, unit_height = header[MCU_WIDTH] >> shift, header[MCU_HEIGHT] >> shift
    column0, column1 = _units_reached(x, width, resolution, unit_width, header[MCU_COLUMNS])
    row0, row1 = _units_reached(y, height, resolution, unit_height, header[MCU_ROWS])
    rows, columns = row1 - row0, column1 - column0

    length, intervals = record.shape[0], interval_count(header)
    index_bytes = 0
    planes_bytes = region_bytes(header, starts.shape[0], row0, row1, column0, column1, shift, length)
    if starts.shape[0] == 0 and intervals > 0:  # whether the intervals serve is found out later
        index_bytes = _round_up(4 * (intervals + 1))
        strip_bytes = region_bytes(header, intervals + 1, row0, row1, column0, column1, shift, length)
        planes_bytes = max(planes_bytes, strip_bytes)
    planes_bytes = _round_up(planes_bytes)
    side = max(columns * unit_width, rows * unit_height)
    facts[0] = index_bytes + planes_bytes + resample_bytes(side, resolution)
    if scratch.shape[0] < facts[0]:
        return SCRATCH_TOO_SMALL
    if index_bytes > 0:
        found = scratch[:index_bytes].view(np.uint32)
        starts = found[: find_intervals(record, header, found)]
    planes = scratch[index_bytes : index_bytes + planes_bytes]
    status = decode_region(
        handle, record, header, starts, row0, row1, column0, column1, shift, planes, positions, layout
    )
    if status != OK:
        return status

    tiles = Tiles(
        positions[:rows],
        columns,
        layout[STRIP_COLUMNS],
        min(columns * unit_width, scaled_size(header[WIDTH], shift) - column0 * unit_width),
        min(rows * unit_height, scaled_size(header[HEIGHT], shift) - row0 * unit_height),
    )
    turned = orientation >= 5
    mirrored_x = orientation in (6, 7) if turned else orientation in (2, 3)
    mirrored_y = orientation in (7, 8) if turned else orientation in (3, 4)
    view = Window(
        x - column0 * unit_width, y - row0 * unit_height, width, height, turned, mirrored_x != flip, mirrored_y
    )
    memory = scratch[index_bytes + planes_bytes :]
    luma = _strip(planes, layout, 0)
    if header[COMPONENTS] == 1:
        return resample_gray_region(luma, tiles, view, out, memory)
    return resample_region(luma, _strip(planes, layout, 1), _strip(planes, layout, 2), tiles, view, out, memory)


@njit(cache=True, nogil=True)
def _round_up(size: int) -> int:
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


@njit(cache=True, nogil=True)
def _strip(planes: np.ndarray, layout: np.ndarray, component: int) -> Strip:
    offset = layout[PLANE_OFFSET + component]
    return Strip(
        planes[offset:],
        layout[PLANE_STRIDE + component],
        layout[BLOCK_WIDTH + component],
        layout[BLOCK_HEIGHT + component],
    )


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
        paths, path_starts, path_lengths: uint8, int64 (n,) and (n,): the files, where there are no records in memory.
        addresses, lengths: int64 (n,): the records in memory; an address of 0 means a file.
        checksums: uint64 (n,), XXH64 of the records in memory.
        index_addresses, index_counts: int64 (n,): their restart indices.
        index_checksums: uint64 (n,), XXH64 of these.
        orientations: uint8 (n,).
        windows: float64 (n, 4).
        flips: bool (n,).
        facts, scratch: the thread's own, as in `load_sample`.

    Returns:
        The number of a sample whose status the caller is to look at, or -1 when none is left. The caller counts that
        sample as done with `mark_done`, or has it begun again.
    """
    count = statuses.shape[0]
    while True:
        if again >= 0:
            sample = again
            again = -1
        else:
            sample = fetch_add(counters, 0, 1)
        if sample >= count:
            return -1
        if statuses[sample] != OK:
            return sample
        if addresses[sample] != 0:
            record = bytes_at(addresses[sample], lengths[sample])
            index = bytes_at(index_addresses[sample], 4 * index_counts[sample])
            intact = xxh64(record) == checksums[sample] and xxh64(index) == index_checksums[sample]
            status = OK if intact else _CHANGED
            starts, rest = index.view(np.uint32), scratch
        else:
            path = paths[path_starts[sample] : path_starts[sample] + path_lengths[sample]]
            size = _read_whole(path, scratch)
            status = OK
            if size < 0:
                status = _UNREADABLE
            elif size >= scratch.shape[0]:
                facts[0] = 2 * min(size, _LARGEST_FILE)
                status = SCRATCH_TOO_SMALL
            begin = min(_round_up(max(size, 0)), scratch.shape[0])
            record, rest = scratch[: max(size, 0)], scratch[begin:]
            starts = scratch[:0].view(np.uint32)
        if status == OK:
            handle = create_handle()
            status = load_sample(
                handle, record, starts, orientations[sample], windows[sample], flips[sample], out[sample], facts, rest
            )
            destroy_handle(handle)
            if status == SCRATCH_TOO_SMALL:
                facts[0] += scratch.shape[0] - rest.shape[0]
        if status != OK:
            statuses[sample] = status
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
