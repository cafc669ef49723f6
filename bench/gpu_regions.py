"""Regions of JPEGs as small JPEGs of their own, for decoders that know nothing of restart markers.

What kernels.restart does on the way to libjpeg-turbo is done here for any decoder: the restart intervals that hold a
region, behind the header with another size in it, are a valid JPEG (ITU-T T.81, sections B.2.2 and F.2.1.3.1). Here it
is done beforehand, sample by sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.jpeg_header import (
    ENTROPY_AT,
    EOI,
    FRAME_SIZE_AT,
    HEADER_FIELDS,
    HEIGHT,
    MCU_COLUMNS,
    MCU_HEIGHT,
    MCU_ROWS,
    MCU_WIDTH,
    OK,
    RESTART_INTERVAL,
    RST0,
    WIDTH,
    read_header,
)

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, right and bottom excluded."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A part of a JPEG.

    Attributes:
        jpeg: uint8 (bytes,), a JPEG of its own.
        box: what it shows of the image.
    """

    jpeg: np.ndarray
    box: Box


def cut_region(record: np.ndarray, starts: np.ndarray, box: Box) -> Cut | None:
    """Cut the smallest part out of a JPEG that its restart intervals allow.

    Args:
        record: uint8 (bytes,), the whole JPEG.
        starts: of its intervals, as `kernels.restart.interval_starts` returns them.
        box: what is needed of the image, inside it and not empty.

    Returns:
        A part that holds the box; None where the intervals do not line up with the rows of the image.
    """
    header = np.zeros(HEADER_FIELDS, np.int64)
    if not len(starts) or read_header(record, header) != OK:
        return None
    columns, rows, interval = (int(header[field]) for field in (MCU_COLUMNS, MCU_ROWS, RESTART_INTERVAL))
    if interval % columns and columns % interval:
        return None
    tall, wide = max(1, interval // columns), min(interval, columns)  # MCUs of an interval
    unit_width, unit_height = wide * int(header[MCU_WIDTH]), tall * int(header[MCU_HEIGHT])
    left, top, right, bottom = box
    column0, column1 = left // unit_width, -(-right // unit_width)
    row0, row1 = top // unit_height, -(-bottom // unit_height)
    per_row = columns // wide
    shown = (
        column0 * unit_width,
        row0 * unit_height,
        min(column1 * unit_width, int(header[WIDTH])),
        min(row1 * unit_height, int(header[HEIGHT]), rows * int(header[MCU_HEIGHT])),
    )
    head = record[: int(header[ENTROPY_AT])].copy()
    at = int(header[FRAME_SIZE_AT])
    head[at : at + 4] = np.array([shown[3] - shown[1], shown[2] - shown[0]], ">u2").view(np.uint8)
    numbers = [row * per_row + column for row in range(row0, row1) for column in range(column0, column1)]
    pieces = [record[int(starts[number]) : int(starts[number + 1])].copy() for number in numbers]
    for position, piece in enumerate(pieces):
        piece[-2:] = 0xFF, RST0 + (position & 7)
    pieces[-1][-1] = EOI
    return Cut(np.concatenate([head, *pieces]), shown)


def needed_box(window: np.ndarray, width: int, height: int, resolution: int) -> Box:
    """Return the pixels of an image that resizing a window of it reads, with two to spare for chroma.

    Args:
        window: float64 (4,): left, top, width, height in fractions of the image.
        width, height: of the image, pixels.
        resolution: of the result, pixels.
    """
    sides = np.array([width, height])
    begin, extent = window[:2] * sides, window[2:] * sides
    margin = np.maximum(1, extent / resolution) + 2
    left, top = np.maximum(0, np.floor(begin - margin)).astype(int).tolist()
    right, bottom = np.minimum(sides, np.ceil(begin + extent + margin)).astype(int).tolist()
    return left, top, right, bottom
