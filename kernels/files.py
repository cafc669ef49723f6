"""Reading files from compiled code without the GIL, through the C library's calls."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numba import njit, types
from numba.core.typing import signature

PATH_LIMIT = 4096  # bytes of a path with its closing zero, as Linux has it
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe among the files must not block

_open: Callable[..., int] = types.ExternalFunction("open", signature(types.int32, types.uintp, types.int32))
_pread: Callable[..., int] = types.ExternalFunction(
    "pread", signature(types.int64, types.int32, types.uintp, types.uint64, types.int64)
)
_lseek: Callable[..., int] = types.ExternalFunction(
    "lseek", signature(types.int64, types.int32, types.int64, types.int32)
)
_close: Callable[..., int] = types.ExternalFunction("close", signature(types.int32, types.int32))


@njit(cache=True, nogil=True)
def open_file(path: np.ndarray, scratch: np.ndarray) -> int:
    """Open a file to read.

    Args:
        path: uint8, its encoded path.
        scratch: uint8 (PATH_LIMIT,).

    Returns:
        The file's number, to be given to `close_file`; below 0 when it cannot be opened.
    """
    length = path.shape[0]
    if length >= PATH_LIMIT:
        return -1
    scratch[:length] = path
    scratch[length] = 0
    return _open(scratch.ctypes.data, _FLAGS)


@njit(cache=True, nogil=True)
def file_size(file: int) -> int:
    """Return the length of an open file in bytes; below 0 when it has none."""
    return _lseek(file, 0, 2)


@njit(cache=True, nogil=True)
def read_at(file: int, position: int, out: np.ndarray) -> int:
    """Read the bytes at a position into ``out`` (uint8); return how many there were, 0 at the end or on an error."""
    total = 0
    while total < out.shape[0]:
        count = _pread(file, out.ctypes.data + total, out.shape[0] - total, position + total)
        if count <= 0:
            break
        total += count
    return total


@njit(cache=True, nogil=True)
def close_file(file: int) -> None:
    """Close an open file."""
    _close(file)
