"""JPEGs of every kind that the decoder takes, and what it makes of them whole."""

from __future__ import annotations

import ctypes
import os
from functools import cache

import numpy as np

from kernels.jpeg import create_handle, decode_planes, load_library, read_header
from kernels.jpeg_header import (
    COMPONENTS,
    HEADER_FIELDS,
    HEIGHT,
    LAYOUT_FIELDS,
    MCU_COLUMNS,
    MCU_ROWS,
    OK,
    PLANE_OFFSET,
    PLANE_STRIDE,
    WIDTH,
    lay_out_planes,
    plane_height,
    plane_width,
)

SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "gray": 3, "4:4:0": 4}  # as TurboJPEG numbers them
_RESTART_BLOCKS = 18  # TJPARAM_RESTARTBLOCKS of TurboJPEG 3; before, an environment variable says it


@cache
def decoder() -> int:
    """Return the handle of a decoder that tests share."""
    load_library()
    return create_handle()


def encode(
    pixels: np.ndarray, sampling: str = "4:2:0", restart_interval: int = 0, progressive: bool = False, quality: int = 90
) -> np.ndarray:
    """Encode uint8 (H, W, 3) RGB by TurboJPEG, as Pillow has no 4:4:0; the restart interval is in MCUs."""
    library = ctypes.CDLL(load_library())
    library.tjInitCompress.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.tjInitCompress())
    buffer, size = ctypes.POINTER(ctypes.c_ubyte)(), ctypes.c_ulong(0)
    pixels = np.ascontiguousarray(pixels)
    if hasattr(library, "tj3Set"):
        assert library.tj3Set(handle, _RESTART_BLOCKS, restart_interval) == 0
    else:
        os.environ["TJ_RESTART"] = f"{restart_interval}B"
    failed = library.tjCompress2(
        handle,
        pixels.ctypes.data_as(ctypes.c_void_p),
        pixels.shape[1],
        0,
        pixels.shape[0],
        0,
        ctypes.byref(buffer),
        ctypes.byref(size),
        SAMPLINGS[sampling],
        quality,
        16384 if progressive else 0,  # TJFLAG_PROGRESSIVE
    )
    os.environ.pop("TJ_RESTART", None)
    assert not failed
    record = np.ctypeslib.as_array(buffer, (size.value,)).copy()
    library.tjFree(buffer)
    library.tjDestroy(handle)
    return record


def header_of(record: np.ndarray) -> np.ndarray:
    """Return the header of a JPEG that is known to be good."""
    header = np.zeros(HEADER_FIELDS, np.int64)
    assert read_header(record, header) == OK
    return header


def decode(record: np.ndarray, shift: int = 0) -> tuple[int, list[np.ndarray]]:
    """Decode a whole JPEG: its status and its planes, (rows, columns) each, of what the image covers."""
    header = np.zeros(HEADER_FIELDS, np.int64)
    status = read_header(record, header)
    if status != OK:
        return status, []
    layout = np.zeros(LAYOUT_FIELDS, np.int64)
    size = lay_out_planes(header, header[MCU_COLUMNS], header[MCU_ROWS], shift, layout)
    memory = np.zeros(size, np.uint8)
    status = decode_planes(decoder(), record, header, header[WIDTH], header[HEIGHT], shift, memory, layout, 0)
    planes = []
    for component in range(header[COMPONENTS]):
        offset, stride = layout[PLANE_OFFSET + component], layout[PLANE_STRIDE + component]
        rows, columns = plane_height(header, component, shift), plane_width(header, component, shift)
        planes.append(memory[offset : offset + rows * stride].reshape(rows, stride)[:, :columns])
    return status, planes
