"""From JPEG records to the planes of a batch of crops, for a device that resamples them: see kernels.device_regions.

Each sample goes the way of `kernels.regions.load_samples` up to the decoder. Then the rectangle that the filters reach
is copied out of the tiles: every component becomes one dense plane, a single tile to the device, and nothing else
crosses the bus. Threads that work on the same batch take their memory from a shared counter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.core.typing import signature

from kernels.device_regions import Plane
from kernels.jpeg_header import BAD, OK
from kernels.memory import fetch_add
from kernels.planes import Window
from kernels.region_decode import Decoded, component_count, round_up, strip_of, tiles_of
from kernels.regions import Sources, Status, decode_next
from kernels.tiles import Strip, Tiles, tiles_fit

_memcpy: Callable[..., int] = types.ExternalFunction(
    "memcpy", signature(types.uintp, types.uintp, types.uintp, types.uintp)
)

_BUFFER_FULL = int(Status.BUFFER_FULL)
_OFFSET, _STRIDE, _PER_STRIP = int(Plane.OFFSET), int(Plane.STRIDE), int(Plane.PER_STRIP)
_BLOCK_WIDTH, _BLOCK_HEIGHT = int(Plane.BLOCK_WIDTH), int(Plane.BLOCK_HEIGHT)
_WIDTH, _HEIGHT = int(Plane.WIDTH), int(Plane.HEIGHT)


class PlaneBuffer(NamedTuple):
    """Memory for the planes of a batch, and the tables that say where they lie in it.

    The tables are those of `kernels.device_regions.Regions`, whose ``positions`` are a single 0. Rows of samples that
    were not decoded stay as they are: where all is zero, the device reads nothing.

    Attributes:
        samples: uint8 (bytes,), contiguous.
        used: int64 (1,): bytes taken, shared by all threads; more than there are once a sample has found no room.
        first: the number of the first byte among all bytes of the batch, which may have several buffers.
        planes: int64 (n, 3, 8).
        windows: float64 (n, 3, 4).
        turns: bool (n, 3).
    """

    samples: np.ndarray
    used: np.ndarray
    first: int
    planes: np.ndarray
    windows: np.ndarray
    turns: np.ndarray


class _Part(NamedTuple):
    """A component as it was decoded, and the rectangle of it that the filter reaches; all in its own samples."""

    strip: Strip
    tiles: Tiles
    window: Window
    left: int
    top: int
    width: int
    height: int


@njit(cache=True, nogil=True, error_model="numpy")
def _reached(start: float, extent: float, size: int, shared: int, resolution: int) -> tuple[int, int]:
    """Return the first sample of an axis that the filter reaches, and how many it does, at least one.

    It reaches centers of pixels that are less than its support, the scale or at least one pixel, from the window; of
    two pixels that share a sample, upsampling reaches 1.5 from the center of the next pair.
    """
    support = (max(shared * extent / resolution, 1.0) + 1.5 * (shared - 1)) / shared
    begin = max(0, min(math.floor(start - support), size - 1))
    end = max(begin + 1, min(math.ceil(start + extent + support), size))
    return begin, end - begin


@njit(cache=True, nogil=True, error_model="numpy")
def _part(component: int, decoded: Decoded, facts: np.ndarray, scratch: np.ndarray, resolution: int) -> _Part:
    luma, strip = strip_of(0, decoded, facts, scratch), strip_of(component, decoded, facts, scratch)
    tiles, window = tiles_of(decoded, facts), decoded.window
    across, down = luma.block_width // strip.block_width, luma.block_height // strip.block_height
    own_tiles = Tiles(
        tiles.positions, tiles.columns, tiles.per_strip, -(-tiles.width // across), -(-tiles.height // down)
    )
    own_window = Window(
        window.x / across,
        window.y / down,
        window.width / across,
        window.height / down,
        window.transposed,
        window.mirror_x,
        window.mirror_y,
    )
    left, width = _reached(own_window.x, own_window.width, own_tiles.width, across, resolution)
    top, height = _reached(own_window.y, own_window.height, own_tiles.height, down, resolution)
    return _Part(strip, own_tiles, own_window, left, top, width, height)


@njit(cache=True, nogil=True, error_model="numpy")
def _copy_part(part: _Part, out: np.ndarray, place: int) -> None:
    """Copy the rectangle of a component to ``out`` from ``place`` on, row after row."""
    strip, tiles = part.strip, part.tiles
    right = part.left + part.width
    source, target = strip.samples.ctypes.data, out.ctypes.data
    for y in range(part.top, part.top + part.height):
        tile_row = y // strip.block_height
        skipped_rows = y - tile_row * strip.block_height
        x = part.left
        while x < right:
            column = x // strip.block_width
            tile = tiles.positions[tile_row] + column
            line = tile // tiles.per_strip
            slot = tile - line * tiles.per_strip
            skipped = x - column * strip.block_width
            length = min((tiles.per_strip - slot) * strip.block_width - skipped, right - x)
            begin = (line * strip.block_height + skipped_rows) * strip.stride + slot * strip.block_width + skipped
            _memcpy(target + place, source + begin, length)
            x += length
            place += length


@njit(cache=True, nogil=True, error_model="numpy")
def _keep_part(part: _Part, buffer: PlaneBuffer, sample: int, component: int, place: int) -> int:
    """Copy a component to the buffer, and fill in its rows of the tables; return the place behind it."""
    _copy_part(part, buffer.samples, place)
    plane, window = buffer.planes[sample, component], buffer.windows[sample, component]
    plane[_OFFSET] = buffer.first + place
    plane[_STRIDE] = plane[_BLOCK_WIDTH] = plane[_WIDTH] = part.width
    plane[_BLOCK_HEIGHT] = plane[_HEIGHT] = part.height
    plane[_PER_STRIP] = 1
    window[0], window[1] = part.window.x - part.left, part.window.y - part.top
    window[2], window[3] = part.window.width, part.window.height
    return place + part.width * part.height


@njit(cache=True, nogil=True, error_model="numpy")
def _keep(
    decoded: Decoded, facts: np.ndarray, scratch: np.ndarray, buffer: PlaneBuffer, sample: int, resolution: int
) -> int:
    """Copy what was decoded for a sample to the buffer, and fill in its rows of the tables.

    Returns:
        OK; BAD: the decoder left something else than it promises; BUFFER_FULL: ``facts[0]`` bytes are needed. Unless it
        is OK, the tables are as they were.
    """
    is_gray = component_count(facts) == 1
    luma = _part(0, decoded, facts, scratch, resolution)
    cb = luma if is_gray else _part(1, decoded, facts, scratch, resolution)
    cr = luma if is_gray else _part(2, decoded, facts, scratch, resolution)
    if not (tiles_fit(luma.strip, luma.tiles) and tiles_fit(cb.strip, cb.tiles) and tiles_fit(cr.strip, cr.tiles)):
        return BAD
    size = luma.width * luma.height
    if not is_gray:
        size += cb.width * cb.height + cr.width * cr.height
    facts[0] = round_up(size)
    place = fetch_add(buffer.used, 0, facts[0])
    if place + facts[0] > buffer.samples.shape[0]:
        return _BUFFER_FULL
    place = _keep_part(luma, buffer, sample, 0, place)
    if not is_gray:
        place = _keep_part(cb, buffer, sample, 1, place)
        _keep_part(cr, buffer, sample, 2, place)
    turns = buffer.turns[sample]
    turns[0], turns[1], turns[2] = decoded.window.transposed, decoded.window.mirror_x, decoded.window.mirror_y
    return OK


@njit(cache=True, nogil=True, error_model="numpy")
def decode_samples(
    counters: np.ndarray,
    again: int,
    statuses: np.ndarray,
    resolution: int,
    buffer: PlaneBuffer,
    sources: Sources,
    windows: np.ndarray,
    flips: np.ndarray,
    facts: np.ndarray,
    scratch: np.ndarray,
) -> int:
    """Decode samples of a batch until none is left to begin, or one has to be seen to by the caller.

    What is left in the tables fits, as `kernels.device_regions.regions_fit` asks: planes are copied to memory that was
    taken for them, with the very numbers that the tables get, and windows lie in the image as they were cut at it.

    Args:
        resolution: of the results.
        buffer: where the planes go. Threads may have different ones, of the same tables, for the same batch.
        sources: where the samples are.
        counters, again, statuses, windows, flips, facts, scratch: as in `kernels.regions.load_samples`.

    Returns:
        As `kernels.regions.load_samples`. A sample whose status is BUFFER_FULL needs ``facts[0]`` bytes, and can be
        begun again with another buffer.
    """
    while True:
        sample, decoded = decode_next(counters, again, statuses, resolution, sources, windows, flips, facts, scratch)
        again = -1
        if sample < 0:
            return -1
        if statuses[sample] == OK:
            statuses[sample] = _keep(decoded, facts, scratch, buffer, sample, resolution)
        if statuses[sample] != OK:
            return sample
        fetch_add(counters, 1, 1)
