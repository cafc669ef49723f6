"""Crop windows as DALI's operators take them, for whole batches at once: which rectangle of the stored image to decode,
which part of it to resize and in which direction, and how to make the result's border Pillow's.

Pillow's boxed resize looks beyond the box as far as the filter reaches; at the image's edge it leaves the missing
pixels out and weights the present ones up. DALI's looks beyond its region too, but repeats the edge pixel. Where that
matters, when shrinking, black is put around the decoded rectangle, which adds nothing to the sums, and the one line of
the result that reaches over the edge is multiplied by its ``gain``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numba import njit

# Borders are left to DALI where that cannot move the image's pixels by more than this on average (of 255).
_NEGLIGIBLE = 0.25

# By EXIF orientation: whether the stored image's rows and columns run against those of the upright image that they
# become. From orientation 5 on, rows become columns.
_REVERSED = np.array(
    [[0, 0], [0, 0], [0, 1], [1, 1], [1, 0], [0, 0], [1, 0], [1, 1], [0, 1]],
    np.bool_,
)
FIRST_TRANSPOSED = 5  # orientation


@dataclass(frozen=True, eq=False)
class Geometry:
    """One entry for each sample. Pairs are (vertical, horizontal), in pixels of the image as it is stored.

    Attributes:
        anchor: int32 (n, 2), first row and column to decode.
        shape: int32 (n, 2), rows and columns to decode.
        padded: bool (n,), whether black is needed around the decoded rectangle.
        padded_anchor: int32 (n, 2), first row and column of the padded rectangle within the decoded one, 0 or less.
        padded_shape: int32 (n, 2), its rows and columns.
        region_start, region_end: float32 (n, 2), the window within the (padded) rectangle; the start is behind the end
            where the result is mirrored.
        size: float32 (n, 2), of the result.
        transposed: bool (n,), whether the result's rows are the final image's columns.
        gains: float32 (n, 4), for the first row, last row, first column and last column of the final image.
    """

    anchor: np.ndarray
    shape: np.ndarray
    padded: np.ndarray
    padded_anchor: np.ndarray
    padded_shape: np.ndarray
    region_start: np.ndarray
    region_end: np.ndarray
    size: np.ndarray
    transposed: np.ndarray
    gains: np.ndarray

    def row(self, position: int) -> Geometry:
        """Return the geometry of one sample, as a batch of one."""
        return Geometry(*(getattr(self, field.name)[position : position + 1] for field in fields(self)))


def lay_out(
    windows: np.ndarray,
    flips: np.ndarray,
    widths: np.ndarray,
    heights: np.ndarray,
    orientations: np.ndarray,
    resolution: int,
) -> Geometry:
    """Turn windows of upright images into what DALI needs.

    Args:
        windows: float64 (n, 4): left, top, width, height in fractions of the upright image.
        flips: bool (n,), mirror the result horizontally.
        widths, heights: int32 (n,), of the upright images, pixels.
        orientations: uint8 (n,), EXIF orientations 1 to 8.
        resolution: side of the results, pixels.
    """
    count = len(windows)
    pairs = (count, 2)
    geometry = Geometry(
        anchor=np.empty(pairs, np.int32),
        shape=np.empty(pairs, np.int32),
        padded=np.empty(count, np.bool_),
        padded_anchor=np.empty(pairs, np.int32),
        padded_shape=np.empty(pairs, np.int32),
        region_start=np.empty(pairs, np.float32),
        region_end=np.empty(pairs, np.float32),
        size=np.full(pairs, resolution, np.float32),
        transposed=orientations >= FIRST_TRANSPOSED,
        gains=np.empty((count, 4), np.float32),
    )
    _fill_borders(windows, flips, widths, heights, resolution, geometry.padded, geometry.gains)
    _fill_rectangles(
        windows,
        flips,
        widths,
        heights,
        orientations,
        resolution,
        geometry.padded,
        geometry.anchor,
        geometry.shape,
        geometry.padded_anchor,
        geometry.padded_shape,
        geometry.region_start,
        geometry.region_end,
    )
    return geometry


@njit(cache=True, nogil=True)
def _fill_rectangles(
    windows: np.ndarray,
    flips: np.ndarray,
    widths: np.ndarray,
    heights: np.ndarray,
    orientations: np.ndarray,
    resolution: int,
    padded: np.ndarray,
    anchor: np.ndarray,
    shape: np.ndarray,
    padded_anchor: np.ndarray,
    padded_shape: np.ndarray,
    region_start: np.ndarray,
    region_end: np.ndarray,
) -> None:
    for row in range(len(windows)):
        orientation = orientations[row]
        for axis in range(2):  # of the stored image
            upright = 1 - axis if orientation >= FIRST_TRANSPOSED else axis
            side = widths[row] if upright else heights[row]
            start = windows[row, 1 - upright] * side
            extent = windows[row, 3 - upright] * side
            is_reversed = _REVERSED[orientation, axis]
            if is_reversed:
                start = side - start - extent
            scale = extent / resolution
            # Of the outermost filters beyond the window, to pixel centers; a bit for rounding.
            reach = max(1.0, scale) - scale / 2 - 0.5 + 0.01
            low = math.floor(start - reach)
            high = math.ceil(start + extent + reach)
            first = max(low, 0)
            last = min(high, side)
            anchor[row, axis] = first
            shape[row, axis] = last - first
            # An enlarged axis needs no black: repeating the edge pixel and leaving out what is missing are the same.
            if not (padded[row] and extent > resolution):
                low, high = first, last
            padded_anchor[row, axis] = low - first
            padded_shape[row, axis] = high - low
            if is_reversed ^ (flips[row] and upright == 1):
                region_start[row, axis] = start + extent - low
                region_end[row, axis] = start - low
            else:
                region_start[row, axis] = start - low
                region_end[row, axis] = start + extent - low


@njit(cache=True, nogil=True)
def _fill_borders(
    windows: np.ndarray,
    flips: np.ndarray,
    widths: np.ndarray,
    heights: np.ndarray,
    resolution: int,
    padded: np.ndarray,
    gains: np.ndarray,
) -> None:
    missing = np.zeros(4)  # shares of the weight of the first row, last row, first column and last column
    for row in range(len(windows)):
        for axis in range(2):
            side = widths[row] if axis else heights[row]
            start = windows[row, 1 - axis] * side
            extent = windows[row, 3 - axis] * side
            missing[2 * axis : 2 * axis + 2] = 0
            if extent > resolution > 1:  # a single line may reach over both edges: left to DALI
                scale = extent / resolution
                before = 2 * axis + (axis == 1 and flips[row])
                after = 4 * axis + 1 - before
                missing[before] = _missing(start + scale / 2, scale)
                missing[after] = _missing(side - start - extent + scale / 2, scale)
        # What DALI adds to a line is at most its missing share of white.
        padded[row] = 255 * missing.sum() > _NEGLIGIBLE * resolution
        for line in range(4):
            gains[row, line] = 1 / (1 - missing[line]) if padded[row] else 1


@njit(cache=True, nogil=True)
def _missing(center: float, scale: float) -> float:
    """Return the share of a triangle filter's weight that falls on pixels below 0.

    Args:
        center: where the filter stands, pixels (pixel k has its center at k + 1/2).
        scale: half the filter's width, pixels.
    """
    below = (center - 0.5) % 1.0  # distance to the next pixel center below
    return _weights(center + 0.5, scale) / (_weights(below, scale) + _weights(1 - below, scale))


@njit(cache=True, nogil=True)
def _weights(distance: float, scale: float) -> float:
    """Return the sum of max(0, 1 - d / scale) over d = distance, distance + 1, ..."""
    count = max(0.0, math.ceil(scale - distance))
    return count - (count * distance + count * (count - 1) / 2) / scale
