"""What Pillow's filters take from an axis: the antialiased triangle (``BILINEAR``), and the nearest sample."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

_ONE = 1 << 16  # the sum of an output's weights


class Axis(NamedTuple):
    """What each output takes from an axis: ``taps`` samples from a first on. All lie in [begin, end)."""

    firsts: np.ndarray
    weights: np.ndarray
    taps: int
    begin: int
    end: int


@njit(cache=True, nogil=True, error_model="numpy")
def triangle_axis(
    start: float, extent: float, size: int, mirrored: bool, firsts: np.ndarray, weights: np.ndarray
) -> Axis:
    """Compute what each output takes from an axis of ``size`` samples; fill ``firsts`` (outputs,) and ``weights``.

    Rounding is carried from weight to weight, so that an output's weights add up to one (but for a weight of one
    itself, which is 2**-16 short). Taps beyond those of Pillow have no weight.
    """
    count = firsts.shape[0]
    scale = extent / count
    support = max(scale, 1.0)
    slope = 1.0 / support
    taps = min(math.ceil(2 * support), size)
    sign, offset = (-1, count - 1) if mirrored else (1, 0)
    if taps == 2 and scale <= 1:  # the same, in closed form
        for i in range(count):
            place = min(max(start + (i + 0.5) * scale - 0.5, 0.0), size - 1.0)
            first = min(int(place), size - 2)
            weight = int((place - first) * _ONE + 0.5)
            row = sign * i + offset
            firsts[row] = first
            weights[2 * row] = min(_ONE - weight, _ONE - 1)
            weights[2 * row + 1] = min(weight, _ONE - 1)
    else:
        for i in range(count):
            center = start + (i + 0.5) * scale
            first = min(max(0, int(center - support + 0.5)), size - taps)
            distance = first + 0.5 - center
            total = 0.0
            for tap in range(taps):
                total += max(0.0, 1.0 - abs(distance + tap) * slope)
            unit = _ONE / total
            row = sign * i + offset
            firsts[row] = first
            sum_before = 0.0
            rounded_before = 0
            for tap in range(taps):
                sum_before += max(0.0, 1.0 - abs(distance + tap) * slope)
                rounded = int(sum_before * unit + 0.5)
                weights[row * taps + tap] = min(rounded - rounded_before, _ONE - 1)
                rounded_before = rounded
    begin, end = min(firsts[0], firsts[-1]), max(firsts[0], firsts[-1]) + taps
    return Axis(firsts, weights, taps, begin, end)


@njit(cache=True, nogil=True, error_model="numpy")
def upsampled_axis(axis: Axis, size: int, firsts: np.ndarray, weights: np.ndarray) -> Axis:
    """Compute what outputs take from an axis of half the samples, as if these had been upsampled before.

    Upsampled as libjpeg does it ("fancy"): three quarters of the nearer sample and one of the next, edges repeated.

    Args:
        axis: what they take from the samples upsampled.
        size: how many samples there are.
        firsts, weights: as those of `triangle_axis`.
    """
    taps = min(axis.taps // 2 + 2, size)
    for i in range(firsts.shape[0]):
        sample = axis.firsts[i]
        end = sample + axis.taps
        offset = i * axis.taps - sample
        first = min(max(0, (sample - 1) >> 1), size - taps)
        whole = np.int64(0)  # the weight of what is upsampled from samples up to this one alone
        before = np.int64(0)
        for tap in range(taps):
            twin = 2 * (first + tap)  # the first of the two upsampled samples that lie in this one
            while sample < end and sample <= twin:
                whole += np.int64(axis.weights[offset + sample])
                sample += 1
            second = np.int64(axis.weights[offset + twin + 1]) if sample <= twin + 1 < end else np.int64(0)
            behind = np.int64(axis.weights[offset + twin + 2]) if sample <= twin + 2 < end else np.int64(0)
            rounded = whole + ((3 * second + behind + 2) >> 2)
            if first + tap == size - 1:
                rounded = whole + second
            weights[i * taps + tap] = min(rounded - before, _ONE - 1)
            before = rounded
        firsts[i] = first
    return Axis(firsts, weights, taps, min(firsts[0], firsts[-1]), max(firsts[0], firsts[-1]) + taps)


@njit(cache=True, nogil=True, error_model="numpy")
def nearest_axis(start: float, extent: float, size: int, mirrored: bool, nearest: np.ndarray) -> None:
    """Fill ``nearest`` (outputs,) with the sample that each output takes from an axis of ``size``."""
    count = nearest.shape[0]
    scale = extent / count
    place = start + 0.5 * scale
    for i in range(count):
        nearest[count - 1 - i if mirrored else i] = min(max(0, int(place)), size - 1)
        place += scale  # summed, as Pillow does: in ties its rounding decides
