"""What is particular to the DataLoader backend: how workers start, how batches travel, and what kills them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from loaders import processes
from loaders.bad_samples import BadSamples
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


def test_a_killed_worker_is_an_error_at_once(dataset: ImageDataset) -> None:
    with TorchLoader([dataset], 1, BadSamples()) as loader:
        batches = loader.run(EpochPlan(dataset, 0, View(24, 1)))
        next(batches)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="killed"):
            list(batches)


def test_an_interrupt_is_left_to_the_main_process(dataset: ImageDataset) -> None:
    with TorchLoader([dataset], 1, BadSamples()) as loader:
        batches = loader.run(EpochPlan(dataset, 0, View(24, 4)))
        next(batches)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
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
