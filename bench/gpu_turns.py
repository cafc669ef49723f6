"""Interleaved rates within one process: its cells share one CUDA context, which costs seconds and memory to make.

Cells are measured in turn, then all again (A B A B ...), and stay open in between, their workers blocked behind full
queues. A turn begins with a lead-in that takes all that these queues can hold, without the work on it that is measured:
otherwise a model would be fed from them for seconds, whatever the loader can do. The clock is read when the device has
finished, and the next turn waits until the queues are full again.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.gpu_process import Job, Reporter
from bench.measure import Spread
from bench.resources import tree_cpu_seconds

_ROUNDS = 3
_MEASURED = 0.75  # of the time; opening cells and waiting until they are quiet takes the rest
_LEAD_IN = 0.6
_FIRST_BATCHES, _SHADOW_FIRST_BATCHES = 3, 1  # worked on before the clock is read
_LEAST_SECONDS, _MOST_SECONDS = 1.5, 3.0  # of a turn
_BURSTS = 3  # in a turn, at the least
_STRETCH = 3.0  # how much longer a turn may be for them
_GOOD_SECONDS = 2.0
_OPENING_SECONDS = 2.0  # of a cell, at the least
_QUIET_INTERVAL_SECONDS = 0.1
_QUIET_CORES = 0.3  # in use by all processes of the section: no more than what waits
_QUIET_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class Cell:
    """Something to measure.

    Attributes:
        open: starts it. The generator yields batches as they were asked of the device, without end.
        use: does with a batch what is measured; returns its number of images.
        held: batches that its queues can hold.
        burst: batches that may arrive together, as those of its worker processes do.
    """

    open: Callable[[], Generator[Any, None, None]]
    use: Callable[[Any], int] = len
    held: int = 0
    burst: int = 1


@dataclass(frozen=True)
class Turns:
    """How long and how often each cell is measured.

    Attributes:
        seconds: length of a turn, without its lead-in; it is longer where it has to hold several bursts.
        rounds: turns of each cell.
        lead_in: seconds of each turn that do not count.
        total: seconds that all of them may take, opening the cells included. The first round is taken in any case.
    """

    seconds: float
    rounds: int
    lead_in: float = 0.0
    total: float = math.inf

    @classmethod
    def within(cls, seconds: float, cells: int, shadow: bool) -> Turns:
        """Return turns for so many cells that take about so many seconds together."""
        if shadow:
            return cls(0.05, 2)
        each = _MEASURED * seconds / (max(1, cells) * _ROUNDS)
        return cls(min(_MOST_SECONDS, max(_LEAST_SECONDS, each - _LEAD_IN)), _ROUNDS, _LEAD_IN, seconds)


def least_seconds(cells: int, shadow: bool) -> float:
    """Return how long it takes at the least to open so many cells and measure them once."""
    turn = _LEAD_IN + _LEAST_SECONDS + _QUIET_INTERVAL_SECONDS
    return 0.0 if shadow else cells * (_OPENING_SECONDS + turn)


def good_seconds(cells: int, shadow: bool) -> float:
    """Return how long so many cells take in all rounds, in turns of a good length."""
    return 0.0 if shadow else cells * _ROUNDS * (_LEAD_IN + _GOOD_SECONDS) / _MEASURED


def rates(cells: Mapping[str, Cell], turns: Turns, job: Job, report: Reporter) -> Iterator[dict[str, list[float]]]:
    """Measure cells in turns.

    A round is begun where it can end in time, to go by the one before it.

    Args:
        cells: by name. One that fails is reported and costs nothing else.
        turns: how long and how often.
        job: names the device.
        report: takes what failed or was left out.

    Yields:
        After each round the images per second of each round so far, of the cells that have come through all of them, in
        their order. A round that no cell has come through ends it.
    """
    end = time.monotonic() + turns.total
    found: dict[str, list[float]] = {name: [] for name in cells}
    running: dict[str, Iterator[Any]] = {}
    with ExitStack() as stack:

        def open_cell(name: str) -> None:
            batches = stack.enter_context(closing(cells[name].open()))
            cells[name].use(next(batches))
            synchronize(job)
            running[name] = batches

        def take_turn(name: str) -> None:
            found[name].append(_rate(cells[name], running[name], turns, job))
            if not job.is_shadow:
                _wait_until_quiet()

        for name in cells:
            report.attempt(name, partial(open_cell, name), needs=turns.lead_in + turns.seconds)
        for number in range(turns.rounds):
            begin = time.monotonic()
            for name in list(running):
                needs = 0.0 if number else turns.lead_in + turns.seconds
                if not report.attempt(name, partial(take_turn, name), needs):
                    del running[name]
            if not running:
                return
            yield {name: list(found[name]) for name in cells if name in running}
            took = time.monotonic() - begin
            if min(end - time.monotonic(), report.remaining) < took:
                return


def _rate(cell: Cell, batches: Iterator[Any], turns: Turns, job: Job) -> float:
    """Return the images per second of one turn."""
    synchronize(job)
    begin = time.perf_counter()
    for taken in itertools.count(1):
        next(batches)
        if taken >= cell.held and time.perf_counter() - begin >= turns.lead_in:
            break
    for _ in range(_SHADOW_FIRST_BATCHES if job.is_shadow else _FIRST_BATCHES):
        cell.use(next(batches))
    synchronize(job)
    images, begin = 0, time.perf_counter()
    for taken in itertools.count(1):
        images += cell.use(next(batches))
        elapsed = time.perf_counter() - begin
        is_whole = taken % cell.burst == 0 and taken >= _BURSTS * cell.burst
        if elapsed >= turns.seconds and (is_whole or elapsed >= _STRETCH * turns.seconds):
            break
    synchronize(job)
    return images / (time.perf_counter() - begin)


def _wait_until_quiet() -> None:
    """Wait until this process and its children do nothing, or for a few seconds."""
    deadline = time.perf_counter() + _QUIET_TIMEOUT_SECONDS
    spent = tree_cpu_seconds()
    while time.perf_counter() < deadline:
        time.sleep(_QUIET_INTERVAL_SECONDS)
        before, spent = spent, tree_cpu_seconds()
        if spent - before < _QUIET_CORES * _QUIET_INTERVAL_SECONDS:
            return


def synchronize(job: Job) -> None:
    """Wait for the device."""
    if job.device == "cuda":
        torch.cuda.synchronize()


def ratio(rate: list[float], other: list[float]) -> Spread:
    """Return how fast one cell is relative to another, by round."""
    return Spread.of([mine / theirs for mine, theirs in zip(rate, other, strict=True)])
