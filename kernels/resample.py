"""Antialiased bilinear resizing of a window, on one core.

The filter is Pillow's (``Image.resize(box=...)`` with ``BILINEAR``): a triangle as wide as the scale, at least two
pixels, normalized over what lies inside the image. Both passes run along contiguous memory, so that they
vectorize: rows are summed into rows, the result is transposed, and columns, now rows, are summed in the same way. A few
rows at a time, while they are in the cache.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types

WEIGHT_BITS = 16  # weights are integers that add up to 2**16
KEPT_BITS = 7  # bits after the point between the passes; 8 + 7 + 16 is what an int32 can sum
_BLOCK = 16  # results of a pass that are transposed together


@njit(nogil=True)
def _triangle_weights(start: float, extent: float, count: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what each of ``count`` results takes from an axis: first index and taps (count,), weights (count, n).

    Rounding is carried from weight to weight, so that every row adds up to ``2**WEIGHT_BITS`` exactly.
    """
    scale = extent / count
    support = max(scale, 1.0)
    firsts = np.empty(count, np.int64)
    taps = np.empty(count, np.int64)
    weights = np.empty((count, 2 * math.ceil(support) + 1), np.int32)
    for i in range(count):
        center = start + (i + 0.5) * scale
        first = max(0, int(center - support + 0.5))
        last = min(size, int(center + support + 0.5))
        total = 0.0
        for j in range(first, last):
            total += max(0.0, 1.0 - abs(j + 0.5 - center) / support)
        sum_before = 0.0
        rounded_before = 0
        for j in range(first, last):
            sum_before += max(0.0, 1.0 - abs(j + 0.5 - center) / support)
            rounded = int(sum_before / total * (1 << WEIGHT_BITS) + 0.5)
            weights[i, j - first] = rounded - rounded_before
            rounded_before = rounded
        firsts[i] = first
        taps[i] = last - first
    return firsts, taps, weights


@njit(nogil=True)
def _sum_rows(
    rows: np.ndarray, first: int, taps: int, weights: np.ndarray, shift: int, sums: np.ndarray, out: np.ndarray
) -> None:
    """Write the weighted sum of ``taps`` rows, shifted right and rounded, to ``out``; ``sums`` is scratch."""
    half = np.int32(1 << (shift - 1))
    length = out.shape[0]
    upper = rows[first]
    upper_weight = weights[0]
    if taps == 1:
        for x in range(length):
            out[x] = (upper_weight * np.int32(upper[x]) + half) >> np.int32(shift)
        return
    lower = rows[first + 1]
    lower_weight = weights[1]
    if taps == 2:
        for x in range(length):
            total = upper_weight * np.int32(upper[x]) + lower_weight * np.int32(lower[x]) + half
            out[x] = np.int32(total) >> np.int32(shift)
        return
    for x in range(length):
        sums[x] = upper_weight * np.int32(upper[x]) + lower_weight * np.int32(lower[x]) + half
    for tap in range(2, taps - 1):
        row = rows[first + tap]
        weight = weights[tap]
        for x in range(length):
            sums[x] += weight * np.int32(row[x])
    row = rows[first + taps - 1]
    weight = weights[taps - 1]
    for x in range(length):
        out[x] = np.int32(sums[x] + weight * np.int32(row[x])) >> np.int32(shift)


@njit(nogil=True)
def _transpose_block(block: np.ndarray, turned: np.ndarray, column: int) -> None:
    """Write the rows of ``block`` as columns of ``turned``, from ``column`` on."""
    count = min(_BLOCK, turned.shape[1] - column)
    for x in range(block.shape[1]):
        if count == _BLOCK:
            for y in range(_BLOCK):  # a fixed count, which is unrolled
                turned[x, column + y] = block[y, x]
        else:
            for y in range(count):
                turned[x, column + y] = block[y, x]


@njit(
    types.void(
        types.Array(types.uint8, 3, "C", readonly=True),
        types.float64,
        types.float64,
        types.float64,
        types.float64,
        types.Array(types.uint8, 3, "A"),
    ),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def resize_window(pixels: np.ndarray, left: float, top: float, width: float, height: float, out: np.ndarray) -> None:
    """Resize a window of an image, as Pillow does, within one level.

    Pillow rounds to whole levels between its passes; here bits are kept, so the result is nearer to the exact one. Only
    pixels that the filter reaches are read. Compiled when this module is imported, so forked workers need not compile.

    Args:
        pixels: uint8 (H, W, 3), C-contiguous; may be read-only.
        left, top, width, height: the window in pixels, fractions allowed; inside the image and not empty.
        out: uint8 (rows, columns, 3) to fill, of any strides: a reversed or transposed view flips or turns the result.
    """
    rows, columns = out.shape[0], out.shape[1]
    y_firsts, y_taps, y_weights = _triangle_weights(top, height, rows, pixels.shape[0])
    x_firsts, x_taps, x_weights = _triangle_weights(left, width, columns, pixels.shape[1])
    begin, end = x_firsts[0], x_firsts[-1] + x_taps[-1]
    lines = pixels.reshape(pixels.shape[0], pixels.shape[1] * 3)[:, 3 * begin : 3 * end]
    length = 3 * (end - begin)
    sums = np.empty(max(length, 3 * rows), np.int32)

    block = np.empty((_BLOCK, length), np.uint16)
    turned = np.empty((length, rows), np.uint16)
    shift = WEIGHT_BITS - KEPT_BITS
    for first in range(0, rows, _BLOCK):
        for y in range(first, min(first + _BLOCK, rows)):
            _sum_rows(lines, y_firsts[y], y_taps[y], y_weights[y], shift, sums, block[y - first])
        _transpose_block(block, turned, first)

    sources = turned.reshape(end - begin, 3 * rows)  # the three channels of a column, one after another
    results = np.empty((_BLOCK, 3 * rows), np.uint8)
    planes = results.reshape(_BLOCK, 3, rows)
    shift = WEIGHT_BITS + KEPT_BITS
    for first in range(0, columns, _BLOCK):
        count = min(_BLOCK, columns - first)
        for x in range(first, first + count):
            _sum_rows(sources, x_firsts[x] - begin, x_taps[x], x_weights[x], shift, sums, results[x - first])
        for y in range(rows):
            for x in range(count):
                for channel in range(3):
                    out[y, first + x, channel] = planes[x, channel, y]
