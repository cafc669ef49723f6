"""Normalization of bytes on a CPU in one pass, for batches that are neither flipped, erased nor mixed on the way.

Tensor operations cast, scale by channel and interleave in passes of their own. A plain loop does it all at once, and
the compiler makes vector instructions of it; scaling and adding are one step there (an FMA), as in PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload

from kernels.device import Color

_NUMPY_TYPES = {torch.float32: torch.float32, torch.bfloat16: torch.uint16}  # NumPy has no bfloat16


def can_normalize(images: torch.Tensor, out: torch.Tensor) -> bool:
    """Tell whether `normalize_into` takes this: on a CPU, to float32 or bfloat16, channels_last."""
    channels_last = out.is_contiguous(memory_format=torch.channels_last)
    return images.device.type == "cpu" and channels_last and out.dtype in _NUMPY_TYPES


def normalize_into(images: torch.Tensor, scale: Color, offset: Color, out: torch.Tensor) -> None:
    """Write ``images * scale + offset``, computed in float32 and rounded once to the type of ``out``.

    Args:
        images: uint8 (N, 3, H, W), dense, planar or channels_last.
        scale, offset: of each channel.
        out: float32 or bfloat16 (N, 3, H, W), channels_last.
    """
    count, _, height, width = images.shape
    pixels = out.permute(0, 2, 3, 1).view(_NUMPY_TYPES[out.dtype]).view(count, 3 * height * width)
    color = np.asarray((scale, offset), np.float32)
    if images.is_contiguous():
        _normalize_planar(images.view(count, 3, height * width).numpy(), color, pixels.numpy())
    else:
        stored = images.permute(0, 2, 3, 1).view(count, 3 * height * width)
        _normalize_interleaved(stored.numpy(), color, pixels.numpy())


def _as_element(value: Any, of: np.ndarray) -> Any:
    """Round a float32 to an element of an array; an array of uint16 holds the bits of bfloat16. For compiled code."""


@overload(_as_element, inline="always")
def _compile_as_element(value: Any, of: Any) -> Any:
    def to_float32(value: Any, of: Any) -> Any:
        return value

    def to_bfloat16(value: Any, of: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        nearest_even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16((bits + nearest_even) >> np.uint32(16))

    return to_bfloat16 if of.dtype == types.uint16 else to_float32


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _normalize_planar(planes: np.ndarray, color: np.ndarray, out: np.ndarray) -> None:
    """Normalize and interleave planes, uint8 (n, 3, pixels), into rows (n, 3 * pixels)."""
    red_scale, green_scale, blue_scale = color[0]
    red_offset, green_offset, blue_offset = color[1]
    for image in range(planes.shape[0]):
        red, green, blue, row = planes[image, 0], planes[image, 1], planes[image, 2], out[image]
        for pixel in range(planes.shape[2]):
            row[3 * pixel] = _as_element(np.float32(red[pixel]) * red_scale + red_offset, row)
            row[3 * pixel + 1] = _as_element(np.float32(green[pixel]) * green_scale + green_offset, row)
            row[3 * pixel + 2] = _as_element(np.float32(blue[pixel]) * blue_scale + blue_offset, row)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _normalize_interleaved(stored: np.ndarray, color: np.ndarray, out: np.ndarray) -> None:
    """Normalize rows of interleaved pixels, uint8 (n, 3 * pixels)."""
    red_scale, green_scale, blue_scale = color[0]
    red_offset, green_offset, blue_offset = color[1]
    for image in range(stored.shape[0]):
        source, row = stored[image], out[image]
        for pixel in range(source.shape[0] // 3):
            row[3 * pixel] = _as_element(np.float32(source[3 * pixel]) * red_scale + red_offset, row)
            row[3 * pixel + 1] = _as_element(np.float32(source[3 * pixel + 1]) * green_scale + green_offset, row)
            row[3 * pixel + 2] = _as_element(np.float32(source[3 * pixel + 2]) * blue_scale + blue_offset, row)
