"""How many workers training gets: the search on constructed machines, and real loaders that change in between."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
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
    """

    cores: int
    seconds: float
    step: float

    def seen_with(self, workers: int) -> Window:
        rate = min(min(workers, self.cores) / self.seconds, 1 / self.step)
        return Window(rate, max(0.0, 1 - rate * self.step))


def climbed(machine: Machine, start: int) -> tuple[int, int]:
    """Return where a search ends, and after how many windows."""
    climb, windows = Climb(start, machine.cores), 0
    while not climb.settled:
        climb.observe(machine.seen_with(climb.workers))
        assert 1 <= climb.workers <= max(machine.cores, start)
        windows += 1
        assert windows <= 2 * machine.cores + 2
    return climb.workers, windows


@given(
    cores=st.integers(1, 32),
    seconds=st.floats(1e-4, 1e-2),
    step=st.floats(1e-5, 1e-1),
    start=st.integers(1, 32),
)
def test_the_fewest_workers_that_keep_up(cores: int, seconds: float, step: float, start: int) -> None:
    machine = Machine(cores, seconds, step)
    workers, _ = climbed(machine, min(start, cores))
    best = max(machine.seen_with(number).rate for number in range(1, cores + 1))
    assert machine.seen_with(workers).rate >= best * (1 - 2 * WAIT_TOLERATED - GAIN_WANTED)
    needed = next(n for n in range(1, cores + 1) if machine.seen_with(n).rate >= best * (1 - WAIT_TOLERATED))
    assert workers <= needed


def test_from_one_worker_the_number_needed_is_found_at_once() -> None:
    machine = Machine(cores=32, seconds=0.004, step=1 / 2900)  # 11.6 workers
    workers, windows = climbed(machine, 1)
    assert (workers, windows) == (12, 2)


def test_workers_that_slow_the_model_down_do_not_stay() -> None:
    climb = Climb(1, 2)
    decision = climb.observe(Window(300, 0.4))
    assert decision is not None
    assert (decision.workers, decision.reason) == (2, "40% of the time waited for data at 300 images/s")
    decision = climb.observe(Window(306, 0.1))
    assert decision is not None
    assert (decision.workers, decision.reason) == (1, "2 gave 306 images/s in place of 300")
    assert climb.settled


def test_one_core_leaves_nothing_to_choose() -> None:
    assert Climb(1, 1).settled


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
    changes = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Workers")]
    assert changes[:2] == ["Workers: 1 -> 2 at 24 px: True", "Workers: 2 -> 1 at 24 px: True"]
    assert len(changes) == 5  # a window after three batches, one of them unsteady


class ScriptedLoader:
    """Delivers empty batches."""

    num_workers = 1

    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        for batch in plan:
            labels = torch.zeros(len(batch), dtype=torch.int64)
            yield Batch(torch.zeros(len(batch), 3, 8, 8, dtype=torch.uint8), labels, labels, batch.keys, batch)

    def use_workers(self, workers: int) -> None:
        self.num_workers = workers


def test_each_size_is_looked_at_anew(dataset: ImageDataset, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    now = waited = 0.0
    monkeypatch.setattr(tuner, "time", SimpleNamespace(perf_counter=lambda: now))
    loader = ScriptedLoader()
    tuned = Tuner(cast(Loader, loader), 4, lambda: waited)
    for _ in tuned.batches(EpochPlan(dataset, 0, View(16, 2))):  # loading is all there is
        now += 1 / loader.num_workers
        waited += 1 / loader.num_workers
    assert loader.num_workers == 4
    for _ in tuned.batches(EpochPlan(dataset, 1, View(24, 2))):  # a model that waits for nothing
        now += 1
    assert loader.num_workers == 1


def test_leaving_early_ends_the_loaders_epoch(dataset: ImageDataset) -> None:
    with create_loader("roi", [dataset], 1, BadSamples()) as loader:
        transfer = Transfer("cpu", (0.5,) * 3, (0.5,) * 3)
        tuned = Tuner(loader, 2, transfer.wait_seconds)
        batches = transfer.batches(tuned.batches(EpochPlan(dataset, 0, View(16, 4))))
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert len(list(loader.run(EpochPlan(dataset, 0, View(16, 4))))) == 8
