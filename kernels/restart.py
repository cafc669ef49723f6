"""Random access inside a JPEG through its restart markers.

Entropy-coded data can be read from their beginning only, but at a restart marker the decoder starts afresh (ITU-T T.81,
F.2.1.3.1). The intervals between markers that hold a region, one after another behind the original header, whose frame
is given the width of one interval and the height of all, are a small JPEG of their own: a strip of tiles. Decoded, it
holds the samples of the region exactly as a decoding of the whole image would.

Regions are counted in MCUs (minimum coded units), the blocks of 8 or 16 pixels that a JPEG is coded in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.core.typing import signature

from kernels.jpeg import decode_planes
from kernels.jpeg_header import (
    BAD,
    ENTROPY_AT,
    EOI,
    FRAME_SIZE_AT,
    HEADER_FIELDS,
    HEIGHT,
    LAYOUT_FIELDS,
    MAX_SIDE,
    MCU_COLUMNS,
    MCU_HEIGHT,
    MCU_ROWS,
    MCU_WIDTH,
    OK,
    RESTART_INTERVAL,
    RST0,
    SCRATCH_TOO_SMALL,
    SEQUENTIAL,
    WIDTH,
    find_marker,
    has_end,
    lay_out_planes,
    read_header,
)

_memcpy: Callable[..., int] = types.ExternalFunction(
    "memcpy", signature(types.uintp, types.uintp, types.uintp, types.uintp)
)


class _Work(NamedTuple):
    """The arguments of `decode_region`, its region in one."""

    handle: int
    record: np.ndarray
    header: np.ndarray
    starts: np.ndarray
    region: tuple[int, int, int, int]
    shift: int
    scratch: np.ndarray
    positions: np.ndarray
    layout: np.ndarray


def interval_starts(record: np.ndarray) -> np.ndarray:
    """Return where the restart intervals of a JPEG begin.

    Args:
        record: uint8 (bytes,), contiguous, the whole file.

    Returns:
        uint32 (N + 1,): the offset of the first byte of each of N intervals, and one behind the marker that ends the
        last: the data of interval i are ``record[starts[i] : starts[i + 1] - 2]``. Empty where there are no intervals
        or none that serve: markers missing or out of turn, several scans, an interval wider than libjpeg takes.
    """
    header = np.zeros(HEADER_FIELDS, np.int64)
    if read_header(record, header) != OK:
        return np.empty(0, np.uint32)
    starts = np.empty(interval_count(header) + 1, np.uint32)
    return starts[: find_intervals(record, header, starts)]


@njit(cache=True, nogil=True)
def interval_count(header: np.ndarray) -> int:
    """Return how many restart intervals a JPEG has; 0 where they give no random access."""
    interval = header[RESTART_INTERVAL]
    if not header[SEQUENTIAL] or interval == 0:
        return 0
    if not _is_aligned(header) and interval * header[MCU_WIDTH] > MAX_SIDE:
        return 0
    count = -(-header[MCU_COLUMNS] * header[MCU_ROWS] // interval)
    return count if count > 1 else 0


@njit(cache=True, nogil=True)
def _is_aligned(header: np.ndarray) -> bool:
    """Return whether intervals begin in the same columns in every row."""
    columns, interval = header[MCU_COLUMNS], header[RESTART_INTERVAL]
    return columns % interval == 0 or interval % columns == 0


@njit(cache=True, nogil=True)
def find_intervals(record: np.ndarray, header: np.ndarray, starts: np.ndarray) -> int:
    """Find where the restart intervals of a JPEG begin, as `interval_starts`.

    Args:
        record: uint8 (bytes,), contiguous, the whole file.
        header: of the record, from `read_header`.
        starts: integers, to fill; ``interval_count(header) + 1`` suffice.

    Returns:
        How many were filled in; 0 where there are no intervals that serve, or not enough room.
    """
    count = interval_count(header)
    if count == 0 or starts.shape[0] <= count:
        return 0
    position = header[ENTROPY_AT]
    for interval in range(count):
        starts[interval] = position
        position = find_marker(record, position) + 1
        expected = RST0 + (interval & 7) if interval < count - 1 else EOI
        if position == 0 or record[position - 1] != expected:
            return 0
    starts[count] = position
    return count + 1


@njit(cache=True, nogil=True)
def region_bytes(
    header: np.ndarray,
    starts_count: int,
    row0: int,
    row1: int,
    column0: int,
    column1: int,
    shift: int,
    record_length: int,
) -> int:
    """Return how much scratch `decode_region` may need, bytes.

    Args:
        header: of the record, from `read_header`.
        starts_count: length of the array that `interval_starts` returned.
        row0, row1, column0, column1: the region, MCUs.
        shift: 0 to 3.
        record_length: bytes.
    """
    if starts_count == 0 or interval_count(header) == 0:
        columns, rows = header[MCU_COLUMNS], header[MCU_ROWS]
    elif _is_aligned(header):
        first_column, last_column, first_row, last_row = _band(header, (row0, row1, column0, column1))
        columns, rows = last_column - first_column, last_row - first_row
    else:
        columns, rows = header[RESTART_INTERVAL], _strip_rows(header, (row0, row1, column0, column1))
    return lay_out_planes(header, columns, rows, shift, np.empty(LAYOUT_FIELDS, np.int64)) + record_length


@njit(cache=True, nogil=True)
def decode_region(
    handle: int,
    record: np.ndarray,
    header: np.ndarray,
    starts: np.ndarray,
    row0: int,
    row1: int,
    column0: int,
    column1: int,
    shift: int,
    scratch: np.ndarray,
    positions: np.ndarray,
    layout: np.ndarray,
) -> int:
    """Decode the MCUs of a region to planes, and as few others as possible.

    The planes consist of tiles, one for each MCU; the MCU in column c of row r of the region is tile number
    ``positions[r] + c``, and tile number q lies in tile row ``q // layout[STRIP_COLUMNS]`` and tile column
    ``q % layout[STRIP_COLUMNS]``. Every sample of the image inside the region is exactly what decoding the whole image
    at the same scale gives; what lies outside has no meaning. Without intervals, the rows of the image are decoded from
    the first to the region's last, or all of them where there are several scans.

    Args:
        handle: a decoder.
        record: uint8 (bytes,), contiguous, the whole file.
        header: of the record, from `read_header`.
        starts: integers (N + 1,), of the record, from `interval_starts`; or empty.
        row0, row1, column0, column1: the region, MCUs, the ends not included.
        shift: 0 to 3; the planes have ``1 / 2**shift`` of the size.
        scratch: uint8 (bytes,), contiguous, at least `region_bytes`; will hold the planes.
        positions: int64, at least (row1 - row0,), to fill.
        layout: int64 (LAYOUT_FIELDS,), to fill: where the planes lie in ``scratch``.

    Returns:
        OK; BAD: the data are damaged, or the region or the intervals are not those of the image; SCRATCH_TOO_SMALL:
        nothing was done.
    """
    inside = 0 <= row0 < row1 <= header[MCU_ROWS] and 0 <= column0 < column1 <= header[MCU_COLUMNS]
    intervals = starts.shape[0] - 1
    if not inside or not 0 <= shift <= 3 or (intervals >= 0 and intervals != interval_count(header)):
        return BAD
    if not 0 < header[FRAME_SIZE_AT] <= header[ENTROPY_AT] - 4 or header[ENTROPY_AT] > record.shape[0]:
        return BAD
    needed = region_bytes(header, starts.shape[0], row0, row1, column0, column1, shift, record.shape[0])
    if scratch.shape[0] < needed or positions.shape[0] < row1 - row0:
        return SCRATCH_TOO_SMALL
    region = (row0, row1, column0, column1)
    work = _Work(handle, record, header, starts, region, shift, scratch, positions, layout)
    if intervals < 0:
        return _decode_rows(work)
    return _decode_band(work) if _is_aligned(header) else _decode_strip(work)


@njit(cache=True, nogil=True)
def _decode_rows(work: _Work) -> int:
    """Decode an image from its first row to the region's last: without intervals, there is no other way.

    The frame is given the size of the blocks that are coded anyway, so that the library writes them directly, and
    whatever the size, at the scale that was asked for.
    """
    header, record = work.header, work.record
    row0, row1, column0, _ = work.region
    columns, rows = header[MCU_COLUMNS], header[MCU_ROWS]
    for row in range(row0, row1):
        work.positions[row - row0] = row * columns + column0
    if header[SEQUENTIAL]:
        # Of a file that is cut off, all rows are asked for: it is bad whatever the region.
        kept = row1 if has_end(record, header[ENTROPY_AT]) else rows
        width, height = columns * header[MCU_WIDTH], kept * header[MCU_HEIGHT]
    else:  # other scans hold only the blocks that the image reaches into
        width, height = -(-header[WIDTH] // 8) * 8, -(-header[HEIGHT] // 8) * 8
    return _decode_as(work, _begin_jpeg(work, columns, rows, record.shape[0]), width, height, 0)


@njit(cache=True, nogil=True)
def _band(header: np.ndarray, region: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the columns and rows of MCUs, from and up to, of the whole intervals that hold a region."""
    row0, row1, column0, column1 = region
    columns, rows, interval = header[MCU_COLUMNS], header[MCU_ROWS], header[RESTART_INTERVAL]
    height = max(1, interval // columns)  # rows of an interval
    width = min(interval, columns)
    return (
        column0 // width * width,
        -(-column1 // width) * width,
        row0 // height * height,
        min(-(-row1 // height) * height, rows),
    )


@njit(cache=True, nogil=True)
def _decode_band(work: _Work) -> int:
    """Decode the intervals that hold a region as what they are, a smaller picture: nothing is out of place in it."""
    header = work.header
    first_column, last_column, first_row, last_row = _band(header, work.region)
    columns, interval = header[MCU_COLUMNS], header[RESTART_INTERVAL]
    width, height = last_column - first_column, last_row - first_row
    row0, row1, column0, _ = work.region
    for row in range(row0, row1):
        work.positions[row - row0] = (row - first_row) * width + column0 - first_column
    end = header[ENTROPY_AT]
    jpeg = _begin_jpeg(work, width, height, end)
    number = 0
    for row in range(first_row, last_row, max(1, interval // columns)):
        begin = (row * columns + first_column) // interval
        stop = begin + max(1, width // interval)
        end = _append(work, begin, stop, number, jpeg, end)
        if end < 0:
            return BAD
        number += stop - begin
    jpeg[end - 1] = EOI
    return _decode_as(work, jpeg[:end], width * header[MCU_WIDTH], height * header[MCU_HEIGHT], 0)


@njit(cache=True, nogil=True)
def _strip_rows(header: np.ndarray, region: tuple[int, int, int, int]) -> int:
    """Return how many restart intervals hold MCUs of a region."""
    row0, row1, column0, column1 = region
    columns, interval = header[MCU_COLUMNS], header[RESTART_INTERVAL]
    count = 0
    stop = 0  # behind those that are counted; rows may share one
    for row in range(row0, row1):
        first = max(stop, (row * columns + column0) // interval)
        stop = (row * columns + column1 - 1) // interval + 1
        count += stop - first
    return count


@njit(cache=True, nogil=True)
def _decode_strip(work: _Work) -> int:
    """Decode the intervals that hold a region one below the other, as they do not line up in the image."""
    header = work.header
    row0, row1, column0, column1 = work.region
    columns, interval = header[MCU_COLUMNS], header[RESTART_INTERVAL]
    mcu_width, mcu_height = header[MCU_WIDTH], header[MCU_HEIGHT]
    complete, rest = divmod(columns * header[MCU_ROWS], interval)  # the last interval may be a short one
    longest = MAX_SIDE // mcu_height
    data = end = header[ENTROPY_AT]
    jpeg = _begin_jpeg(work, interval, _strip_rows(header, work.region), data)
    decoded = waiting = 0  # rows of the strip: in the planes, and in the small JPEG
    stop = 0  # interval behind the last in the strip
    width = interval
    for row in range(row0, row1):
        mcu = row * columns + column0
        first = mcu // interval
        begin = max(first, stop)  # the row above may have brought the first one
        work.positions[row - row0] = (decoded + waiting - begin + first) * interval + mcu - first * interval
        stop = (row * columns + column1 - 1) // interval + 1
        while begin < stop:
            if waiting == longest or (begin == complete and waiting > 0):
                jpeg[end - 1] = EOI
                status = _decode_as(work, jpeg[:end], width * mcu_width, waiting * mcu_height, decoded)
                if status != OK:
                    return status
                end, decoded, waiting = data, decoded + waiting, 0
            if begin == complete:
                width, upto = rest, stop
            else:
                upto = min(stop, complete, begin + longest - waiting)
            end = _append(work, begin, upto, waiting, jpeg, end)
            if end < 0:
                return BAD
            waiting += upto - begin
            begin = upto
    jpeg[end - 1] = EOI
    return _decode_as(work, jpeg[:end], width * mcu_width, waiting * mcu_height, decoded)


@njit(cache=True, nogil=True)
def _begin_jpeg(work: _Work, columns: int, rows: int, size: int) -> np.ndarray:
    """Lay out planes of so many MCUs; return the room behind them, which begins with ``size`` bytes of the record."""
    planes_end = lay_out_planes(work.header, columns, rows, work.shift, work.layout)
    jpeg = work.scratch[planes_end : planes_end + work.record.shape[0]]
    _copy(work.record, 0, size, jpeg, 0)
    return jpeg


@njit(cache=True, nogil=True)
def _append(work: _Work, begin: int, stop: int, number: int, jpeg: np.ndarray, end: int) -> int:
    """Append intervals with their markers, numbered from ``number``; return the new end, -1 where the index lies."""
    record, starts = work.record, work.starts
    source = int(np.int64(starts[begin]))
    size = int(np.int64(starts[stop])) - source
    if source < work.header[ENTROPY_AT] or size < 0 or source + size > record.shape[0] or end + size > jpeg.shape[0]:
        return -1
    _copy(record, source, source + size, jpeg, end)
    marker = end
    for interval in range(begin, stop):
        behind = end + int(np.int64(starts[interval + 1])) - source
        if not marker + 2 <= behind <= end + size:
            return -1
        marker = behind
        jpeg[marker - 2] = 0xFF
        jpeg[marker - 1] = RST0 + (number & 7)
        number += 1
    return marker


@njit(cache=True, nogil=True)
def _decode_as(work: _Work, jpeg: np.ndarray, width: int, height: int, row: int) -> int:
    """Write a size, rounded up to whole MCUs, into the frame header and decode to an MCU row of the planes and on."""
    header = work.header
    width, height = min(width, MAX_SIDE), min(height, MAX_SIDE)  # as many MCUs
    at = header[FRAME_SIZE_AT]
    jpeg[at] = height >> 8
    jpeg[at + 1] = height & 0xFF
    jpeg[at + 2] = width >> 8
    jpeg[at + 3] = width & 0xFF
    return decode_planes(work.handle, jpeg, header, width, height, work.shift, work.scratch, work.layout, row)


@njit(cache=True, nogil=True)
def _copy(source: np.ndarray, begin: int, end: int, target: np.ndarray, at: int) -> None:
    """Copy bytes whose places have been checked."""
    _memcpy(target.ctypes.data + at, source.ctypes.data + begin, end - begin)
