"""The counter-based generator: known answers, independence of order, uniformity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.random import Stream, permutation, philox, uniform, words


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # The known-answer tests that Random123, the authors' library, ships for philox4x32-10.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    seed = np.uint64(key[0] | key[1] << 32)
    sample = np.uint64(counter[0] | counter[1] << 32)
    drawn = philox(seed, counter[2], sample, counter[3] >> 16, counter[3] & 0xFFFF)
    assert tuple(int(word) for word in drawn) == expected


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(1, 9), st.randoms())
def test_draws_depend_on_the_key_alone(seed: int, epoch: int, count: int, shuffler: object) -> None:
    keys = np.arange(20, dtype=np.uint64)
    shuffled = keys.copy()
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    together = uniform(seed, epoch, keys, Stream.CROP, count)
    assert np.array_equal(uniform(seed, epoch, shuffled, Stream.CROP, count), together[shuffled.astype(np.int64)])
    assert np.array_equal(uniform(seed, epoch, keys, Stream.CROP, 1), together[:, :1])
    assert ((together >= 0) & (together < 1)).all()


def test_streams_epochs_and_seeds_differ() -> None:
    keys = np.arange(1000)
    reference = uniform(0, 0, keys, Stream.CROP, 1)[:, 0]
    for other in (
        uniform(1, 0, keys, Stream.CROP, 1),
        uniform(0, 1, keys, Stream.CROP, 1),
        uniform(0, 0, keys, Stream.FLIP, 1),
    ):
        assert abs(np.corrcoef(reference, other[:, 0])[0, 1]) < 0.1


def test_uniform_is_uniform() -> None:
    draws = uniform(3, 7, np.arange(200_000), Stream.CROP, 4)
    histogram = np.stack([np.histogram(draws[:, lane], 20, (0, 1))[0] for lane in range(4)])
    chi_square = ((histogram - 10_000) ** 2 / 10_000).sum(axis=1)
    assert (chi_square < 43.8).all()  # 0.001 of 19 degrees of freedom


def test_words_use_both_halves() -> None:
    drawn = words(0, 0, np.arange(1000), Stream.ORDER)
    assert len(np.unique(drawn)) == 1000
    assert len(np.unique(drawn >> np.uint64(32))) > 990


@given(st.integers(0, 300), st.integers(0, 5))
def test_permutation_has_every_number_once(count: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permutation(9, epoch, count)), np.arange(count))


def test_permutation_moves_everything_about() -> None:
    order = permutation(0, 0, 10_000)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert not np.array_equal(order, permutation(0, 1, 10_000))
