"""Whether image files are all there, by their last bytes: a cheap look that no cut-off file passes.

DALI has to be kept from cut-off files. It does not notice what is missing below a JPEG's window; and after a PNG that
ends too early, it was seen to crash: its threads went on with a batch that the failure had already ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numba import njit, types
from numba.core.typing import signature

from loaders.dataset import StringColumn

_PATH_LIMIT = 4096  # bytes of a path, as Linux has it
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_HEAD, _TAIL = 12, 12  # bytes looked at
_PNG_END = np.frombuffer(b"\0\0\0\0IEND\xae\x42\x60\x82", np.uint8)

_open: Callable[..., int] = types.ExternalFunction("open", signature(types.int32, types.uintp, types.int32))
_pread: Callable[..., int] = types.ExternalFunction(
    "pread", signature(types.int64, types.int32, types.uintp, types.uint64, types.int64)
)
_lseek: Callable[..., int] = types.ExternalFunction(
    "lseek", signature(types.int64, types.int32, types.int64, types.int32)
)
_close: Callable[..., int] = types.ExternalFunction("close", signature(types.int32, types.int32))


def end_properly(paths: StringColumn, indices: np.ndarray) -> np.ndarray:
    """Look at the ends of files.

    Args:
        paths: all paths.
        indices: int64 (n,), which of them.

    Returns:
        bool (n,): True where the file is a JPEG, PNG, WebP or BMP that ends as its format has it. False may also be a
        whole file with something behind the picture: decode it to know.
    """
    out = np.zeros(len(indices), np.bool_)
    _look(paths.buffer, paths.offsets, np.ascontiguousarray(indices, np.int64), out)
    return out


@njit(cache=True, nogil=True)
def _look(buffer: np.ndarray, offsets: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    path = np.empty(_PATH_LIMIT, np.uint8)
    head = np.empty(_HEAD, np.uint8)
    tail = np.empty(_TAIL, np.uint8)
    for number in range(len(indices)):
        start = offsets[indices[number]]
        length = offsets[indices[number] + 1] - start
        if length >= _PATH_LIMIT:
            continue
        path[:length] = buffer[start : start + length]
        path[length] = 0
        file = _open(path.ctypes.data, _FLAGS)
        if file < 0:
            continue
        size = _lseek(file, 0, 2)
        read = size >= _HEAD
        read = read and _pread(file, head.ctypes.data, _HEAD, 0) == _HEAD
        read = read and _pread(file, tail.ctypes.data, _TAIL, size - _TAIL) == _TAIL
        _close(file)
        out[number] = read and _is_whole(head, tail, size)


@njit(cache=True, nogil=True)
def _is_whole(head: np.ndarray, tail: np.ndarray, size: int) -> bool:
    if head[0] == 0xFF and head[1] == 0xD8:  # JPEG: the end-of-image marker
        return tail[-2] == 0xFF and tail[-1] == 0xD9
    if head[0] == 0x89 and head[1] == 0x50:  # PNG: its last chunk
        return (tail == _PNG_END).all()
    if head[0] == 0x52 and head[1] == 0x49:  # RIFF, as WebP: the size that the header promises
        return 8 + _little_endian(head, 4) <= size
    if head[0] == 0x42 and head[1] == 0x4D:  # BMP: the same
        return 0 < _little_endian(head, 2) <= size
    return False


@njit(cache=True, nogil=True)
def _little_endian(head: np.ndarray, place: int) -> int:
    number = np.int64(0)
    for byte in range(4):
        number |= np.int64(head[place + byte]) << (8 * byte)
    return int(number)
