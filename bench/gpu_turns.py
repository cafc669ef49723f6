"""Interleaved rates within one process: its cells share one CUDA context, which costs seconds and memory to make.

Cells are measured in turn, then all again (A B A B ...), and stay open in between, their workers blocked behind full
queues. A turn begins with a lead-in that drains these queues, the clock is read when the device has finished, and the
next one waits until the queues are full again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import torch

from bench.gpu_process import Job, Reporter
from bench.measure import Spread
from bench.resources import tree_cpu_seconds

Images = Generator[int, None, None]
"""Yields the number of images of each batch when it was asked of the device, without end."""

_ROUNDS = 3
_LEAD_IN = 0.6
_LEAST_SECONDS = 1.0  # of a turn
_QUIET_INTERVAL_SECONDS = 0.1
_QUIET_CORES = 0.3  # in use by all processes of the section: no more than what waits
_QUIET_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class Turns:
    """How long and how often each cell is measured.

    Attributes:
        seconds: length of a turn, without its lead-in.
        rounds: turns of each cell.
        lead_in: seconds of each turn that do not count.
    """

    seconds: float
    rounds: int
    lead_in: float = 0.0

    @classmethod
    def within(cls, seconds: float, cells: int, shadow: bool) -> Turns:
        """Return turns for so many cells that take about so many seconds together, and more if they must."""
        if shadow:
            return cls(0.05, 2)
        each = 0.75 * seconds / (max(1, cells) * _ROUNDS)  # opening them takes its time as well
        return cls(min(3.0, max(_LEAST_SECONDS, each - _LEAD_IN)), _ROUNDS, _LEAD_IN)


def least_seconds(cells: int, shadow: bool) -> float:
    """Return how long so many cells take at the least."""
    per_round = _LEAD_IN + _LEAST_SECONDS + _QUIET_INTERVAL_SECONDS
    return 0.0 if shadow else cells * (_LEAD_IN + _ROUNDS * per_round)


def rates(
    cells: Mapping[str, Callable[[], Images]], turns: Turns, job: Job, report: Reporter
) -> dict[str, list[float]]:
    """Measure cells in turns.

    Args:
        cells: what opens each of them, by name. One that fails is reported and costs nothing else.
        turns: how long and how often.
        job: names the device.
        report: takes what failed or was left out.

    Returns:
        Images per second of each round, of the cells that came through, in their order.
    """
    found: dict[str, list[float]] = {name: [] for name in cells}
    running: dict[str, Images] = {}
    with ExitStack() as stack:

        def open_cell(name: str) -> None:
            batches = stack.enter_context(closing(cells[name]()))
            _deliver(batches, turns.lead_in, job)
            running[name] = batches

        def take_turn(name: str) -> None:
            _deliver(running[name], turns.lead_in, job)
            images, seconds = _deliver(running[name], turns.seconds, job)
            found[name].append(images / seconds)
            if not job.is_shadow:
                _wait_until_quiet()

        for name in cells:
            report.attempt(name, partial(open_cell, name))
        for _ in range(turns.rounds):
            for name in list(running):
                if not report.attempt(name, partial(take_turn, name)):
                    del running[name]
    return {name: found[name] for name in running}


def _deliver(batches: Images, seconds: float, job: Job) -> tuple[int, float]:
    """Take batches for so many seconds; return their images, and the time until the device was done with them."""
    synchronize(job)
    images, begin = 0, time.perf_counter()
    while True:
        images += next(batches)
        if time.perf_counter() - begin >= seconds:
            break
    synchronize(job)
    return images, time.perf_counter() - begin


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
