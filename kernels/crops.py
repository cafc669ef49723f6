"""Crop windows, for whole batches at once.

A window is (left, top, width, height) in fractions of the upright image's width and height, so that one window serves
the original file and every smaller rendition of it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from kernels.random import _TO_UNIT, Stream, philox

_CROP = int(Stream.CROP)


@njit(cache=True, nogil=True)
def _fill_random_resized(
    seed: np.uint64,
    epoch: int,
    keys: np.ndarray,
    widths: np.ndarray,
    heights: np.ndarray,
    scale_low: float,
    scale_high: float,
    ratio_low: float,
    ratio_high: float,
    out: np.ndarray,
) -> None:
    log_low = math.log(ratio_low)
    log_high = math.log(ratio_high)
    for row in range(keys.shape[0]):
        image_width = widths[row]
        image_height = heights[row]
        found = False
        for attempt in range(10):
            draws = philox(seed, epoch, keys[row], _CROP, attempt)
            area = image_width * image_height * (scale_low + (scale_high - scale_low) * draws[0] * _TO_UNIT)
            ratio = math.exp(log_low + (log_high - log_low) * draws[1] * _TO_UNIT)
            width = round(math.sqrt(area * ratio))
            height = round(math.sqrt(area / ratio))
            if 0 < width <= image_width and 0 < height <= image_height:
                left = math.floor(draws[2] * _TO_UNIT * (image_width - width + 1))
                top = math.floor(draws[3] * _TO_UNIT * (image_height - height + 1))
                found = True
                break
        if not found:
            image_ratio = image_width / image_height
            width = image_width
            height = image_height
            if image_ratio < ratio_low:
                height = min(image_height, max(1, round(image_width / ratio_low)))
            elif image_ratio > ratio_high:
                width = min(image_width, max(1, round(image_height * ratio_high)))
            left = (image_width - width) // 2
            top = (image_height - height) // 2
        out[row, 0] = left / image_width
        out[row, 1] = top / image_height
        out[row, 2] = width / image_width
        out[row, 3] = height / image_height


def random_resized_windows(
    seed: int,
    epoch: int,
    keys: np.ndarray,
    widths: np.ndarray,
    heights: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Draw windows with the distribution of torchvision's ``RandomResizedCrop`` (whole pixels, ten attempts).

    Args:
        keys: uint64 sample keys, shape (N,).
        widths, heights: upright sizes in pixels, shape (N,), all positive.
        scale: range of the window's area over the image's.
        ratio: range of the window's width over its height, drawn log-uniformly.

    Returns:
        float64 (N, 4): left, top, width, height in fractions of the image.
    """
    out = np.empty((len(keys), 4), np.float64)
    _fill_random_resized(
        np.uint64(seed),
        epoch,
        np.ascontiguousarray(keys, np.uint64),
        np.ascontiguousarray(widths, np.int64),
        np.ascontiguousarray(heights, np.int64),
        float(scale[0]),
        float(scale[1]),
        float(ratio[0]),
        float(ratio[1]),
        out,
    )
    return out


def center_windows(widths: np.ndarray, heights: np.ndarray, fraction: float) -> np.ndarray:
    """Return centered square windows whose side is ``fraction`` of the shorter side, not rounded to pixels.

    Resizing such a window at once gives what resizing the image and cropping its center gives, without the detour.

    Returns:
        float64 (N, 4): left, top, width, height in fractions of the image.
    """
    side = fraction * np.minimum(widths, heights).astype(np.float64)
    width, height = side / widths, side / heights
    return np.stack([(1 - width) / 2, (1 - height) / 2, width, height], axis=1)


def stretched_windows(count: int, fraction: float) -> np.ndarray:
    """Return centered windows of ``fraction`` of the width and of the height, whatever the image's shape.

    Returns:
        float64 (N, 4): left, top, width, height in fractions of the image.
    """
    margin = (1 - fraction) / 2
    return np.tile(np.array([margin, margin, fraction, fraction], np.float64), (count, 1))


@njit(cache=True, nogil=True)
def _fill_random_square(
    seed: np.uint64,
    epoch: int,
    keys: np.ndarray,
    widths: np.ndarray,
    heights: np.ndarray,
    side: int,
    resized: int,
    stretched: bool,
    out: np.ndarray,
) -> None:
    for row in range(keys.shape[0]):
        width = height = resized
        if not stretched:
            shorter = min(widths[row], heights[row])
            width = int(resized * widths[row] / shorter)
            height = int(resized * heights[row] / shorter)
        draws = philox(seed, epoch, keys[row], _CROP, 0)
        out[row, 0] = math.floor(draws[0] * _TO_UNIT * (width - side + 1)) / width
        out[row, 1] = math.floor(draws[1] * _TO_UNIT * (height - side + 1)) / height
        out[row, 2] = side / width
        out[row, 3] = side / height


def random_square_windows(
    seed: int,
    epoch: int,
    keys: np.ndarray,
    widths: np.ndarray,
    heights: np.ndarray,
    side: int,
    resized: int,
    stretched: bool = False,
) -> np.ndarray:
    """Draw windows with the distribution of torchvision's ``Resize`` and a ``RandomCrop`` behind it.

    Places are whole pixels of the resized image, which nobody makes.

    Args:
        keys: uint64 sample keys, shape (N,).
        widths, heights: upright sizes in pixels, shape (N,), all positive.
        side: of the square that is cut out, pixels.
        resized: what the shorter side is resized to, pixels; at least ``side``.
        stretched: both sides are resized to ``resized``.

    Returns:
        float64 (N, 4): left, top, width, height in fractions of the image.
    """
    out = np.empty((len(keys), 4), np.float64)
    _fill_random_square(
        np.uint64(seed),
        epoch,
        np.ascontiguousarray(keys, np.uint64),
        np.ascontiguousarray(widths, np.int64),
        np.ascontiguousarray(heights, np.int64),
        side,
        resized,
        stretched,
        out,
    )
    return out
