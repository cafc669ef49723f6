"""Measurement in turns: what counts, what does not, and that nothing is left behind.

The cells run in fresh processes that import this module, which is why it imports no torch.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import threading
import time
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

import bench.measure
from bench import resources
from bench.measure import Batches, Cell, CellError, Measurement, Ratio, Round, Step, _take_turn, measure
from bench.resources import MEGABYTE, CoresUsage, CoresWatch, tree_cpu_seconds, tree_peak_mb, tree_resident_mb


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _burn(stop: float) -> None:
    while time.monotonic() < stop:
        pass


def idle(marker: Path | None = None) -> Batches:
    try:
        while True:
            time.sleep(0.01)
            yield 4
    finally:
        if marker is not None:
            marker.write_text("closed")


def burning_child() -> Batches:
    """Deliver while a child process keeps a core busy during each batch."""
    while True:
        child = multiprocessing.Process(target=_burn, args=(time.monotonic() + 0.1,))
        child.start()
        child.join()
        yield 4


def reading_ahead(seconds: float, depth: int) -> Batches:
    """Deliver from a queue that a thread fills with a batch of one image at intervals."""
    ready: queue.Queue[int] = queue.Queue(depth)

    def produce() -> None:
        while True:
            time.sleep(seconds)
            ready.put(1)

    threading.Thread(target=produce, daemon=True).start()
    while True:
        yield ready.get()


def failing(after: int) -> Batches:
    for _ in range(after):
        yield 1
    raise ValueError("the reservoir is dry")


def dying() -> Batches:
    yield 1
    os._exit(7)


def test_cells_are_measured_in_turns_and_closed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    cells = [Cell("idle", partial(idle, marker)), Cell("burning", burning_child)]
    resting, busy = measure(cells, rounds=2, seconds=0.2)

    assert marker.read_text() == "closed"
    assert not multiprocessing.active_children()
    for measurement in (resting, busy):
        assert len(measurement.rounds) == 2
        assert all(turn.images > 0 and turn.images % 4 == 0 and turn.seconds >= 0.2 for turn in measurement.rounds)
        assert 0 <= measurement.foreign_cpu.min <= measurement.foreign_cpu.max
        assert measurement.peak_rss_mb > 1
        assert measurement.seconds_to_first_batch > 0
    # A child that ended within the turn counts; sleeping does not.
    assert busy.cpu_ms_per_image > resting.cpu_ms_per_image


def test_what_a_queue_held_ready_does_not_count() -> None:
    interval, depth = 0.05, 20
    (measured,) = measure([Cell("reading ahead", partial(reading_ahead, interval, depth))], rounds=2, seconds=0.3)
    # A full queue would add 20 images to the 6 that can be made in a turn.
    assert all(turn.images < turn.seconds / interval + depth / 2 for turn in measured.rounds)


class Clock:
    """Time that passes only in what is simulated."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def training(clock: Clock, load_seconds: float, step_seconds: float, processes: int, depth: int) -> Batches:
    """Train on batches of one image, made in turns by processes that are asked for so many ahead, each."""
    taken: list[float] = []
    made: list[float] = []
    untrained = False
    for number in itertools.count():
        ahead, last = number - processes * depth, number - processes
        begun = max(taken[ahead] if ahead >= 0 else 0.0, made[last] if last >= 0 else 0.0)
        made.append(begun + load_seconds)
        waited = max(0.0, made[-1] - clock.now)
        taken.append(clock.now + waited)
        clock.now = taken[-1] + (0.0 if untrained else step_seconds)
        untrained = bool((yield Step(1, waited)))


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 32])
@pytest.mark.parametrize(("load_seconds", "step_seconds"), [(0.10, 0.08), (0.10, 0.02), (0.02, 0.08), (0.05, 0.08)])
def test_a_turn_of_training_does_not_depend_on_how_deep_the_queues_are(
    monkeypatch: pytest.MonkeyPatch, load_seconds: float, step_seconds: float, depth: int, processes: int
) -> None:
    clock = Clock()
    monkeypatch.setattr(bench.measure, "time", clock)
    monkeypatch.setattr(bench.measure, "tree_cpu_seconds", lambda: 0.0)
    load_seconds *= processes
    batches = training(clock, load_seconds, step_seconds, processes, depth)
    cell = Cell("training", lambda: batches, processes * depth + 1, processes)
    next(batches)
    for _ in range(2):
        clock.sleep(100.0)  # in which the queues become full
        turn = _take_turn(cell, batches, 2.0)
        truth = max(load_seconds / processes, step_seconds)
        assert turn.images % processes == 0
        assert turn.images_per_second == pytest.approx(1 / truth, rel=0.02)
        assert turn.wait_seconds / turn.seconds == pytest.approx(1 - step_seconds / truth, abs=0.02)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell("early", partial(failing, 0)), "early failed:.*the reservoir is dry"),
        (Cell("late", partial(failing, 5)), "late failed:.*the reservoir is dry"),
        (Cell("dying", dying), "dying: its process ended with code 7"),
    ],
    ids=["before the first batch", "later", "by its process's death"],
)
def test_a_failing_cell_is_named_and_the_others_are_closed(cell: Cell, message: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(CellError, match=f"(?s){message}"):
        measure([Cell("idle", partial(idle, marker)), cell], rounds=1, seconds=0.1, warm_up=0.1)
    assert marker.read_text() == "closed"
    assert not multiprocessing.active_children()


def test_ratios_are_taken_round_by_round() -> None:
    def measurement(*rates: float) -> Measurement:
        return Measurement(0.0, tuple(Round(int(rate), 1.0, 0.5, 0.0, 1.0) for rate in rates))

    ratio = Ratio.between(measurement(100, 300, 200), measurement(100, 100, 100))
    assert (ratio.of_medians, ratio.min, ratio.max) == (2.0, 1.0, 3.0)


def test_disturbed_rounds_are_counted() -> None:
    quiet, loud = Round(8, 1.0, 0.5, 0.02, 1.0), Round(8, 1.0, 0.5, 0.4, 1.0)
    assert Measurement(0.0, (quiet, loud, loud)).disturbed_rounds == 2


STAT = """cpu  900 0 0 900 0 0 0 0 0 0
cpu0 {busy} 0 0 100 0 0 0 0 0 0
cpu2 100 10 20 900 5 1 2 {stolen} 0 0
intr 12345
"""


def test_only_the_cores_that_may_be_used_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stat = Clock(), tmp_path / "stat"
    monkeypatch.setattr(resources, "time", clock)
    monkeypatch.setattr(resources, "tree_cpu_seconds", lambda: clock.now / 2)
    monkeypatch.setattr(resources, "_STAT", stat)
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: {2})
    monkeypatch.setattr(resources.os, "sysconf", lambda _: 100)
    stat.write_text(STAT.format(busy=0, stolen=0))
    watch, all_cores = CoresWatch(), CoresWatch([0, 2])
    clock.sleep(2.0)
    stat.write_text(STAT.format(busy=200, stolen=150))  # ticks: a core busy for two seconds, one stolen for 1.5
    assert watch.usage() == CoresUsage(1.0, 1.5, 2.0)
    assert watch.usage().foreign == 0.25
    assert all_cores.usage() == CoresUsage(1.0, 3.5, 4.0)
    assert (watch.usage() + CoresUsage(1.0, 2.5, 2.0)).foreign == 0.5
    assert CoresUsage().foreign == 0.0


def hold(held_mb: int, keep_mb: int, ready: Event, end: Event) -> None:
    held = bytearray(b"x") * int(held_mb * MEGABYTE)
    kept = bytearray(b"x") * int(keep_mb * MEGABYTE)
    del held
    ready.set()
    end.wait()
    assert kept


def test_memory_that_was_given_back_counts_in_the_peak() -> None:
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    before = tree_resident_mb()
    holder = context.Process(target=hold, args=(300, 10, ready, end))
    holder.start()
    ready.wait()
    assert tree_resident_mb() < before + 200
    assert tree_peak_mb() > before + 300
    end.set()
    holder.join()


def test_children_count_while_they_live_and_after() -> None:
    before, resident = tree_cpu_seconds(), tree_resident_mb()
    sleeper = multiprocessing.get_context("spawn").Process(target=_sleep, args=(60,))
    burner = multiprocessing.get_context("fork").Process(target=_burn, args=(time.monotonic() + 0.3,))
    sleeper.start()
    burner.start()
    burner.join()
    assert tree_cpu_seconds() > before
    assert tree_resident_mb() > resident
    sleeper.kill()
    sleeper.join()
