"""The tiles that a region of a JPEG is decoded to, and their way into rows of samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from kernels.vectors import LANES, copy_lanes


class Strip(NamedTuple):
    """A component's samples as they were decoded: a strip of tiles, ``Tiles.per_strip`` wide.

    Attributes:
        samples: uint8 (n,); rows of the strip, one after another. With 32 bytes to spare at the end, copies are faster.
        stride: bytes from row to row.
        block_width, block_height: samples of the component in a tile (an MCU), at the scale of decoding.
    """

    samples: np.ndarray
    stride: int
    block_width: int
    block_height: int


class Tiles(NamedTuple):
    """Where a region's tiles lie in the strips, and how much of the region is image.

    Attributes:
        positions: int64 (rows,); the number of each row's first tile. The others follow it; tile number q lies in row
            ``q // per_strip`` and column ``q % per_strip`` of the strip.
        columns: tiles in a row of the region.
        per_strip: tiles in a row of the strip.
        width, height: samples of the first component, from the region's top left, that are inside the image.
    """

    positions: np.ndarray
    columns: int
    per_strip: int
    width: int
    height: int


@njit(cache=True, nogil=True, error_model="numpy")
def tiles_fit(strip: Strip, tiles: Tiles) -> bool:
    """Tell whether all tiles lie within the strip's samples, and the image's part of the region within the tiles."""
    if min(strip.block_width, strip.block_height, tiles.per_strip, tiles.columns) < 1:
        return False
    if not tiles.per_strip * strip.block_width <= strip.stride <= strip.samples.shape[0]:
        return False
    held = strip.samples.shape[0] // (strip.stride * strip.block_height) * tiles.per_strip
    for position in tiles.positions:
        if position < 0 or position > held - tiles.columns:
            return False
    width, height = tiles.columns * strip.block_width, tiles.positions.shape[0] * strip.block_height
    return 1 <= tiles.width <= width and 1 <= tiles.height <= height


@njit(cache=True, nogil=True, error_model="numpy")
def gather_tiles(
    strip: Strip, tiles: Tiles, columns: tuple[int, int], rows: tuple[int, int], band: np.ndarray, stride: int
) -> None:
    """Copy rows of samples, in a range of columns of tiles, to rows of ``band``; these have 31 bytes to spare."""
    row_bytes = strip.stride * strip.block_height
    y = rows[0]
    while y < rows[1]:
        tile_row = y // strip.block_height
        skipped = y - tile_row * strip.block_height
        count = min(strip.block_height - skipped, rows[1] - y)
        column = columns[0]
        while column < columns[1]:
            tile = tiles.positions[tile_row] + column
            line = tile // tiles.per_strip
            slot = tile - line * tiles.per_strip
            run = min(tiles.per_strip - slot, columns[1] - column)
            length = run * strip.block_width
            place = line * row_bytes + skipped * strip.stride + slot * strip.block_width
            index = (y - rows[0]) * stride + (column - columns[0]) * strip.block_width
            if place + (count - 1) * strip.stride + length + LANES <= strip.samples.shape[0]:
                for _ in range(count):
                    copy_lanes(strip.samples, place, band, index, length)
                    place += strip.stride
                    index += stride
            else:
                for _ in range(count):
                    band[index : index + length] = strip.samples[place : place + length]
                    place += strip.stride
                    index += stride
            column += run
        y += count
