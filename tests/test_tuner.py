"""How many workers training gets: the search on constructed machines, and real loaders that change in between."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import tuner
from engine.tuner import GAIN_WANTED, WAIT_TOLERATED, Climb, Tuner, Window
from loaders.bad_samples import BadSamples
from loaders.contract import Batch, Loader
from loaders.dataset import ImageDataset
from loaders.plan import EpochPlan, View
from loaders.registry import create_loader
from loaders.transfer import Transfer
from tests.images import dataset_of, photos


@dataclass(frozen=True)
class Machine:
    """Training with a device of its own.

    Attributes:
        cores: what workers run on.
        seconds: of a worker, for an image.
        step: seconds of the device, for an image.
        disk: images per second that it can deliver, however many workers there are.
        crowd: workers beyond these get in each other's way, so that each of them takes as much from the rate as it
            would give.
    """

    cores: int
    seconds: float
    step: float
    disk: float = math.inf
    crowd: int = 1000

    def seen_with(self, workers: int) -> Window:
        helpful = max(1, min(workers, self.cores, 2 * self.crowd - workers))
        rate = min(helpful / self.seconds, 1 / self.step, self.disk)
        return Window(rate, max(0.0, 1 - rate * self.step))

    @property
    def best(self) -> float:
        return max(self.seen_with(number).rate for number in range(1, self.cores + 1))

    def needed(self, tolerance: float) -> int:
        """Return the fewest workers within a fraction of the best rate."""
        numbers = range(1, self.cores + 1)
        return next(n for n in numbers if self.seen_with(n).rate >= self.best * (1 - tolerance))


def climbed(machine: Machine, start: int, disturbed: Callable[[Window], Window] = lambda seen: seen) -> tuple[int, int]:
    """Return where a search ends, and after how many windows."""
    climb, windows = Climb(start, machine.cores), 0
    while not climb.settled:
        climb.observe(disturbed(machine.seen_with(climb.workers)))
        assert 1 <= climb.workers <= max(machine.cores, start)
        windows += 1
        assert windows <= 4 * machine.cores + 4
    return climb.workers, windows


machines = st.builds(
    Machine,
    cores=st.integers(1, 32),
    seconds=st.floats(1e-4, 1e-2),
    step=st.floats(1e-5, 1e-1),
    disk=st.floats(100, 1e5) | st.just(math.inf),
)


@given(machines, st.integers(1, 32))
def test_the_fewest_workers_that_keep_up(machine: Machine, start: int) -> None:
    workers, _ = climbed(machine, min(start, machine.cores))
    assert machine.seen_with(workers).rate >= machine.best * (1 - 2 * WAIT_TOLERATED - GAIN_WANTED)
    assert workers <= machine.needed(WAIT_TOLERATED)


@given(machines.filter(lambda machine: machine.cores <= 4), st.integers(1, 4), st.randoms(use_true_random=False))
def test_noise_within_what_repeats_scatter_misleads_by_no_more_than_itself(
    machine: Machine, start: int, random: random.Random
) -> None:
    def scattered(seen: Window) -> Window:
        rate = seen.rate * random.uniform(0.98, 1.0)
        return Window(rate, max(0.0, 1 - rate * machine.step))

    workers, _ = climbed(machine, min(start, machine.cores), scattered)
    assert machine.seen_with(workers).rate >= machine.best * 0.85
    assert workers <= machine.needed(0.0)


def decisions(climb: Climb, *seen: tuple[float, float]) -> list[tuple[int, str] | None]:
    found = [climb.observe(Window(rate, waiting)) for rate, waiting in seen]
    return [None if decision is None else (decision.workers, decision.reason) for decision in found]


def test_from_one_worker_the_number_needed_is_found_at_once() -> None:
    machine = Machine(cores=32, seconds=0.004, step=1 / 2900)  # 11.6 workers
    assert climbed(machine, 1) == (12, 2)


def test_a_slow_model_is_looked_at_twice_and_keeps_one_worker() -> None:
    climb = Climb(1, 8)
    assert decisions(climb, (88, 0.02), (86, 0.05)) == [None, (1, "2% of the time waited for data at 88 images/s")]
    assert climb.settled


def test_a_first_window_in_which_nothing_waited_by_chance_decides_nothing() -> None:
    climb = Climb(1, 2)
    assert decisions(climb, (90, 0.02), (100, 0.2)) == [None, (2, "20% of the time waited for data at 100 images/s")]


def test_a_gain_that_is_clear_needs_one_look() -> None:
    climb = Climb(1, 2)
    assert decisions(climb, (300, 0.6), (420, 0.4)) == [
        (2, "60% of the time waited for data at 300 images/s"), (2, "2 gave 420 images/s in place of 300")
    ]  # fmt: skip
    assert climb.settled


def test_workers_that_slow_the_model_down_do_not_stay() -> None:
    climb = Climb(1, 2)
    assert decisions(climb, (300, 0.4), (306, 0.1), (309, 0.1), (299, 0.4)) == [
        (2, "40% of the time waited for data at 300 images/s"),
        None,
        (1, "2 gave 309 images/s in place of 300"),
        (1, "2 gave 309 images/s in place of 300"),
    ]
    assert climb.settled


def test_a_disturbed_window_with_more_workers_is_made_up_for() -> None:
    climb = Climb(1, 2)
    assert decisions(climb, (300, 0.4), (290, 0.4), (360, 0.3), (301, 0.4), (358, 0.3)) == [
        (2, "40% of the time waited for data at 300 images/s"),
        None,
        (1, "2 gave 360 images/s in place of 300; 1 once more"),
        (2, "2 gave 360 images/s in place of 301"),
        (2, "2 gave 360 images/s in place of 301"),
    ]
    assert climb.settled


def test_a_disturbed_first_window_makes_more_workers_look_good_only_once() -> None:
    climb = Climb(1, 2)
    assert decisions(climb, (250, 0.4), (300, 0.3), (298, 0.3), (302, 0.3), (297, 0.3)) == [
        (2, "40% of the time waited for data at 250 images/s"),
        (1, "2 gave 300 images/s in place of 250; 1 once more"),
        (2, "2 gave 300 images/s in place of 298; 2 once more"),
        (1, "2 gave 302 images/s in place of 298"),
        (1, "2 gave 302 images/s in place of 298"),
    ]
    assert climb.settled


def test_a_gain_that_the_waiting_does_not_explain_is_looked_at_again() -> None:
    climb = Climb(1, 2)
    assert decisions(climb, (200, 0.1), (300, 0.0), (303, 0.1), (301, 0.0), (302, 0.1)) == [
        (2, "10% of the time waited for data at 200 images/s"),
        (1, "2 gave 300 images/s in place of 200; 1 once more"),
        (2, "2 gave 300 images/s in place of 303; 2 once more"),
        (1, "2 gave 301 images/s in place of 303"),
        (1, "2 gave 301 images/s in place of 303"),
    ]
    assert climb.settled


def test_a_loss_that_more_workers_cannot_have_brought_is_looked_at_again() -> None:
    climb = Climb(1, 2)
    assert decisions(climb, (300, 0.5), (200, 0.4), (400, 0.3)) == [
        (2, "50% of the time waited for data at 300 images/s"),
        None,
        (2, "2 gave 400 images/s in place of 300"),
    ]
    assert climb.settled


def test_a_search_beside_which_another_program_starts_begins_anew() -> None:
    """With 2 workers it only looks slower: back at 1 it is slower still."""
    climb = Climb(1, 2)
    assert decisions(climb, (560, 0.5), (440, 0.4), (430, 0.4), (290, 0.5), (440, 0.4)) == [
        (2, "50% of the time waited for data at 560 images/s"),
        None,
        (1, "2 gave 440 images/s in place of 560"),
        (2, "50% of the time waited for data at 290 images/s"),
        (2, "2 gave 440 images/s in place of 290"),
    ]
    assert climb.settled


def test_a_search_ends_on_the_most_restless_machine() -> None:
    climb, windows = Climb(1, 2), 0
    while not climb.settled:
        windows += 1
        climb.observe(Window(1000 * 0.8**windows, 0.4))
    assert windows <= 12


def test_a_jump_that_brought_less_than_its_workers_promised_is_taken_back_as_far_as_it_can_be() -> None:
    machine = Machine(cores=16, seconds=0.01, step=1e-4, disk=400)  # 4 workers read as fast as the disk
    climb, numbers = Climb(1, machine.cores), [1]
    while not climb.settled:
        climb.observe(machine.seen_with(climb.workers))
        numbers.append(climb.workers)
    assert numbers == [1, 16, 16, 4, 4]


@pytest.mark.parametrize("cores", [8, 16, 32, 64])
@pytest.mark.parametrize("crowd", [2, 3, 4, 6])
def test_between_one_worker_and_a_jump_that_lost_better_ones_are_found(cores: int, crowd: int) -> None:
    """As on a disk that answers some readers at once, and is slowed down by more of them."""
    machine = Machine(cores=cores, seconds=0.01, step=0.0005, crowd=crowd)
    workers, windows = climbed(machine, 1)
    assert machine.seen_with(workers).rate >= machine.best * 0.65, workers
    assert windows <= 16


def test_from_many_workers_half_of_them_are_tried() -> None:
    climb = Climb(12, 16)
    assert decisions(climb, (300, 0.0), (300, 0.0), (300, 0.0), (300, 0.0), (220, 0.3), (294, 0.02)) == [
        None,
        (6, "0% of the time waited for data at 300 images/s"),
        None,
        (3, "6 gave 300 images/s in place of 300"),
        (4, "3 gave 220 images/s in place of 300"),
        (4, "4 gave 294 images/s in place of 300"),
    ]
    assert climb.settled


def test_the_fastest_of_all_is_what_fewer_workers_are_measured_by() -> None:
    """Otherwise each step down could lose a little more."""
    climb = Climb(8, 8)
    decisions(climb, (300, 0.0), (300, 0.0), (292, 0.0), (292, 0.0))
    assert climb.workers == 2, "4 are as good"
    decisions(climb, (286, 0.0), (286, 0.0))
    assert climb.workers == 3, "2 are not"


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    return dataset_of(photos(tmp_path, 30))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "_WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(tuner, "_WINDOW_BATCHES", 2)
    monkeypatch.setattr(tuner, "_UNSTEADY_BATCHES", 1)


@pytest.mark.parametrize("name", ["torch", "dali", "roi"])
def test_changing_workers_changes_no_batch(
    name: str, dataset: ImageDataset, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every window asks for another number, up and down."""
    monkeypatch.setattr(Climb, "observe", lambda self, seen: self._go(3 - self.workers, f"{seen.rate > 0}"))
    plan = EpochPlan(dataset, 3, View(24, 2), seed=5)
    try:
        loader = create_loader(name, [dataset], 1, BadSamples())
    except ImportError as error:
        pytest.skip(str(error))
    with loader, caplog.at_level(logging.INFO, logger="headrace"):
        expected = list(loader.run(plan))
        got = list(Tuner(loader, 2, lambda: 0.0).batches(plan))
    assert len(got) == len(expected) == 15
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)
    changes = logged(caplog)
    assert changes[:2] == ["Workers: 1 -> 2 at 24 px: True", "Workers: 2 -> 1 at 24 px: True"]
    assert len(changes) == 5  # a window after three batches, one of them unsteady


@dataclass
class Simulation:
    """A loader whose batches are empty, and the time that training on them would take on a machine.

    Attributes:
        machine: what it is.
        now: seconds.
        waited: of these, for data.
        begin: seconds that starting workers takes.
        counts: the workers of each batch.
    """

    machine: Machine
    now: float = 0.0
    waited: float = 0.0
    begin: float = 0.5
    num_workers: int = 1
    counts: list[int] = field(default_factory=list)
    is_started: bool = False

    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        self.wait(0.0 if self.is_started else self.begin)
        self.is_started = True
        for batch in plan:
            labels = torch.zeros(len(batch), dtype=torch.int64)
            window = self.machine.seen_with(self.num_workers)
            self.wait(len(batch) * self.machine.seconds if batch.step == plan.start_batch else 0.0)  # nothing is ready
            self.wait(len(batch) / window.rate * window.waiting)
            self.counts.append(self.num_workers)
            yield Batch(torch.zeros(len(batch), 3, 8, 8, dtype=torch.uint8), labels, labels, batch.keys, batch)
            self.now += len(batch) * self.machine.step

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.waited += seconds

    def use_workers(self, workers: int) -> None:
        self.num_workers, self.is_started = workers, False

    def tuner(self, most: int) -> Tuner:
        return Tuner(cast(Loader, self), most, lambda: self.waited, clock=lambda: self.now)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Workers")]


def test_every_decision_is_a_line_of_the_log(dataset: ImageDataset, caplog: pytest.LogCaptureFixture) -> None:
    simulation = Simulation(Machine(cores=4, seconds=0.3, step=0.1))
    tuned = simulation.tuner(4)
    with caplog.at_level(logging.INFO, logger="headrace"):
        for epoch in range(2):
            for _ in tuned.batches(EpochPlan(dataset, epoch, View(16, 1))):
                pass
    assert logged(caplog) == [
        "Workers: 1 -> 3 at 16 px: 67% of the time waited for data at 3.33 images/s",
        "Workers: stays at 3 at 16 px: 3 gave 10 images/s in place of 3.33",
    ]
    assert simulation.counts == [1] * 12 + [3] * 48


def test_a_size_that_comes_again_is_not_looked_at_again(
    dataset: ImageDataset, caplog: pytest.LogCaptureFixture
) -> None:
    simulation = Simulation(Machine(cores=4, seconds=0.3, step=0.1))
    tuned = simulation.tuner(4)

    def epoch(number: int, resolution: int, machine: Machine) -> list[int]:
        simulation.machine, simulation.counts = machine, []
        for _ in tuned.batches(EpochPlan(dataset, number, View(resolution, 1))):
            pass
        return simulation.counts

    small, large = Machine(cores=4, seconds=0.3, step=0.1), Machine(cores=4, seconds=0.3, step=0.5)
    assert [epoch(number, 16, small)[-1] for number in (0, 1)] == [3, 3]
    assert [epoch(number, 24, large)[-1] for number in (2, 3)] == [1, 1], "a model that waits for nothing needs one"
    with caplog.at_level(logging.INFO, logger="headrace"):
        assert epoch(4, 16, small) == [3] * 30
        assert epoch(5, 24, large) == [1] * 30
    assert logged(caplog) == [
        "Workers: 1 -> 3 at 16 px: as before at this size", "Workers: 3 -> 1 at 24 px: as before at this size"
    ]  # fmt: skip


def test_one_core_leaves_nothing_to_choose(dataset: ImageDataset, caplog: pytest.LogCaptureFixture) -> None:
    simulation = Simulation(Machine(cores=1, seconds=0.3, step=0.1))
    with caplog.at_level(logging.INFO, logger="headrace"):
        for epoch in range(2):
            for _ in simulation.tuner(1).batches(EpochPlan(dataset, epoch, View(16, 1))):
                pass
    assert set(simulation.counts) == {1}
    assert logged(caplog) == ["Workers: stays at 1 at 16 px: one core is all there is"] * 2


def test_epochs_shorter_than_a_window_are_added_up(dataset: ImageDataset) -> None:
    """Six batches in less than half a second, and evaluation in between that is no part of it."""
    simulation = Simulation(Machine(cores=4, seconds=0.015, step=0.0075))
    tuned, needed = simulation.tuner(4), 0
    for epoch in range(80):
        for _ in tuned.batches(EpochPlan(dataset, epoch, View(16, 5))):
            pass
        simulation.now += 60
        needed = epoch if simulation.num_workers == 1 else needed
    assert simulation.num_workers == 2
    assert needed == 5, "the first shows how workers start, and the next five take two seconds"


def test_it_is_settled_when_the_loader_has_what_was_found(dataset: ImageDataset) -> None:
    simulation = Simulation(Machine(cores=2, seconds=0.1, step=0.098))
    tuned, seen = simulation.tuner(2), []
    for epoch in range(24):
        for _ in tuned.batches(EpochPlan(dataset, epoch, View(16, 10))):
            pass
        seen.append((simulation.num_workers, tuned.is_settled))
    first = seen.index((1, True))
    assert {settled for _, settled in seen[:first]} == {False}, "while 2 are compared with 1"
    assert (2, False) in seen[:first]
    assert set(seen[first:]) == {(1, True)}


def test_an_epoch_of_one_batch_ends_the_search_as_well(dataset: ImageDataset) -> None:
    simulation = Simulation(Machine(cores=4, seconds=0.02, step=0.005))
    tuned = simulation.tuner(4)
    for epoch in range(60):
        for _ in tuned.batches(EpochPlan(dataset, epoch, View(16, 30))):
            pass
    assert simulation.num_workers > 1


def test_an_epoch_that_is_gone_on_with_is_no_whole_one(dataset: ImageDataset) -> None:
    simulation = Simulation(Machine(cores=4, seconds=0.3, step=0.1), begin=20.0)
    tuned = simulation.tuner(4)
    for _ in tuned.batches(EpochPlan(dataset, 0, View(16, 1), start_batch=20)):
        pass
    assert simulation.num_workers == 1, "ten batches of which four are unsteady are no window"
    for _ in tuned.batches(EpochPlan(dataset, 1, View(16, 1))):
        pass
    assert simulation.counts == [1] * 22 + [3] * 18


def test_leaving_early_ends_the_loaders_epoch(dataset: ImageDataset) -> None:
    with create_loader("roi", [dataset], 1, BadSamples()) as loader:
        transfer = Transfer("cpu", (0.5,) * 3, (0.5,) * 3)
        tuned = Tuner(loader, 2, transfer.wait_seconds)
        batches = transfer.batches(tuned.batches(EpochPlan(dataset, 0, View(16, 4))))
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert len(list(loader.run(EpochPlan(dataset, 0, View(16, 4))))) == 8


class Together:
    """Lets threads, which stand for the processes of a run, wait for each other and learn the largest of what each has.

    Args:
        ranks: how many there are.
    """

    def __init__(self, ranks: int) -> None:
        self._barrier, self._given = threading.Barrier(ranks, timeout=60), [[0.0]] * ranks

    def largest(self, rank: int, values: Sequence[float]) -> list[float]:
        self._given[rank] = list(values)
        self._barrier.wait()
        largest = [max(several) for several in zip(*self._given, strict=True)]
        self._barrier.wait()
        return largest


@dataclass
class Rank:
    """A process of several: its workers fill a queue of so many batches, and each of its steps ends with the slowest's.

    Attributes:
        rank: its number.
        together: with the others.
        seconds: of a worker, for an image.
        step: seconds of its device, for an image.
        now, waited: seconds so far, and those of them spent waiting for data.
    """

    rank: int
    together: Together
    seconds: float
    step: float
    now: float = 0.0
    waited: float = 0.0
    num_workers: int = 1

    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        taken = deque([self.now], maxlen=2 * self.num_workers)
        ready = self.now + 0.2
        for batch in plan:
            ready = max(ready, taken[0] if len(taken) == taken.maxlen else 0.0)
            ready += len(batch) * self.seconds / self.num_workers
            self.waited += max(0.0, ready - self.now)
            self.now = max(self.now, ready)
            taken.append(self.now)
            labels = torch.zeros(len(batch), dtype=torch.int64)
            yield Batch(torch.zeros(len(batch), 3, 8, 8, dtype=torch.uint8), labels, labels, batch.keys, batch)
            (self.now,) = self.together.largest(self.rank, [self.now + len(batch) * self.step])

    def use_workers(self, workers: int) -> None:
        self.num_workers = workers


@pytest.mark.parametrize("speeds", [[1.0, 1.0], [1.0, 1.05], [1.0, 1.2], [1.0, 1.05, 0.98, 1.02]])
def test_several_processes_decide_alike_by_the_slowest(speeds: list[float], tmp_path: Path) -> None:
    """A rank that alone is slow is waited for by all: had each decided by what it sees, all would end with few."""
    together, dataset = Together(len(speeds)), dataset_of(photos(tmp_path, 120))
    ranks = [Rank(number, together, seconds=speed, step=0.125) for number, speed in enumerate(speeds)]

    def trained(rank: Rank) -> None:
        tuned = Tuner(
            cast(Loader, rank), 16, lambda: rank.waited, partial(together.largest, rank.rank), lambda: rank.now
        )
        for epoch in range(8):
            for _ in tuned.batches(EpochPlan(dataset, epoch, View(16, len(ranks)), 0, rank.rank, len(ranks))):
                pass
        assert tuned.is_settled

    with ThreadPoolExecutor(len(ranks)) as threads:
        list(threads.map(trained, ranks))
    found = {rank.num_workers for rank in ranks}
    assert len(found) == 1
    assert math.ceil(0.95 * 8 * max(speeds)) <= found.pop() <= 1 + 8 * max(speeds)
