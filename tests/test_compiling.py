"""That compiling is announced, and nothing is said where there is none."""

from __future__ import annotations

import logging

import pytest
from numba import njit

from kernels.compiling import announced


def test_compiling_is_announced_before_and_summed_up_after(caplog: pytest.LogCaptureFixture) -> None:
    said_before: list[int] = []

    @njit
    def inner(number: int) -> int:
        return number + 1

    @njit
    def outer(number: int) -> int:
        return 2 * inner(number)

    with caplog.at_level(logging.INFO, "headrace"), announced("the sum", "a second"):
        assert outer(1) == 4
        said_before.append(len(caplog.messages))
    first, second = caplog.messages
    assert first == "the sum is compiled for this machine, once; that takes about a second"
    assert second.startswith("the sum was compiled in ")
    assert said_before == [1]

    caplog.clear()
    with caplog.at_level(logging.INFO, "headrace"), announced("the sum", "a second"):
        assert outer(2) == 6
    assert not caplog.messages


def test_only_what_is_compiled_within_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    @njit
    def negative(number: int) -> int:
        return -number

    with caplog.at_level(logging.INFO, "headrace"):
        with announced("nothing", "a second"):
            pass
        assert negative(1) == -1
    assert not caplog.messages
