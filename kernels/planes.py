"""Antialiased resampling of a JPEG region's planes, from the decoder's tiles straight to the output size.

The filter is Pillow's bilinear one (a triangle as wide as the scale, at least two samples, normalized over what lies
inside the image). Chroma is taken at its own resolution, with the weights that libjpeg's upsampling and the filter
come to together. Everything is counted in words of 8.8 fixed point, with weights of 16 bits, so that a tap is one high
multiply and one addition for as many samples as a register holds. A block of rows is gathered from the tiles,
transposed, summed along what were its rows and transposed back, all in the innermost cache; then rows are summed into
rows and converted to RGB at once. Mirroring costs nothing (the weights change places), and for a result that is
transposed the first transposition is left out.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numba import njit

from kernels.color import ycbcr_to_rgb
from kernels.tiles import Strip, Tiles, gather_tiles, tiles_fit
from kernels.triangle import Axis, nearest_axis, triangle_axis, upsampled_axis
from kernels.vectors import BYTE_TILE, LANES, WORD_TILE, sum_words, transpose_bytes, transpose_words

_HALF_LEVEL = 128
_MOST_LOST = 63  # what is added for rounding down; twice this, half a level and level 255 still fit in a word
_TOLERANCE = 1e-3  # by how many samples a window may leave the image, as rounding makes it do


class Status(IntEnum):
    """What came of a call; compiled code raises nothing."""

    OK = 0
    BAD = 1  # the tiles are not within the samples, or the window is empty or not within the image
    SCRATCH_TOO_SMALL = 3


OK, BAD, SCRATCH_TOO_SMALL = int(Status.OK), int(Status.BAD), int(Status.SCRATCH_TOO_SMALL)


class Window(NamedTuple):
    """What is to be seen of a region, in samples of its first component, and how it is to be turned.

    Attributes:
        x, y, width, height: fractions allowed; inside the image and not empty.
        transposed: turn the result over its main diagonal (before mirroring).
        mirror_x, mirror_y: reverse the result's rows (left to right), columns (top to bottom).
    """

    x: float
    y: float
    width: float
    height: float
    transposed: bool
    mirror_x: bool
    mirror_y: bool


class _Scratch(NamedTuple):
    """What is between the samples and the result."""

    band: np.ndarray  # uint8: a block of 32 rows, gathered; rows have 31 bytes to spare
    turned: np.ndarray  # uint16: the block's columns, 32 words each
    summed: np.ndarray  # uint16: the result's columns, 32 words each
    middle: np.ndarray  # uint16: the result's columns along all rows, for each component
    rows: np.ndarray  # uint16 (3, line): a row of the result
    firsts: np.ndarray  # int64 (4, resolution): of the axes of luma and of chroma, across and down
    weights: np.ndarray  # uint16 (4, enough)


@njit(cache=True, nogil=True)
def _round_up(length: int) -> int:
    return (length + LANES - 1) // LANES * LANES


@njit(cache=True, nogil=True)
def _word_counts(side: int, resolution: int) -> tuple[int, int, int, int, int]:
    """Return the lengths of the five uint16 parts of scratch."""
    length, line = _round_up(side), _round_up(resolution)
    most_weights = 2 * side + 3 * resolution  # of an axis; the taps are twice the scale, rounded up
    return LANES * length, LANES * line, 3 * length * line, 3 * line, 4 * most_weights


@njit(cache=True, nogil=True)
def resample_bytes(side: int, resolution: int) -> int:
    """Return the bytes of scratch that resampling a region needs.

    Args:
        side: the region's longer side in samples of its first component, whole tiles.
        resolution: the side of the output.
    """
    words = _word_counts(side, resolution)
    return 4 * 8 * _round_up(resolution) + 2 * sum(words) + LANES * (_round_up(side) + LANES)


@njit(cache=True, nogil=True)
def _divide(memory: np.ndarray, side: int, resolution: int) -> _Scratch:
    """Divide at least `resample_bytes` of memory, aligned to 8."""
    counts = _word_counts(side, resolution)
    begin = 4 * 8 * _round_up(resolution)
    end = begin + 2 * sum(counts)
    words = memory[begin:end].view(np.uint16)
    summed = counts[0]
    middle = summed + counts[1]
    rows = middle + counts[2]
    weights = rows + counts[3]
    return _Scratch(
        memory[end : end + LANES * (_round_up(side) + LANES)],
        words[:summed],
        words[summed:middle],
        words[middle:rows],
        words[rows:weights].reshape(3, -1),
        memory[: 4 * 8 * resolution].view(np.int64).reshape(4, -1),
        words[weights:].reshape(4, -1),
    )


@njit(cache=True, nogil=True)
def _rounding(axis: Axis) -> int:
    """Return what products that are rounded down lose on average, in all."""
    return min(axis.taps // 2, _MOST_LOST)


@njit(cache=True, nogil=True, error_model="numpy")
def _turn_block(strip: Strip, tiles: Tiles, across: Axis, begin: int, end: int, scratch: _Scratch) -> int:
    """Write rows ``begin`` to ``end`` (at most 32) as columns of ``scratch.turned``; return the first row's number."""
    first, last = across.begin // strip.block_width, (across.end - 1) // strip.block_width + 1
    length = _round_up((last - first) * strip.block_width)
    stride = length + LANES
    gather_tiles(strip, tiles, (first, last), (begin, end), scratch.band, stride)
    for y in range(0, end - begin, BYTE_TILE):
        for x in range(0, length, LANES):
            transpose_bytes(scratch.band, y * stride + x, stride, scratch.turned, x * LANES + y, LANES)
    return first * strip.block_width


@njit(cache=True, nogil=True, error_model="numpy")
def _take_block(strip: Strip, tiles: Tiles, across: Axis, begin: int, end: int, scratch: _Scratch) -> int:
    """Write columns ``begin`` to ``end`` (at most 32) to ``scratch.turned``; return the first row's number."""
    first, last = begin // strip.block_width, (end - 1) // strip.block_width + 1
    skipped = begin - first * strip.block_width
    stride = _round_up((last - first) * strip.block_width) + LANES
    step = scratch.band.shape[0] // stride
    for start in range(across.begin, across.end, step):
        stop = min(start + step, across.end)
        gather_tiles(strip, tiles, (first, last), (start, stop), scratch.band, stride)
        for y in range(stop - start):
            row = scratch.band[y * stride + skipped : y * stride + skipped + LANES]
            out = scratch.turned[(start + y - across.begin) * LANES : (start + y - across.begin + 1) * LANES]
            for x in range(LANES):
                out[x] = np.uint16(row[x]) << np.uint16(8)
    return across.begin


@njit(cache=True, nogil=True, error_model="numpy")
def _sum_across(
    strip: Strip, tiles: Tiles, transposed: bool, across: Axis, down: Axis, middle: np.ndarray, scratch: _Scratch
) -> None:
    """Resample along the result's rows: fill ``middle``, the rows that ``down`` reaches, in units of 1/256 level."""
    resolution = across.firsts.shape[0]
    line = _round_up(resolution)
    turned, summed = scratch.turned, scratch.summed
    taps, lost = across.taps, _rounding(across)
    for begin in range(down.begin, down.end, LANES):
        end = min(begin + LANES, down.end)
        if transposed:
            origin = _take_block(strip, tiles, across, begin, end, scratch)
        else:
            origin = _turn_block(strip, tiles, across, begin, end, scratch)
        for x in range(resolution):
            place = (across.firsts[x] - origin) * LANES
            sum_words(turned, place, LANES, across.weights, x * taps, taps, lost, summed, x * LANES)
        place = (begin - down.begin) * line
        for x in range(0, resolution, WORD_TILE):
            transpose_words(summed, x * LANES, LANES, middle, place + x, line)


@njit(cache=True, nogil=True, error_model="numpy")
def _sum_down(down: Axis, y: int, middle: np.ndarray, more: int, out: np.ndarray) -> None:
    """Write row ``y`` of the result, plus ``more``, in units of 1/256 level; a row is as long as ``out`` (line,)."""
    line = out.shape[0]
    start = _rounding(down) + more
    place = (down.firsts[y] - down.begin) * line
    for x in range(0, line, LANES):
        sum_words(middle, place + x, line, down.weights, y * down.taps, down.taps, start, out, x)


@njit(cache=True, nogil=True, error_model="numpy")
def _inside(window: Window, width: int, height: int) -> bool:
    """Tell whether a window is neither empty nor outside (false for NaN)."""
    return (
        window.width > 0
        and window.height > 0
        and -_TOLERANCE <= window.x <= width - window.width + _TOLERANCE
        and -_TOLERANCE <= window.y <= height - window.height + _TOLERANCE
    )


@njit(cache=True, nogil=True)
def _longer_side(strip: Strip, tiles: Tiles) -> int:
    return max(tiles.columns * strip.block_width, tiles.positions.shape[0] * strip.block_height)


@njit(cache=True, nogil=True, error_model="numpy")
def _axes(tiles: Tiles, window: Window, scratch: _Scratch) -> tuple[Axis, Axis]:
    """Return the result's axes, across and down."""
    firsts, weights = scratch.firsts, scratch.weights
    if window.transposed:
        return (
            triangle_axis(window.y, window.height, tiles.height, window.mirror_x, firsts[0], weights[0]),
            triangle_axis(window.x, window.width, tiles.width, window.mirror_y, firsts[1], weights[1]),
        )
    return (
        triangle_axis(window.x, window.width, tiles.width, window.mirror_x, firsts[0], weights[0]),
        triangle_axis(window.y, window.height, tiles.height, window.mirror_y, firsts[1], weights[1]),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def resample_plane(strip: Strip, tiles: Tiles, window: Window, out: np.ndarray, memory: np.ndarray) -> int:
    """Resample a window of one component as Pillow resizes that plane.

    The result is within one level of Pillow's for reductions up to 16; beyond 60, what rounding loses adds up.

    Args:
        strip: the component; ``tiles`` and ``window`` are in its samples.
        out: uint8 (resolution, resolution) to fill, C-contiguous.
        memory: uint8, scratch of at least `resample_bytes`, aligned to 8.

    Returns:
        OK, BAD or SCRATCH_TOO_SMALL; unless it is OK, nothing was written to ``out``.
    """
    resolution = out.shape[0]
    if resolution < 1 or out.shape[1] != resolution:
        return BAD
    if not (tiles_fit(strip, tiles) and _inside(window, tiles.width, tiles.height)):
        return BAD
    side = _longer_side(strip, tiles)
    if memory.shape[0] < resample_bytes(side, resolution):
        return SCRATCH_TOO_SMALL
    scratch = _divide(memory, side, resolution)
    across, down = _axes(tiles, window, scratch)
    _sum_across(strip, tiles, window.transposed, across, down, scratch.middle, scratch)
    row = scratch.rows[0]
    for y in range(resolution):
        _sum_down(down, y, scratch.middle, _HALF_LEVEL, row)
        out_row = out[y]
        for x in range(resolution):
            out_row[x] = row[x] >> np.uint16(8)
    return OK


@njit(cache=True, nogil=True, error_model="numpy")
def resample_gray_region(luma: Strip, tiles: Tiles, window: Window, out: np.ndarray, memory: np.ndarray) -> int:
    """Resample a window of a region without color to RGB; arguments and status as those of `resample_region`."""
    if out.shape[0] != 3:
        return BAD
    status = resample_plane(luma, tiles, window, out[0], memory)
    if status == OK:
        out[1], out[2] = out[0], out[0]
    return status


@njit(cache=True, nogil=True)
def reach(extent: float, resolution: int) -> int:
    """Return how far beyond a window `resample_region` reads, in samples of luma; a region needs that margin."""
    return math.ceil(max(extent / resolution, 1.0)) + 2


@njit(cache=True, nogil=True, error_model="numpy")
def _chroma_axes(
    across: Axis, down: Axis, halves: tuple[bool, bool], tiles: Tiles, transposed: bool, scratch: _Scratch
) -> tuple[Axis, Axis]:
    """Return the axes of chroma: those of luma, or what takes from half the samples in x and in y."""
    firsts, weights = scratch.firsts, scratch.weights
    half_across, half_down = halves
    width, height = tiles.width, tiles.height
    if transposed:
        half_across, half_down = half_down, half_across
        width, height = height, width
    if half_across:
        across = upsampled_axis(across, width, firsts[2], weights[2])
    if half_down:
        down = upsampled_axis(down, height, firsts[3], weights[3])
    return across, down


@njit(cache=True, nogil=True, error_model="numpy")
def resample_region(
    luma: Strip, cb: Strip, cr: Strip, tiles: Tiles, window: Window, out: np.ndarray, memory: np.ndarray
) -> int:
    """Resample a window of a YCbCr region to RGB, as Pillow decodes and resizes it.

    It is within 0.75 level of the exact result (each plane upsampled, filtered and converted without rounding).
    Pillow itself rounds, and cuts colors off at 0 and 255, before it filters.

    Args:
        luma, cb, cr: the components; the tiles of the last two are alike, and as large as those of the first or half
            as large, in width and in height.
        tiles, window: in samples of luma.
        out: uint8 (3, resolution, resolution) to fill, C-contiguous.
        memory: uint8, scratch of at least `resample_bytes`, aligned to 8.

    Returns:
        OK, BAD or SCRATCH_TOO_SMALL; unless it is OK, nothing was written to ``out``.
    """
    resolution = out.shape[1]
    if resolution < 1 or out.shape[0] != 3 or out.shape[2] != resolution:
        return BAD
    if not (tiles_fit(luma, tiles) and _inside(window, tiles.width, tiles.height)):
        return BAD
    halves = 2 * cb.block_width == luma.block_width, 2 * cb.block_height == luma.block_height
    width_known = halves[0] or cb.block_width == luma.block_width
    height_known = halves[1] or cb.block_height == luma.block_height
    alike = cr.block_width == cb.block_width and cr.block_height == cb.block_height
    if not (width_known and height_known and alike):
        return BAD
    chroma_tiles = Tiles(
        tiles.positions,
        tiles.columns,
        tiles.per_strip,
        (tiles.width + 1) // 2 if halves[0] else tiles.width,
        (tiles.height + 1) // 2 if halves[1] else tiles.height,
    )
    if not (tiles_fit(cb, chroma_tiles) and tiles_fit(cr, chroma_tiles)):
        return BAD
    side = _longer_side(luma, tiles)
    if memory.shape[0] < resample_bytes(side, resolution):
        return SCRATCH_TOO_SMALL
    scratch = _divide(memory, side, resolution)
    across, down = _axes(tiles, window, scratch)
    chroma_across, chroma_down = _chroma_axes(across, down, halves, chroma_tiles, window.transposed, scratch)

    line = _round_up(resolution)
    cb_place = _round_up(down.end - down.begin) * line
    cr_place = cb_place + _round_up(chroma_down.end - chroma_down.begin) * line
    luma_middle = scratch.middle
    cb_middle, cr_middle = scratch.middle[cb_place:], scratch.middle[cr_place:]
    _sum_across(luma, tiles, window.transposed, across, down, luma_middle, scratch)
    _sum_across(cb, chroma_tiles, window.transposed, chroma_across, chroma_down, cb_middle, scratch)
    _sum_across(cr, chroma_tiles, window.transposed, chroma_across, chroma_down, cr_middle, scratch)

    luma_row, cb_row, cr_row = scratch.rows[0], scratch.rows[1], scratch.rows[2]
    for y in range(resolution):
        _sum_down(down, y, luma_middle, 0, luma_row)
        _sum_down(chroma_down, y, cb_middle, 0, cb_row)
        _sum_down(chroma_down, y, cr_middle, 0, cr_row)
        ycbcr_to_rgb(luma_row, cb_row, cr_row, out[0, y], out[1, y], out[2, y])
    return OK


@njit(cache=True, nogil=True, error_model="numpy")
def nearest_plane(plane: np.ndarray, window: Window, out: np.ndarray, memory: np.ndarray) -> int:
    """Resample a window of a plane to the nearest samples (for masks), exactly as Pillow does.

    Args:
        plane: uint8 (height, width), C-contiguous.
        window: in samples of the plane.
        out: uint8 (resolution, resolution) to fill, C-contiguous.
        memory: uint8, scratch of at least 16 bytes for each of resolution, aligned to 8.

    Returns:
        OK, BAD or SCRATCH_TOO_SMALL; unless it is OK, nothing was written to ``out``.
    """
    height, width = plane.shape
    resolution = out.shape[0]
    if resolution < 1 or out.shape[1] != resolution or not _inside(window, width, height):
        return BAD
    if memory.shape[0] < 16 * resolution:
        return SCRATCH_TOO_SMALL
    places = memory[: 16 * resolution].view(np.int64)
    across, down = places[:resolution], places[resolution:]
    if window.transposed:
        nearest_axis(window.y, window.height, height, window.mirror_x, across)
        nearest_axis(window.x, window.width, width, window.mirror_y, down)
    else:
        nearest_axis(window.x, window.width, width, window.mirror_x, across)
        nearest_axis(window.y, window.height, height, window.mirror_y, down)
    for y in range(resolution):
        for x in range(resolution):
            out[y, x] = plane[across[x], down[y]] if window.transposed else plane[down[y], across[x]]
    return OK
