"""JPEG by libjpeg-turbo, for compiled code that runs without the GIL.

The library's TurboJPEG interface gives the samples as they are coded: YCbCr planes, chroma at its own resolution, whole
or at a half, a quarter or an eighth of the size, where its inverse DCTs are vectorized. What is used of it has been
there since libjpeg-turbo 2.0.

Call `load_library` before any compiled function: one that finds no library ends the process. A decoder
(`create_handle`) belongs to one thread at a time.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from llvmlite import binding
from numba import njit, types
from numba.core.typing import signature

from kernels.jpeg_header import (
    BAD,
    BLOCK_HEIGHT,
    CHROMA_X,
    CHROMA_Y,
    COMPONENTS,
    HEADER_FIELDS,
    HEIGHT,
    OK,
    PLANE_OFFSET,
    PLANE_STRIDE,
    SCRATCH_TOO_SMALL,
    UNSUPPORTED,
    WIDTH,
    Status,
    has_all_markers,
    read_header,
    scaled_size,
)

__all__ = [
    "BAD",
    "HEADER_FIELDS",
    "OK",
    "SCRATCH_TOO_SMALL",
    "UNSUPPORTED",
    "JpegLibraryError",
    "Status",
    "create_handle",
    "decode_planes",
    "decode_rgb",
    "destroy_handle",
    "load_library",
    "read_header",
]

_LIBRARY_VARIABLE = "HEADRACE_TURBOJPEG"
_INT, _POINTER = types.int32, types.uintp  # and size_t, and unsigned long, and a handle

_FUNCTIONS = {
    "tjInitDecompress": signature(_POINTER),
    "tjDestroy": signature(_INT, _POINTER),
    "tjDecompressHeader3": signature(_INT, *[_POINTER] * 7),
    "tjDecompressToYUVPlanes": signature(_INT, *[_POINTER] * 4, _INT, _POINTER, _INT, _INT),
    "tjDecompress2": signature(_INT, *[_POINTER] * 4, *[_INT] * 5),
    "tjGetErrorCode": signature(_INT, _POINTER),
    "tjGetErrorStr2": signature(_POINTER, _POINTER),
}


def _function(name: str) -> Callable[..., int]:
    return types.ExternalFunction(name, _FUNCTIONS[name])


_init = _function("tjInitDecompress")
_destroy = _function("tjDestroy")
_read_frame = _function("tjDecompressHeader3")
_decompress_planes = _function("tjDecompressToYUVPlanes")
_decompress = _function("tjDecompress2")
_error_code = _function("tjGetErrorCode")
_error_text = _function("tjGetErrorStr2")
_strstr: Callable[..., int] = types.ExternalFunction("strstr", signature(_POINTER, _POINTER, _POINTER))

_LIMIT_SCANS = 32768  # TJFLAG_LIMITSCANS: no more than 500 scans, so that a small file cannot take minutes
_WARNING = 0  # TJERR_WARNING
_RGB_FORMAT = 0  # TJPF_RGB
_YCBCR, _GRAY = 1, 2  # TJCS_YCbCr, TJCS_GRAY
_SAMPLING_GRAY = 3  # TJSAMP_GRAY
_SAMPLINGS = ((0, 4), (1, 2))  # TJSAMP_444, TJSAMP_440; TJSAMP_422, TJSAMP_420


class JpegLibraryError(ImportError):
    """libjpeg-turbo is missing, too old, or not where it was said to be."""


# What libjpeg warns of although the picture is whole.
_HARMLESS = tuple(
    np.frombuffer(text + b"\0", np.uint8)
    for text in (
        b"extraneous bytes before marker",
        b"unknown JFIF revision number",
        b"Unknown Adobe color transform code",
        b"Invalid SOS parameters for sequential JPEG",
        b"Inconsistent progression sequence",
        b"bad ICC marker",
    )
)


@functools.cache
def load_library() -> str:
    """Load libjpeg-turbo, so that compiled functions find it.

    It is looked for where the environment variable HEADRACE_TURBOJPEG says, or else beside the Python installation (as
    conda installs it) and where the system keeps its libraries.

    Returns:
        The name under which it was found.

    Raises:
        JpegLibraryError: there is none, it is too old, or the variable names something else.
    """
    named = os.environ.get(_LIBRARY_VARIABLE)
    problems = []
    for name in [named] if named else _candidates():
        try:
            library = ctypes.CDLL(name)
            missing = [function for function in _FUNCTIONS if not hasattr(library, function)]
            if not missing:
                binding.load_library_permanently(name)
                return name
            problems.append(f"{name} has no {missing[0]}: 2.0 is the oldest version that serves")
        except OSError as error:
            if named:
                problems.append(f"{_LIBRARY_VARIABLE}: {error}")
    reason = "; ".join(problems) or "not found"
    raise JpegLibraryError(
        f"the TurboJPEG library of libjpeg-turbo cannot be used: {reason}. Install it (Debian and Ubuntu: apt-get "
        f"install libturbojpeg0 or libturbojpeg; conda: conda install libjpeg-turbo), name its file in "
        f"{_LIBRARY_VARIABLE}, or use --loader torch or --loader dali, which work without it"
    )


def _candidates() -> Iterator[str]:
    for folder in (Path(sys.prefix), Path(sys.base_prefix)):
        yield from map(str, sorted((folder / "lib").glob("libturbojpeg.so*")))
    yield "libturbojpeg.so.0"
    yield "libturbojpeg.so"
    found = ctypes.util.find_library("turbojpeg")  # last: it starts other programs
    if found:
        yield found


@njit(cache=True, nogil=True)
def create_handle() -> int:
    """Return a new decoder, for one thread at a time; 0 where memory is short."""
    return _init()


@njit(cache=True, nogil=True)
def destroy_handle(handle: int) -> None:
    """Free a decoder."""
    _destroy(handle)


@njit(cache=True, nogil=True)
def decode_planes(
    handle: int,
    record: np.ndarray,
    header: np.ndarray,
    width: int,
    height: int,
    shift: int,
    memory: np.ndarray,
    layout: np.ndarray,
    row: int,
) -> int:
    """Decode a whole JPEG to planes of its components, chroma at its own resolution.

    The inverse DCT is the accurate one, as in Pillow. The library writes each plane's width and height, of luma rounded
    up to whole chroma samples, and nothing beyond; what the rounding adds has no meaning.

    A picture is bad that is cut off, that has invalid codes, or whose restart markers are missing or out of turn: parts
    of it are gray or in the wrong place, of which the library only warns. Pillow refuses data without an end marker and
    accepts the others. Other warnings (of extraneous bytes before a marker, say) leave the picture whole. The library
    keeps the text of its first warning alone: behind such a one, markers are still checked, codes are not.

    Args:
        handle: a decoder.
        record: uint8 (bytes,), contiguous, the whole file.
        header: of the record, from `read_header`; its size may be another.
        width, height: the size that the record's frame header has. Where neither exceeds five pixels and neither is a
            multiple of eight, the library may choose another scale than ``shift`` says, of the same size.
        shift: 0 to 3; the planes have ``1 / 2**shift`` of the size.
        memory: uint8 (bytes,), contiguous, to write the planes to.
        layout: int64 (LAYOUT_FIELDS,), where in the memory; as from `lay_out_planes`.
        row: MCU row of the planes that the first row goes to.

    Returns:
        OK, or BAD: the planes may then hold anything.
    """
    components = header[COMPONENTS]
    chroma_x, chroma_y = header[CHROMA_X], header[CHROMA_Y]
    if not 0 <= shift <= 3 or not _frame_is(handle, record, header, width, height):
        return BAD
    addresses = np.empty(3, np.uintp)
    strides = np.empty(3, np.int32)
    for component in range(components):
        columns = -(-scaled_size(width, shift) // chroma_x) * (1 if component > 0 else chroma_x)
        rows = -(-scaled_size(height, shift) // chroma_y) * (1 if component > 0 else chroma_y)
        stride = layout[PLANE_STRIDE + component]
        offset = layout[PLANE_OFFSET + component] + row * layout[BLOCK_HEIGHT + component] * stride
        if offset < 0 or stride < columns or offset + (rows - 1) * stride + columns > memory.shape[0]:
            return BAD
        addresses[component] = memory.ctypes.data + offset
        strides[component] = stride
    failed = _decompress_to_planes(
        handle, record, addresses, scaled_size(width, shift), strides, scaled_size(height, shift)
    )
    return _verdict(handle, record, header, width, height) if failed else OK


@njit(cache=True, nogil=True)
def _decompress_to_planes(
    handle: int, record: np.ndarray, addresses: np.ndarray, width: int, strides: np.ndarray, height: int
) -> int:
    """Call the library with arrays; as arguments they live as long as the call, unlike variables last used for it."""
    return _decompress_planes(
        handle,
        record.ctypes.data,
        record.shape[0],
        addresses.ctypes.data,
        width,
        strides.ctypes.data,
        height,
        _LIMIT_SCANS,
    )


@njit(cache=True, nogil=True)
def decode_rgb(handle: int, record: np.ndarray, header: np.ndarray, out: np.ndarray) -> int:
    """Decode a whole JPEG to RGB, as Pillow does.

    Args:
        handle: a decoder.
        record: uint8 (bytes,), contiguous, the whole file.
        header: of the record, from `read_header`.
        out: uint8 (height, width, 3), C-contiguous, to fill.

    Returns:
        OK, or BAD: ``out`` may then hold anything.
    """
    width, height = header[WIDTH], header[HEIGHT]
    if out.shape != (height, width, 3) or not _frame_is(handle, record, header, width, height):
        return BAD
    failed = _decompress(
        handle,
        record.ctypes.data,
        record.shape[0],
        out.ctypes.data,
        width,
        3 * width,
        height,
        _RGB_FORMAT,
        _LIMIT_SCANS,
    )
    return _verdict(handle, record, header, width, height) if failed else OK


@njit(cache=True, nogil=True)
def _frame_is(handle: int, record: np.ndarray, header: np.ndarray, width: int, height: int) -> bool:
    """Return whether the library reads what it is expected to in a header: how much it writes depends on it."""
    gray = header[COMPONENTS] == 1
    sampling = _SAMPLING_GRAY if gray else _SAMPLINGS[header[CHROMA_X] - 1][header[CHROMA_Y] - 1]
    found = np.full(4, -1, np.int32)
    place = found.ctypes.data
    _read_frame(handle, record.ctypes.data, record.shape[0], place, place + 4, place + 8, place + 12)
    color = _GRAY if gray else _YCBCR
    expected = found[0] == width and found[1] == height and found[2] == sampling and found[3] == color
    if not expected:  # 2.x stays inside a broken header; only in refusing a call without data it leaves it
        _decompress_planes(handle, 0, 0, 0, 0, 0, 0, 0)
    return expected


@njit(cache=True, nogil=True)
def _verdict(handle: int, record: np.ndarray, header: np.ndarray, width: int, height: int) -> int:
    """Return the status of a picture that the library found fault with."""
    if _error_code(handle) != _WARNING:
        return BAD
    text = _error_text(handle)  # of an error, where one followed the warning
    for harmless in _HARMLESS:
        if _strstr(text, harmless.ctypes.data) != 0:
            return OK if has_all_markers(record, header, width, height) else BAD
    return BAD
