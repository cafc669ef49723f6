"""Reading image headers fast: JPEG and PNG in compiled code that leaves the GIL alone, Pillow for everything unusual.

Whatever the compiled code does not recognize at once is left to Pillow, so that both always say the same. Layouts are
those of ITU-T T.81 (JPEG), the PNG specification, and Exif 2.32 with its TIFF directories.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numba import njit, types
from numba.core.typing import signature

from loaders.bad_samples import MAX_PIXELS
from loaders.dataset import PixelForm, StringColumn
from loaders.pixels import PixelError, open_image, orientation_of

_WINDOW = 4096  # bytes read at once; the headers of most files fit
_PATH_LIMIT = 4096  # bytes of a path, as Linux has it
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe among the files must not block
_ASK_PILLOW = np.uint8(0)  # in place of an orientation

_RGB, _GRAY, _CMYK = np.uint8(PixelForm.RGB), np.uint8(PixelForm.GRAY), np.uint8(PixelForm.CMYK)
_OTHER, _UNREADABLE = np.uint8(PixelForm.OTHER), np.uint8(PixelForm.UNREADABLE)

_open: Callable[..., int] = types.ExternalFunction("open", signature(types.int32, types.uintp, types.int32))
_pread: Callable[..., int] = types.ExternalFunction(
    "pread", signature(types.int64, types.int32, types.uintp, types.uint64, types.int64)
)
_close: Callable[..., int] = types.ExternalFunction("close", signature(types.int32, types.int32))

# Marks in the files, as the numbers their bytes make, first byte highest.
_JPEG, _EXIF = 0xFFD8FF, int.from_bytes(b"Exif\0\0", "big")
_PNG, _NEWLINES_13 = int.from_bytes(b"\x89PNG", "big"), int.from_bytes(b"\r\n\x1a\n\0\0\0\x0d", "big")
_IHDR, _IDAT, _IEND, _TRNS, _EXIF_CHUNK, _ITXT, _TEXT, _ZTXT = (
    int.from_bytes(name, "big") for name in (b"IHDR", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"iTXt", b"tEXt", b"zTXt")
)
_XMP, _RAW_PROFILE = int.from_bytes(b"XML:com.", "big"), int.from_bytes(b"Raw prof", "big")  # how keywords begin
_LITTLE_TIFF, _BIG_TIFF = int.from_bytes(b"II*\0", "big"), int.from_bytes(b"MM\0*", "big")

# Places in the array of what is known of one file.
_WIDTH, _HEIGHT, _ORIENTATION, _FORM = range(4)


def read_headers(
    paths: StringColumn, start: int, stop: int, sizes: np.ndarray, orientations: np.ndarray, forms: np.ndarray
) -> dict[int, str]:
    """Read the headers of the files ``start`` to ``stop`` into the columns of the whole set.

    Args:
        paths: all paths.
        sizes: int32 (N, 2), upright width and height.
        orientations: uint8 (N,).
        forms: uint8 (N,), a PixelForm each.

    Returns:
        The reasons for the files that cannot be read, by index; their size is set to 1 by 1.
    """
    _read_batch(paths.buffer, paths.offsets, start, stop, sizes, orientations, forms)
    problems = {}
    for index in (np.flatnonzero(orientations[start:stop] == _ASK_PILLOW) + start).tolist():
        try:
            width, height, orientation, form = _read_with_pillow(paths[index])
        except PixelError as error:
            problems[index] = str(error)
            width, height, orientation, form = 1, 1, 1, PixelForm.UNREADABLE
        if forms[index] == _UNREADABLE:
            forms[index] = form
        sizes[index] = (height, width) if orientation >= 5 else (width, height)
        orientations[index] = orientation
    return problems


def _read_with_pillow(path: str) -> tuple[int, int, int, PixelForm]:
    """Return the stored width and height, the orientation and the form."""
    with open_image(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise PixelError(f"more than {MAX_PIXELS // 1_000_000} megapixels")
        known = {"RGB": PixelForm.RGB, "L": PixelForm.GRAY, "CMYK": PixelForm.CMYK}
        form = known.get(image.mode, PixelForm.OTHER)
        if "transparency" in image.info:
            form = PixelForm.OTHER
        try:
            orientation = orientation_of(image)
        except Exception as error:  # Pillow decodes a PNG to see the Exif data behind the pixels
            raise PixelError(str(error) or type(error).__name__) from error
    return width, height, orientation, form


@njit(cache=True, nogil=True)
def _read_batch(
    buffer: np.ndarray,
    offsets: np.ndarray,
    start: int,
    stop: int,
    sizes: np.ndarray,
    orientations: np.ndarray,
    forms: np.ndarray,
) -> None:
    path = np.empty(_PATH_LIMIT, np.uint8)
    window = np.empty(_WINDOW, np.uint8)
    facts = np.empty(4, np.int64)
    for index in range(start, stop):
        orientations[index] = _ASK_PILLOW
        forms[index] = _UNREADABLE
        length = offsets[index + 1] - offsets[index]
        if length >= _PATH_LIMIT:
            continue
        for position in range(length):
            path[position] = buffer[offsets[index] + position]
        path[length] = 0
        file = _open(path.ctypes.data, _FLAGS)
        if file < 0:
            continue
        found = _read_file(file, window, facts)
        _close(file)
        if not found or not 0 < facts[_WIDTH] * facts[_HEIGHT] <= MAX_PIXELS:
            continue
        forms[index] = facts[_FORM]
        orientations[index] = facts[_ORIENTATION]
        turned = facts[_ORIENTATION] >= 5
        sizes[index, 0] = facts[_HEIGHT] if turned else facts[_WIDTH]
        sizes[index, 1] = facts[_WIDTH] if turned else facts[_HEIGHT]


@njit(cache=True, nogil=True)
def _load(file: int, position: int, window: np.ndarray) -> int:
    """Read what is at a position; return the number of bytes, 0 at the end or on an error."""
    return max(0, _pread(file, window.ctypes.data, _WINDOW, position))


@njit(cache=True, nogil=True)
def _read_file(file: int, window: np.ndarray, facts: np.ndarray) -> bool:
    """Fill in the facts of a JPEG or PNG file; return False when the header is not plain to read."""
    count = _load(file, 0, window)
    if count < 33:
        return False
    if _number(window, 0, 4) == _PNG and _number(window, 4, 8) == _NEWLINES_13 and _number(window, 12, 4) == _IHDR:
        return _read_png(file, window, count, facts)
    return _number(window, 0, 3) == _JPEG and _read_jpeg(file, window, count, facts)


@njit(cache=True, nogil=True)
def _number(data: np.ndarray, at: int, length: int, little: bool = False) -> int:
    """Return the number that some bytes make, big-endian unless ``little``."""
    value = 0
    for offset in range(length):
        value = (value << 8) | int(data[at + length - 1 - offset if little else at + offset])
    return value


@njit(cache=True, nogil=True)
def _read_jpeg(file: int, window: np.ndarray, count: int, facts: np.ndarray) -> bool:
    """Walk the marker segments up to the start of the scan."""
    base = 0  # position of the window in the file
    position = 2
    orientation = 1
    has_exif = has_xmp = has_frame = oriented = False
    while True:
        if position + 40 > base + count:
            base = position
            count = _load(file, base, window)
            if count < 4:
                return False
        at = position - base
        if window[at] != 0xFF:
            return False
        marker = window[at + 1]
        if marker == 0xDA:
            break
        length = _number(window, at + 2, 2)
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or length < 2:
            return False  # fill bytes, markers without a segment
        is_frame = 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC
        if is_frame:
            if has_frame or marker > 0xC2 or length < 11 or count - at < 10 or window[at + 4] != 8:
                return False
            has_frame = True
            facts[_HEIGHT] = _number(window, at + 5, 2)
            facts[_WIDTH] = _number(window, at + 7, 2)
            components = window[at + 9]
            if components == 1:
                facts[_FORM] = _GRAY
            elif components == 3:
                facts[_FORM] = _RGB
            elif components == 4:
                facts[_FORM] = _CMYK
            else:
                return False
        elif marker == 0xE1 and length >= 16 and count - at >= 18 and _number(window, at + 4, 6) == _EXIF:
            if has_exif:
                return False
            has_exif = True
            base = position + 10
            count = _load(file, base, window)
            orientation = _exif_orientation(window, min(count, length - 8))
            if orientation < 0:
                return False
            oriented = orientation > 0
        elif marker == 0xE1:
            has_xmp = True
        position += 2 + length
    if has_xmp and not oriented:
        facts[_ORIENTATION] = _ASK_PILLOW  # the XMP packet may have one
    else:
        facts[_ORIENTATION] = orientation if 1 <= orientation <= 8 else 1
    return has_frame


@njit(cache=True, nogil=True)
def _read_png(file: int, window: np.ndarray, count: int, facts: np.ndarray) -> bool:
    """Read the header, then walk all chunks, as Exif data may stand behind the pixels."""
    facts[_WIDTH] = _number(window, 16, 4)
    facts[_HEIGHT] = _number(window, 20, 4)
    depth, color = window[24], window[25]
    facts[_FORM] = _OTHER
    if depth == 8 and color == 2:
        facts[_FORM] = _RGB
    elif depth == 8 and color == 0:
        facts[_FORM] = _GRAY
    base = 0
    position = 33
    orientation = 0
    has_exif = has_text = has_pixels = False
    while True:
        if position + 40 > base + count:
            base = position
            count = _load(file, base, window)
            if count < 8:  # a truncated file is found out when it is decoded
                break
        at = position - base
        length = _number(window, at, 4)
        kind = _number(window, at + 4, 4)
        if kind == _IEND:
            break
        if kind == _IDAT:
            has_pixels = True
        elif kind == _TRNS:
            facts[_FORM] = _OTHER
        elif kind in (_ITXT, _TEXT, _ZTXT):
            keyword = _number(window, at + 8, 8) if count - at >= 16 else 0
            has_text = has_text or keyword in (_XMP, _RAW_PROFILE)
        elif kind == _EXIF_CHUNK:
            if has_exif or length < 8:
                return False
            has_exif = True
            base = position + 8
            count = _load(file, base, window)
            orientation = _exif_orientation(window, min(count, length))
            if orientation < 0:
                return False
        position += 12 + length
    if has_text and orientation == 0:
        facts[_ORIENTATION] = _ASK_PILLOW
    else:
        facts[_ORIENTATION] = orientation if 1 <= orientation <= 8 else 1
    return has_pixels


@njit(cache=True, nogil=True)
def _exif_orientation(data: np.ndarray, count: int) -> int:
    """Return the orientation in the first directory of a TIFF structure, 0 where it has none, -1 when in doubt."""
    if count < 14:
        return -1
    mark = _number(data, 0, 4)
    little = mark == _LITTLE_TIFF
    if not little and mark != _BIG_TIFF:
        return -1
    directory = _number(data, 4, 4, little)
    if directory < 8 or directory + 2 > count:
        return -1
    entries = _number(data, directory, 2, little)
    if directory + 2 + 12 * entries > count:
        return -1
    for entry in range(entries):
        at = directory + 2 + 12 * entry
        if _number(data, at, 2, little) == 0x0112:
            if _number(data, at + 2, 2, little) != 3 or _number(data, at + 4, 4, little) != 1:
                return -1
            value = _number(data, at + 8, 2, little)
            return value if 1 <= value <= 8 else 9
    return 0
