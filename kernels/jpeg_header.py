"""What the header of a JPEG says, and where decoded planes lie in memory.

The layout of a file is that of ITU-T T.81; the meaning of its components is that of JFIF 1.02 and of Adobe's technical
note 5116, as libjpeg reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np
from numba import njit, types
from numba.core.typing import signature

_memchr: Callable[..., int] = types.ExternalFunction(
    "memchr", signature(types.uintp, types.uintp, types.int32, types.uintp)
)

MAX_SIDE = 65500  # JPEG_MAX_DIMENSION: libjpeg takes no longer sides


class Status(IntEnum):
    """What became of a JPEG."""

    OK = 0
    BAD = 1  # no image, or a damaged one
    UNSUPPORTED = 2  # for Pillow: its components are not YCbCr or gray, or coded in an unusual way
    SCRATCH_TOO_SMALL = 3  # nothing was done


# The same for compiled code, which returns plain integers.
OK, BAD, UNSUPPORTED, SCRATCH_TOO_SMALL = (int(status) for status in Status)

# Places in the array that `read_header` fills in.
(
    WIDTH,  # of the image as stored, pixels
    HEIGHT,
    COMPONENTS,  # 3: Y, Cb, Cr; 1: gray
    MCU_WIDTH,  # pixels of the smallest unit that is coded at once (MCU): 8 or 16
    MCU_HEIGHT,
    MCU_COLUMNS,  # MCUs in a row of the image, the last one counted in full
    MCU_ROWS,
    CHROMA_X,  # pixels that share one chroma sample, across: 1 or 2
    CHROMA_Y,
    RESTART_INTERVAL,  # MCUs between restart markers; 0: there are none
    FRAME_SIZE_AT,  # where the frame header holds height and width, two bytes each, highest first
    ENTROPY_AT,  # where the entropy-coded data of the first scan begins
    SEQUENTIAL,  # 1: one scan holds everything, MCU after MCU (baseline or extended sequential); 0: several scans
) = range(13)
HEADER_FIELDS = 13

# Places in the array that says where decoded planes lie. The last four are followed by those of Cb and Cr:
# ``layout[PLANE_STRIDE + 1]`` is the stride of Cb.
STRIP_COLUMNS = 0  # MCUs in a row of the planes
PLANE_OFFSET = 1  # bytes from the beginning of the memory
PLANE_STRIDE = 4  # bytes from row to row
BLOCK_WIDTH = 7  # samples of an MCU
BLOCK_HEIGHT = 10
LAYOUT_FIELDS = 13
_ALIGNMENT = 64  # bytes of a cache line

# Marker codes, the byte behind the 0xFF (T.81, table B.1).
_SOF0, _SOF2, _SOF15, _DHT, _JPG, _DAC = 0xC0, 0xC2, 0xCF, 0xC4, 0xC8, 0xCC
RST0, _RST7, SOI, EOI, _SOS, _DRI = 0xD0, 0xD7, 0xD8, 0xD9, 0xDA, 0xDD
_APP0, _APP14, _TEM = 0xE0, 0xEE, 0x01

_JFIF = np.frombuffer(b"JFIF\0", np.uint8)
_ADOBE = np.frombuffer(b"Adobe", np.uint8)
_RGB_IDS = np.frombuffer(b"RGB", np.uint8)


@njit(cache=True, nogil=True)
def find_marker(record: np.ndarray, position: int) -> int:
    """Return where the code of the next marker stands at or behind a position, -1 where there is none.

    Stuffed zeros are part of the data, and any number of 0xFF may stand before a marker.
    """
    length = record.shape[0]
    start = record.ctypes.data
    while position < length:
        found = _memchr(start + position, 0xFF, length - position)
        if found == 0:
            return -1
        position = int(np.int64(found - start)) + 1
        while position < length and record[position] == 0xFF:
            position += 1
        if position < length and record[position] != 0:
            return position
    return -1


@njit(cache=True, nogil=True)
def has_end(record: np.ndarray, position: int) -> bool:
    """Return whether the end marker stands at the end of a JPEG or, if not there, anywhere behind a position."""
    length = record.shape[0]
    if length >= 2 and record[length - 2] == 0xFF and record[length - 1] == EOI:
        return True
    while position >= 0:
        position = find_marker(record, position)
        if position >= 0 and record[position] == EOI:
            return True
    return False


@njit(cache=True, nogil=True)
def has_all_markers(record: np.ndarray, header: np.ndarray, width: int, height: int) -> bool:
    """Return whether an image of a size has all its restart markers, in turn, and the end marker behind them."""
    position = header[ENTROPY_AT]
    interval = header[RESTART_INTERVAL]
    if header[SEQUENTIAL] and interval > 0:
        mcus = -(-width // header[MCU_WIDTH]) * -(-height // header[MCU_HEIGHT])
        for number in range((mcus - 1) // interval):
            position = find_marker(record, position)
            if position < 0 or record[position] != RST0 + (number & 7):
                return False
    return has_end(record, position)


@njit(cache=True, nogil=True)
def _number(record: np.ndarray, at: int) -> int:
    return 256 * record[at] + record[at + 1]  # a shifted uint8 would be a uint64, which sums turn to floats


@njit(cache=True, nogil=True)
def _spells(record: np.ndarray, at: int, step: int, text: np.ndarray) -> bool:
    """Return whether bytes ``step`` apart spell a text."""
    same = True
    for offset in range(text.shape[0]):
        same = same and record[at + offset * step] == text[offset]
    return same


@njit(cache=True, nogil=True)
def read_header(record: np.ndarray, header: np.ndarray) -> int:
    """Read what stands before the first scan of a JPEG.

    Args:
        record: uint8 (bytes,), contiguous, the whole file.
        header: int64 (HEADER_FIELDS,) to fill; meaningful when the result is OK.

    Returns:
        OK; BAD: no JPEG, a broken header, or one that promises more than the data can hold; UNSUPPORTED: to be left to
        Pillow (CMYK and other numbers of components, RGB-coded, arithmetic coding, 12 bits, lossless, sampling other
        than 4:4:4, 4:2:2, 4:4:0 and 4:2:0).
    """
    if record.shape[0] < 4 or record[0] != 0xFF or record[1] != SOI:
        return BAD
    frame = 0  # where the content of the frame header begins
    frame_marker = 0
    transform = -1  # of the colors, as Adobe's marker says
    has_jfif = False
    header[RESTART_INTERVAL] = 0
    position = 2
    while True:
        position = find_marker(record, position) + 1
        if position == 0:
            return BAD
        marker = record[position - 1]
        if marker == _TEM or RST0 <= marker <= _RST7:
            continue  # without a segment
        if marker in (SOI, EOI) or position + 2 > record.shape[0]:
            return BAD
        size = _number(record, position)
        content = position + 2
        position += size
        if size < 2 or position > record.shape[0]:
            return BAD
        if marker == _SOS:
            break
        if _SOF0 <= marker <= _SOF15 and marker != _DHT and marker != _JPG and marker != _DAC:
            if marker > _SOF2:
                return UNSUPPORTED
            if frame > 0 or size < 8 or size != 8 + 3 * record[content + 5]:
                return BAD
            frame = content
            frame_marker = marker
        elif marker == _DRI:
            if size != 4:
                return BAD
            header[RESTART_INTERVAL] = _number(record, content)
        elif marker == _APP0 and size >= 16:
            has_jfif = has_jfif or _spells(record, content, 1, _JFIF)
        elif marker == _APP14 and size >= 14 and _spells(record, content, 1, _ADOBE):
            transform = record[content + 11]
    if frame == 0 or size != 6 + 2 * record[content]:
        return BAD
    if record[frame] != 8:
        return UNSUPPORTED
    components = record[frame + 5]
    header[SEQUENTIAL] = frame_marker != _SOF2 and record[content] == components
    header[ENTROPY_AT] = position
    guessed = components == 3 and not has_jfif
    if guessed and (transform == 0 or (transform < 0 and _spells(record, frame + 6, 3, _RGB_IDS))):
        return UNSUPPORTED
    return _read_frame_header(record, frame, header)


@njit(cache=True, nogil=True)
def _read_frame_header(record: np.ndarray, frame: int, header: np.ndarray) -> int:
    """Read sizes and sampling from the content of a frame header, whose length has been checked."""
    height = _number(record, frame + 1)
    width = _number(record, frame + 3)
    components = record[frame + 5]
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE:
        return BAD
    chroma_x = chroma_y = 1
    if components == 3:
        sampling = record[frame + 7]
        chroma_x, chroma_y = sampling // 16, sampling % 16
        usual = 1 <= chroma_x <= 2 and 1 <= chroma_y <= 2
        if not usual or record[frame + 10] != 0x11 or record[frame + 13] != 0x11:
            return UNSUPPORTED
    elif components != 1:
        return UNSUPPORTED
    header[WIDTH] = width
    header[HEIGHT] = height
    header[COMPONENTS] = components
    header[CHROMA_X] = chroma_x
    header[CHROMA_Y] = chroma_y
    header[MCU_WIDTH] = 8 * chroma_x
    header[MCU_HEIGHT] = 8 * chroma_y
    header[MCU_COLUMNS] = -(-width // header[MCU_WIDTH])
    header[MCU_ROWS] = -(-height // header[MCU_HEIGHT])
    header[FRAME_SIZE_AT] = frame + 1
    # A block takes a bit at least, and two in a single scan: a header that lies costs no time and no memory.
    blocks = header[MCU_COLUMNS] * header[MCU_ROWS] * (chroma_x * chroma_y + components - 1)
    bits = 8 * (record.shape[0] - header[ENTROPY_AT])
    return OK if blocks * (1 + header[SEQUENTIAL]) <= bits else BAD


@njit(cache=True, nogil=True)
def scaled_size(size: int, shift: int) -> int:
    """Return a number of pixels or samples at ``1 / 2**shift`` of the size: rounded up, as libjpeg does."""
    return (size + (1 << shift) - 1) >> shift


@njit(cache=True, nogil=True)
def plane_width(header: np.ndarray, component: int, shift: int) -> int:
    """Return the width of a component's plane at ``1 / 2**shift`` of the size, samples of the image alone."""
    chroma = header[CHROMA_X] if component > 0 else 1
    return -(-scaled_size(header[WIDTH], shift) // chroma)


@njit(cache=True, nogil=True)
def plane_height(header: np.ndarray, component: int, shift: int) -> int:
    """Return the height of a component's plane at ``1 / 2**shift`` of the size, samples of the image alone."""
    chroma = header[CHROMA_Y] if component > 0 else 1
    return -(-scaled_size(header[HEIGHT], shift) // chroma)


@njit(cache=True, nogil=True)
def lay_out_planes(header: np.ndarray, columns: int, rows: int, shift: int, layout: np.ndarray) -> int:
    """Lay planes of ``columns`` by ``rows`` whole MCUs out in memory, one after another.

    Args:
        layout: int64 (LAYOUT_FIELDS,) to fill.

    Returns:
        The bytes of all planes.
    """
    layout[:] = 0
    layout[STRIP_COLUMNS] = columns
    total = 0
    for component in range(header[COMPONENTS]):
        block_width = (8 if component > 0 else header[MCU_WIDTH]) >> shift
        block_height = (8 if component > 0 else header[MCU_HEIGHT]) >> shift
        layout[PLANE_OFFSET + component] = total
        layout[PLANE_STRIDE + component] = columns * block_width
        layout[BLOCK_WIDTH + component] = block_width
        layout[BLOCK_HEIGHT + component] = block_height
        size = columns * block_width * rows * block_height
        total += -(-size // _ALIGNMENT) * _ALIGNMENT
    return total
