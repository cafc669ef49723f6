"""Counter-based random numbers: every draw is a pure function of (seed, epoch, key, stream).

The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11).
It has no state, so the draws of a sample do not depend on the worker that makes them, on the batch they are made in,
or on whether a run was interrupted before.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numba import njit

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_TO_UNIT = 1.0 / 4294967296.0


class Stream(IntEnum):
    """What a draw is for. Two streams of one sample are independent; a number once given is never reused."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    REPLACEMENT = 3
    BALANCE = 4
    SPLIT = 5
    SHIFT = 6
    ROTATION = 7
    COLOR = 8
    POLICY = 9
    ERASING = 10
    BLUR = 11
    GRAYSCALE = 12
    MIXING = 13
    DEMO = 14


@njit(cache=True, nogil=True, inline="always")
def philox(
    seed: np.uint64 | int, epoch: int, key: np.uint64 | int, stream: int, block: int
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Return four independent 32-bit words (as uint64) for one counter value.

    The key of the generator is the 64-bit ``seed``; the counter is ``key`` (64 bits), ``epoch`` (32 bits) and
    ``stream`` and ``block`` (16 bits each).
    """
    key_0 = np.uint64(seed) & _LOW
    key_1 = np.uint64(seed) >> _SHIFT
    word_0 = np.uint64(key) & _LOW
    word_1 = np.uint64(key) >> _SHIFT
    word_2 = np.uint64(epoch) & _LOW
    word_3 = ((np.uint64(stream) << np.uint64(16)) | np.uint64(block)) & _LOW
    for _ in range(10):
        product_0 = _MULTIPLIER_0 * word_0
        product_1 = _MULTIPLIER_1 * word_2
        word_0, word_1, word_2, word_3 = (
            (product_1 >> _SHIFT) ^ word_1 ^ key_0,
            product_1 & _LOW,
            (product_0 >> _SHIFT) ^ word_3 ^ key_1,
            product_0 & _LOW,
        )
        key_0 = (key_0 + _WEYL_0) & _LOW
        key_1 = (key_1 + _WEYL_1) & _LOW
    return word_0, word_1, word_2, word_3


@njit(cache=True, nogil=True)
def _fill_uniform(seed: np.uint64, epoch: int, keys: np.ndarray, stream: int, out: np.ndarray) -> None:
    columns = out.shape[1]
    for row in range(keys.shape[0]):
        for block in range((columns + 3) // 4):
            words = philox(seed, epoch, keys[row], stream, block)
            for lane in range(min(4, columns - 4 * block)):
                out[row, 4 * block + lane] = np.float64(words[lane]) * _TO_UNIT


def uniform(seed: int, epoch: int, keys: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Return float64 draws in [0, 1), shape (len(keys), count), one row for each key.

    Args:
        seed: the run's seed, 0 <= seed < 2**64.
        epoch: 0 <= epoch < 2**32.
        keys: uint64 or int64 array of sample keys.
        stream: what the draws are for, of Stream or a number below 65,536 that is none of its own.
        count: draws for each key, at most 262,144.
    """
    out = np.empty((len(keys), count), np.float64)
    _fill_uniform(np.uint64(seed), epoch, np.ascontiguousarray(keys, np.uint64), int(stream), out)
    return out


@njit(cache=True, nogil=True)
def _fill_words(seed: np.uint64, epoch: int, keys: np.ndarray, stream: int, block: int, out: np.ndarray) -> None:
    for row in range(keys.shape[0]):
        high, low, _, _ = philox(seed, epoch, keys[row], stream, block)
        out[row] = (high << _SHIFT) | low


def words(seed: int, epoch: int, keys: np.ndarray, stream: int, block: int = 0) -> np.ndarray:
    """Return one uint64 word for each key, shape (len(keys),)."""
    out = np.empty(len(keys), np.uint64)
    _fill_words(np.uint64(seed), epoch, np.ascontiguousarray(keys, np.uint64), int(stream), block, out)
    return out


def permutation(seed: int, epoch: int, count: int, stream: Stream = Stream.ORDER) -> np.ndarray:
    """Return a random permutation of range(count) as int64: the samples sorted by a random word each."""
    return np.argsort(words(seed, epoch, np.arange(count, dtype=np.uint64), stream), kind="stable")
