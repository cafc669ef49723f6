"""What is particular to the DataLoader backend: how workers start, how batches travel, and what kills them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from loaders import processes
from loaders.bad_samples import BadSamples
from loaders.contract import LoaderError
from loaders.dataset import ImageDataset
from loaders.plan import EpochPlan, View
from loaders.torch_backend import TorchLoader
from tests.images import dataset_of, photos


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return dataset_of(photos(tmp_path_factory.mktemp("photos"), 24))


def images_of(dataset: ImageDataset, num_workers: int) -> torch.Tensor:
    with TorchLoader([dataset], num_workers, BadSamples()) as loader:
        return torch.cat([batch.images for batch in loader.run(EpochPlan(dataset, 0, View(24, 5)))])


def test_batches_go_through_pipes_where_shared_memory_is_small(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = images_of(dataset, 2)
    monkeypatch.setattr(processes.os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=4096))
    with caplog.at_level(logging.WARNING, "headrace"):
        assert torch.equal(images_of(dataset, 2), expected)
    (record,) = [r for r in caplog.records if "/dev/shm" in r.message]
    assert "--shm-size" in record.message


def test_workers_are_not_forked_beside_dali(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = images_of(dataset, 1)
    monkeypatch.setitem(sys.modules, "nvidia.dali", SimpleNamespace())
    with caplog.at_level(logging.INFO, "headrace"):
        assert processes.worker_context().get_start_method() == "forkserver"
        assert torch.equal(images_of(dataset, 1), expected)
    assert any("DALI is loaded" in record.message for record in caplog.records)


def workers() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate())


@pytest.fixture(params=["fork", "forkserver"])
def _start_method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "forkserver":
        monkeypatch.setitem(sys.modules, "nvidia.dali", SimpleNamespace())


@pytest.fixture
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers forked, whatever earlier tests have loaded: what is patched here is patched there too."""
    monkeypatch.delitem(sys.modules, "nvidia.dali", raising=False)
    monkeypatch.setattr(processes, "_numba_threads_running", lambda: False)


@pytest.mark.usefixtures("_start_method")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_worker_is_an_error_of_the_loader(dataset: ImageDataset, num_workers: int) -> None:
    running = threads()
    with TorchLoader([dataset], num_workers, BadSamples()) as loader:
        batches = loader.run(EpochPlan(dataset, 0, View(24, 1)))
        next(batches)
        os.kill(workers()[0], signal.SIGKILL)
        with pytest.raises(LoaderError, match="killed"):
            list(batches)
        assert workers() == []
        assert threads() == running
        assert len(list(loader.run(EpochPlan(dataset, 0, View(24, 1))))) == len(dataset)
    assert threads() == running


@pytest.mark.usefixtures("_start_method")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_killed_amid_its_answer_leaves_nobody_waiting(
    dataset: ImageDataset, victim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=4096))
    with TorchLoader([dataset], 2, BadSamples()) as loader, TorchLoader([dataset], 1, BadSamples()) as other:
        batches = loader.run(EpochPlan(dataset, 0, View(160, 4)))
        next(batches)
        victims = workers()
        next(other.run(EpochPlan(dataset, 0, View(24, 4))))  # its worker has all that a fork inherits
        time.sleep(0.3)  # one answer fills the pipe, the other worker waits for the queue's lock
        os.kill(victims[victim], signal.SIGKILL)
        time.sleep(0.1)
        with pytest.raises(LoaderError, match="killed"):
            list(batches)


def test_a_worker_killed_with_its_pipe_full_leaves_no_thread(dataset: ImageDataset) -> None:
    running = threads()
    many = dataset.select(np.zeros(20_000, np.int64))
    with TorchLoader([many], 1, BadSamples()) as loader:
        batches = loader.run(EpochPlan(many, 0, View(8, 5000)))  # a request is larger than a pipe
        os.kill(workers()[0], signal.SIGKILL)
        with pytest.raises(LoaderError, match="killed"):
            next(batches)
    assert threads() == running


def test_a_worker_killed_between_epochs_is_an_error_of_the_loader(dataset: ImageDataset) -> None:
    plan = EpochPlan(dataset, 0, View(24, 4))
    with TorchLoader([dataset], 2, BadSamples()) as loader:
        assert len(list(loader.run(plan))) == 6
        os.kill(workers()[0], signal.SIGKILL)
        time.sleep(0.1)  # nothing is raised here, as it might be in a step or while a checkpoint is written
        with pytest.raises(LoaderError, match="killed"):
            list(loader.run(plan))


@pytest.mark.usefixtures("_forked")
def test_closing_does_not_wait_for_a_busy_worker(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = multiprocessing.get_context("fork").Event()

    def load(*arguments: object) -> None:
        busy.set()
        time.sleep(600)

    monkeypatch.setattr("loaders.torch_backend.load_into", load)
    with TorchLoader([dataset], 2, BadSamples()) as loader:
        loader.run(EpochPlan(dataset, 0, View(24, 4)))
        assert busy.wait(60)
        assert len(workers()) == 2
    assert workers() == []


@pytest.mark.usefixtures("_forked")
def test_a_worker_killed_in_looking_whether_to_end_keeps_no_lock() -> None:
    context = processes.worker_context()
    for _ in range(10):
        flag, started = context.Event(), multiprocessing.get_context("fork").Event()
        child = context.Process(target=_look_for_ever, args=(flag, started))  # type: ignore[attr-defined]
        child.start()
        assert started.wait(60)
        child.kill()
        child.join()
        assert not flag.is_set()
        flag.set()
        assert flag.is_set()


def _look_for_ever(flag: Any, started: Any) -> None:
    started.set()
    while not flag.is_set():
        pass


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_workers_end_with_a_killed_main_process(dataset: ImageDataset, start_method: str) -> None:
    receive, send = multiprocessing.Pipe(duplex=False)
    main = multiprocessing.get_context("spawn").Process(target=_fill_the_pipe, args=(dataset, start_method, send))
    main.start()
    send.close()
    started = [psutil.Process(worker) for worker in receive.recv()]
    main.kill()
    main.join()
    assert len(started) == 2
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []


def _fill_the_pipe(dataset: ImageDataset, start_method: str, send: Connection) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes.os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=4096))
        if start_method == "forkserver":
            patch.setitem(sys.modules, "nvidia.dali", SimpleNamespace())
        with TorchLoader([dataset], 2, BadSamples()) as loader:
            next(loader.run(EpochPlan(dataset, 0, View(160, 4))))
            time.sleep(0.3)  # one answer fills the pipe, the other worker waits for the queue's lock
            send.send(workers())
            time.sleep(600)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_is_left_to_the_main_process(dataset: ImageDataset, sent: signal.Signals) -> None:
    with TorchLoader([dataset], 1, BadSamples()) as loader:
        batches = loader.run(EpochPlan(dataset, 0, View(24, 4)))
        next(batches)
        (worker,) = workers()
        os.kill(worker, sent)
        assert len(list(batches)) == 5


def test_global_random_numbers_are_left_alone(dataset: ImageDataset) -> None:
    before = torch.get_rng_state()
    images_of(dataset, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_files_are_bad_samples(tmp_path: Path) -> None:
    paths = photos(tmp_path, 40)
    dataset = dataset_of(paths)
    paths[3].unlink()
    bad = BadSamples(max_fraction=0.1)
    with TorchLoader([dataset], 1, bad) as loader:
        seen = np.concatenate([b.indices.numpy() for b in loader.run(EpochPlan(dataset, 0, View(24, 8)))])
    assert len(seen) == 40
    assert 3 not in seen
    assert [sample.index for sample in bad] == [3]
