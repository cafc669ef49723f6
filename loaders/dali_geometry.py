"""Crop windows as DALI's operators take them, for whole batches at once: which rectangle of the stored image to decode,
which part of it to resize, how to turn the result upright, and how to make its border Pillow's.

Pillow's boxed resize looks beyond the box as far as the filter reaches; at the image's edge it leaves the missing
pixels out and weights the present ones up. DALI's looks beyond its region too, but repeats the edge pixel. Where that
matters, when shrinking, black is put around the decoded rectangle, which adds nothing to the sums, and the one line of
the result that reaches over the edge is multiplied by its ``gain``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

# Borders are left to DALI where that cannot move the image's pixels by more than this on average (of 255).
_NEGLIGIBLE = 0.25

_MIRRORED_HORIZONTALLY = np.array([0, 0, 1, 1, 0, 0, 1, 1, 0], np.bool_)  # by EXIF orientation, after the transposition
_MIRRORED_VERTICALLY = np.array([0, 0, 0, 1, 1, 0, 0, 1, 1], np.bool_)


@dataclass(frozen=True, eq=False)
class Geometry:
    """One entry for each sample. Pairs are (vertical, horizontal), in pixels of the image as it is stored.

    Attributes:
        anchor: int32 (n, 2), first row and column to decode.
        shape: int32 (n, 2), rows and columns to decode.
        padded: bool (n,), whether black is needed around the decoded rectangle.
        padded_anchor: int32 (n, 2), first row and column of the padded rectangle within the decoded one, 0 or less.
        padded_shape: int32 (n, 2), its rows and columns.
        region_start, region_end: float32 (n, 2), the window within the (padded) rectangle.
        size: float32 (n, 2), of the result.
        transposed: bool (n,), and
        mirrored_vertically, mirrored_horizontally: int32 (n,) 0 or 1: to be applied to the result in this order; the
            random flip is in the last one.
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
    mirrored_vertically: np.ndarray
    mirrored_horizontally: np.ndarray
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
        widths, heights: (n,), of the upright images, pixels.
        orientations: uint8 (n,), EXIF orientations 1 to 8.
        resolution: side of the results, pixels.
    """
    image = np.stack([heights, widths], 1).astype(np.float64)
    start = windows[:, 1::-1] * image
    extent = windows[:, 3:1:-1] * image
    gains = _gains(start, extent, image, resolution)
    gains[flips] = gains[flips][:, [0, 1, 3, 2]]
    padded = 255 * (gains - 1).sum(1) > _NEGLIGIBLE * resolution
    gains[~padded] = 1

    mirrored_vertically = _MIRRORED_VERTICALLY[orientations]
    mirrored_horizontally = _MIRRORED_HORIZONTALLY[orientations]
    mirrored = np.stack([mirrored_vertically, mirrored_horizontally], 1)
    start = np.where(mirrored, image - start - extent, start)
    transposed = orientations >= 5
    start[transposed] = start[transposed, ::-1]
    extent[transposed] = extent[transposed, ::-1]
    image[transposed] = image[transposed, ::-1]

    scale = extent / resolution
    reach = np.maximum(1.0, scale) - scale / 2 + 0.01  # of the outermost filters beyond the window; a bit for rounding
    low, high = np.floor(start - reach), np.ceil(start + extent + reach)
    first, last = np.maximum(low, 0), np.minimum(high, image)
    # An enlarged axis needs no black: repeating the edge pixel and leaving out what is missing are the same there.
    black = padded[:, None] & (extent > resolution)
    padded_first, padded_last = np.where(black, low, first), np.where(black, high, last)
    return Geometry(
        anchor=first.astype(np.int32),
        shape=(last - first).astype(np.int32),
        padded=padded,
        padded_anchor=(padded_first - first).astype(np.int32),
        padded_shape=(padded_last - padded_first).astype(np.int32),
        region_start=(start - padded_first).astype(np.float32),
        region_end=(start + extent - padded_first).astype(np.float32),
        size=np.full((len(windows), 2), resolution, np.float32),
        transposed=transposed,
        mirrored_vertically=mirrored_vertically.astype(np.int32),
        mirrored_horizontally=(mirrored_horizontally ^ flips).astype(np.int32),
        gains=gains.astype(np.float32),
    )


def _gains(start: np.ndarray, extent: np.ndarray, image: np.ndarray, resolution: int) -> np.ndarray:
    """Return (n, 4): one over the share of the filter's weight that falls on the image: top, bottom, left, right."""
    scale = np.maximum(extent / resolution, 1.0)
    before = _missing(start + scale / 2, scale)
    after = _missing(image - start - extent + scale / 2, scale)
    missing = np.stack([before[:, 0], after[:, 0], before[:, 1], after[:, 1]], 1)
    shrunk = (extent > resolution) & (resolution > 1)  # a single line may reach over both edges: left to DALI
    return 1 / (1 - np.where(shrunk[:, [0, 0, 1, 1]], missing, 0.0))


def _missing(center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the share of a triangle filter's weight that falls on pixels below 0.

    Args:
        center: where the filter stands, pixels (pixel k has its center at k + 1/2).
        scale: half the filter's width, pixels.
    """
    below = (center - 0.5) % 1.0  # distance to the next pixel center below
    return _weights(center + 0.5, scale) / (_weights(below, scale) + _weights(1 - below, scale))


def _weights(distance: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the sum of max(0, 1 - d / scale) over d = distance, distance + 1, ..."""
    count = np.maximum(0.0, np.ceil(scale - distance))
    return count - (count * distance + count * (count - 1) / 2) / scale
