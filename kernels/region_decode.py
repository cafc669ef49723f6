"""What a crop needs of a JPEG, decoded to planes in the memory of a thread."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from kernels.jpeg_header import (
    BAD,
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
    OK,
    PLANE_OFFSET,
    PLANE_STRIDE,
    SCRATCH_TOO_SMALL,
    STRIP_COLUMNS,
    WIDTH,
    read_header,
    scaled_size,
)
from kernels.planes import Window, reach, resample_bytes
from kernels.restart import decode_region, find_intervals, interval_count, region_bytes
from kernels.tiles import Strip, Tiles

_MAX_SHIFT = 3  # libjpeg-turbo decodes at 1/1, 1/2, 1/4 and 1/8 with vector instructions
_MAX_MCU_ROWS = 8192  # of the highest JPEG
_ALIGNMENT = 64

# The parts of the array of numbers that a thread works with. The first is how much scratch is needed, bytes.
_HEADER = 1
_LAYOUT = _HEADER + HEADER_FIELDS
_POSITIONS = _LAYOUT + LAYOUT_FIELDS
FACTS = _POSITIONS + _MAX_MCU_ROWS


@njit(cache=True, nogil=True)
def round_up(size: int) -> int:
    """Return bytes as whole lines of the cache."""
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


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


class Decoded(NamedTuple):
    """What was decoded for a crop, in the memory of a thread: see `strip_of` and `tiles_of`.

    Attributes:
        rows, columns: of the region, MCUs.
        width, height: samples of luma, from the region's top left, that are inside the image.
        planes_at: where the planes begin in scratch.
        rest_at: where the scratch begins that resampling needs.
        window: what is to be seen, in samples of luma from the region's top left.
    """

    rows: int
    columns: int
    width: int
    height: int
    planes_at: int
    rest_at: int
    window: Window


NOTHING = Decoded(0, 0, 0, 0, 0, 0, Window(0.0, 0.0, 0.0, 0.0, False, False, False))


@njit(cache=True, nogil=True, error_model="numpy")
def decode_sample(
    handle: int,
    record: np.ndarray,
    starts: np.ndarray,
    orientation: int,
    window: np.ndarray,
    flip: bool,
    resolution: int,
    facts: np.ndarray,
    scratch: np.ndarray,
    begin: int,
) -> tuple[int, Decoded]:
    """Decode what a crop needs of a JPEG into ``scratch``, from ``begin`` on.

    Other arguments, and the status, are those of `kernels.regions.load_sample`. There has to be room for resampling as
    well, wherever that is done: which samples need too much memory then depends on them alone.
    """
    header, layout, positions = facts[_HEADER:_LAYOUT], facts[_LAYOUT:_POSITIONS], facts[_POSITIONS:]
    status = read_header(record, header)
    if status != OK:
        return status, NOTHING
    left, top, right, bottom = _stored_window(window, orientation)
    left, right = left * header[WIDTH], right * header[WIDTH]
    top, bottom = top * header[HEIGHT], bottom * header[HEIGHT]
    if not (right > left and bottom > top):
        return BAD, NOTHING
    shift = _scale_shift(right - left, bottom - top, resolution)
    # From here on in samples of luma, at the scale of decoding.
    scale = 1.0 / (1 << shift)
    x, y, width, height = left * scale, top * scale, (right - left) * scale, (bottom - top) * scale
    unit_width, unit_height = header[MCU_WIDTH] >> shift, header[MCU_HEIGHT] >> shift
    column0, column1 = _units_reached(x, width, resolution, unit_width, header[MCU_COLUMNS])
    row0, row1 = _units_reached(y, height, resolution, unit_height, header[MCU_ROWS])
    rows, columns = row1 - row0, column1 - column0

    length, intervals = record.shape[0], interval_count(header)
    planes_at = begin
    planes_bytes = region_bytes(header, starts.shape[0], row0, row1, column0, column1, shift, length)
    if starts.shape[0] == 0 and intervals > 0:  # whether the intervals serve is found out later
        planes_at += round_up(4 * (intervals + 1))
        strip_bytes = region_bytes(header, intervals + 1, row0, row1, column0, column1, shift, length)
        planes_bytes = max(planes_bytes, strip_bytes)
    rest_at = planes_at + round_up(planes_bytes)
    side = max(columns * unit_width, rows * unit_height)
    facts[0] = rest_at + resample_bytes(side, resolution)
    if scratch.shape[0] < facts[0]:
        return SCRATCH_TOO_SMALL, NOTHING
    if planes_at > begin:
        found = scratch[begin:planes_at].view(np.uint32)
        starts = found[: find_intervals(record, header, found)]
    status = decode_region(
        handle, record, header, starts, row0, row1, column0, column1, shift, scratch[planes_at:rest_at], positions,
        layout,
    )  # fmt: skip
    turned = orientation >= 5
    mirrored_x = orientation in (6, 7) if turned else orientation in (2, 3)
    mirrored_y = orientation in (7, 8) if turned else orientation in (3, 4)
    return status, Decoded(
        rows,
        columns,
        min(columns * unit_width, scaled_size(header[WIDTH], shift) - column0 * unit_width),
        min(rows * unit_height, scaled_size(header[HEIGHT], shift) - row0 * unit_height),
        planes_at,
        rest_at,
        Window(x - column0 * unit_width, y - row0 * unit_height, width, height, turned, mirrored_x != flip, mirrored_y),
    )


@njit(cache=True, nogil=True)
def component_count(facts: np.ndarray) -> int:
    """Return how many components were decoded: 3 (Y, Cb, Cr) or 1 (gray)."""
    return int(facts[_HEADER + COMPONENTS])


@njit(cache=True, nogil=True)
def strip_of(component: int, decoded: Decoded, facts: np.ndarray, scratch: np.ndarray) -> Strip:
    """Return the samples of a component that were decoded."""
    layout = facts[_LAYOUT:_POSITIONS]
    return Strip(
        scratch[decoded.planes_at : decoded.rest_at][layout[PLANE_OFFSET + component] :],
        layout[PLANE_STRIDE + component],
        layout[BLOCK_WIDTH + component],
        layout[BLOCK_HEIGHT + component],
    )


@njit(cache=True, nogil=True)
def tiles_of(decoded: Decoded, facts: np.ndarray) -> Tiles:
    """Return where the tiles of the region lie that was decoded, in samples of luma."""
    positions = facts[_POSITIONS : _POSITIONS + decoded.rows]
    return Tiles(positions, decoded.columns, facts[_LAYOUT + STRIP_COLUMNS], decoded.width, decoded.height)
