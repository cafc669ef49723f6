"""XXH64 against published values and the reference implementation."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from kernels.checksum import xxh64
from kernels.memory import bytes_at


def digest(data: bytes, seed: int = 0) -> int:
    return int(xxh64(np.frombuffer(data, np.uint8), np.uint64(seed)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_published_values(data: bytes, expected: int) -> None:
    assert digest(data) == expected
    assert int(xxh64(np.frombuffer(data, np.uint8))) == expected


@given(st.binary(max_size=300), st.integers(0, 2**64 - 1))
def test_equals_the_reference(data: bytes, seed: int) -> None:
    assert digest(data, seed) == xxhash.xxh64_intdigest(data, seed)


def test_every_length_and_alignment() -> None:
    data = np.random.default_rng(0).integers(0, 256, 200, dtype=np.uint8)
    for start in range(16):
        for stop in range(start, 140):
            part = data[start:stop]
            assert int(xxh64(part)) == xxhash.xxh64_intdigest(part.tobytes())


def test_compiled_code_checks_memory_by_its_address() -> None:
    @njit
    def compiled(address: int, length: int) -> np.uint64:
        return xxh64(bytes_at(address, length))

    data = np.arange(100_000, dtype=np.uint32).view(np.uint8)
    assert int(compiled(data.ctypes.data + 1, 50_001)) == xxhash.xxh64_intdigest(data[1:50_002].tobytes())


def test_any_flipped_bit_shows() -> None:
    data = np.random.default_rng(1).integers(0, 256, 97, dtype=np.uint8)
    whole = int(xxh64(data))
    for bit in range(8 * len(data)):
        flipped = data.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        assert int(xxh64(flipped)) != whole
