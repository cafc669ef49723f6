"""XXH64, the checksum of packed records, in compiled code that leaves the GIL alone.

After the public specification by Yann Collet (xxHash, ``doc/xxhash_spec.md``). It is not cryptographic: it finds
damage, not malice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils

intrinsic: Any = extending.intrinsic  # its own type counts the context among the arguments of a call

_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5 = np.uint64(0x27D4EB2F165667C5)


@intrinsic
def _load(context: Any, data: Any, at: Any, word: Any) -> Any:
    """Return ``data[at:]`` (uint8, contiguous) read as one little-endian ``word``, aligned or not, unchecked."""
    if not isinstance(data, types.Array) or data.dtype != types.uint8 or not isinstance(word, types.NumberClass):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type, at_type, _ = signature.args
        array = context.make_array(array_type)(context, builder, arguments[0])
        place = context.cast(builder, arguments[1], at_type, types.intp)
        pointer = cgutils.get_item_pointer(context, builder, array_type, array, [place], wraparound=False)
        loaded = builder.load(builder.bitcast(pointer, ir.IntType(word.dtype.bitwidth).as_pointer()))
        loaded.align = 1
        return loaded

    return word.dtype(data, at, word), generate


@njit(nogil=True, inline="always")
def _rotated(value: np.uint64, bits: int) -> np.uint64:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@njit(nogil=True, inline="always")
def _mixed(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotated(lane + word * _PRIME_2, 31) * _PRIME_1


@njit(nogil=True, inline="always")
def _merged(digest: np.uint64, lane: np.uint64) -> np.uint64:
    return (digest ^ _mixed(np.uint64(0), lane)) * _PRIME_1 + _PRIME_4


@njit(nogil=True, cache=True)
def xxh64(data: np.ndarray, seed: int = 0) -> np.uint64:
    """Return the XXH64 of some bytes.

    Args:
        data: uint8 (n,), contiguous, of any alignment.
        seed: 0 to 2**64 - 1.

    Returns:
        uint64. Called from Python, numba gives a Python int.
    """
    length = len(data)
    key = np.uint64(seed)
    at = 0
    if length >= 32:
        lane_1 = key + _PRIME_1 + _PRIME_2
        lane_2 = key + _PRIME_2
        lane_3 = key
        lane_4 = key - _PRIME_1
        while at + 32 <= length:
            lane_1 = _mixed(lane_1, _load(data, at, np.uint64))
            lane_2 = _mixed(lane_2, _load(data, at + 8, np.uint64))
            lane_3 = _mixed(lane_3, _load(data, at + 16, np.uint64))
            lane_4 = _mixed(lane_4, _load(data, at + 24, np.uint64))
            at += 32
        digest = _rotated(lane_1, 1) + _rotated(lane_2, 7) + _rotated(lane_3, 12) + _rotated(lane_4, 18)
        digest = _merged(_merged(_merged(_merged(digest, lane_1), lane_2), lane_3), lane_4)
    else:
        digest = key + _PRIME_5
    digest += np.uint64(length)
    while at + 8 <= length:
        digest ^= _mixed(np.uint64(0), _load(data, at, np.uint64))
        digest = _rotated(digest, 27) * _PRIME_1 + _PRIME_4
        at += 8
    if at + 4 <= length:
        digest ^= np.uint64(_load(data, at, np.uint32)) * _PRIME_1
        digest = _rotated(digest, 23) * _PRIME_2 + _PRIME_3
        at += 4
    while at < length:
        digest ^= np.uint64(data[at]) * _PRIME_5
        digest = _rotated(digest, 11) * _PRIME_1
        at += 1
    digest = (digest ^ (digest >> np.uint64(33))) * _PRIME_2
    digest = (digest ^ (digest >> np.uint64(29))) * _PRIME_3
    return digest ^ (digest >> np.uint64(32))
