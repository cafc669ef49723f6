"""YCbCr to RGB, on planes."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from kernels.vectors import BYTE, LANES, WORD, constant, intrinsic, is_flat, load, multiply_high, pointer, store

_KEPT_BITS = 6  # bits after the point of sums: 1.772 * 128 + 255 must fit in a signed word
# JFIF's equations (ITU-T T.871, section 7). A chroma value has 8 bits after the point and loses 16 by a high multiply.
_UNIT = 1 << (_KEPT_BITS + 16 - 8)
_RED_FROM_CR = round(1.402 * _UNIT)
_GREEN_FROM_CB = round(0.344136 * _UNIT)
_GREEN_FROM_CR = round(0.714136 * _UNIT)
_BLUE_FROM_CB = round(1.772 * _UNIT)


def _rgb(builder: Any, luma: Any, cb: Any, cr: Any) -> list[Any]:
    """Return the bytes of red, green and blue for vectors of 8.8 fixed-point words."""
    length = luma.type.count

    def times(chroma: Any, factor: int) -> Any:
        return multiply_high(builder, chroma, constant(WORD, factor, length), signed=True)

    def to_bytes(words: Any) -> Any:
        words = builder.ashr(words, constant(WORD, _KEPT_BITS, length))
        for sign, bound in (("<", 0), (">", 255)):
            limit = constant(WORD, bound, length)
            words = builder.select(builder.icmp_signed(sign, words, limit), limit, words)
        return builder.trunc(words, ir.VectorType(BYTE, length))

    zero = constant(WORD, 0x8000, length)
    cb, cr = builder.xor(cb, zero), builder.xor(cr, zero)  # subtracts 128
    luma = builder.lshr(luma, constant(WORD, 8 - _KEPT_BITS, length))
    luma = builder.add(luma, constant(WORD, 1 << (_KEPT_BITS - 1), length))  # rounds
    green = builder.sub(builder.sub(luma, times(cb, _GREEN_FROM_CB)), times(cr, _GREEN_FROM_CR))
    return [
        to_bytes(words)
        for words in (builder.add(luma, times(cr, _RED_FROM_CR)), green, builder.add(luma, times(cb, _BLUE_FROM_CB)))
    ]


def _conversion(arrays: list[Any], length: int) -> Any:
    """Return signature and code of an intrinsic that converts ``length`` pixels of six arrays, from an index on."""
    if not all(is_flat(a, types.uint8, types.uint16) for a in arrays[:3]) or not all(
        is_flat(a, types.uint8) for a in arrays[3:]
    ):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        components = []
        for position in range(3):
            source = pointer(context, builder, signature, arguments, position)
            if signature.args[position].dtype == types.uint8:
                samples = builder.zext(load(builder, source, arguments[6], BYTE, length), ir.VectorType(WORD, length))
                components.append(builder.shl(samples, constant(WORD, 8, length)))
            else:
                components.append(load(builder, source, arguments[6], WORD, length))
        for position, values in enumerate(_rgb(builder, *components), 3):
            store(builder, values, pointer(context, builder, signature, arguments, position), arguments[6])
        return context.get_dummy_value()

    return types.void(*arrays, types.intp), generate


@intrinsic
def _convert_lanes(context: Any, y: Any, cb: Any, cr: Any, red: Any, green: Any, blue: Any, index: Any) -> Any:
    return _conversion([y, cb, cr, red, green, blue], LANES)


@intrinsic
def _convert_pixel(context: Any, y: Any, cb: Any, cr: Any, red: Any, green: Any, blue: Any, index: Any) -> Any:
    return _conversion([y, cb, cr, red, green, blue], 1)


@njit(cache=True, nogil=True)
def ycbcr_to_rgb(
    y: np.ndarray, cb: np.ndarray, cr: np.ndarray, red: np.ndarray, green: np.ndarray, blue: np.ndarray
) -> None:
    """Convert pixels from JFIF's full-range YCbCr (ITU-R BT.601, ITU-T T.871) to RGB, within one level.

    Args:
        y, cb, cr: (at least N,), contiguous: uint8 levels, or uint16 in units of 1/256 level.
        red, green, blue: uint8 (N,) to fill, contiguous.
    """
    count = min(red.shape[0], green.shape[0], blue.shape[0], y.shape[0], cb.shape[0], cr.shape[0])
    if count >= LANES:
        for index in range(0, count, LANES):
            _convert_lanes(y, cb, cr, red, green, blue, min(index, count - LANES))  # at the end, some once more
    else:
        for index in range(count):
            _convert_pixel(y, cb, cr, red, green, blue, index)
