"""What is special to the FFCV loader: bad samples, and FFCV's traps. The rest: test_loader_contract.py."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from loaders.bad_samples import BadSampleError, BadSamples
from loaders.contract import LoaderError
from loaders.dataset import ImageDataset
from loaders.plan import BatchPlan, EpochPlan, View, substitute
from tests.images import DAMAGES, damaged, dataset_of, photos

pytest.importorskip("ffcv", reason="FFCV is not installed")

from loaders import ffcv_backend
from loaders.ffcv_file import JPEG_500, RAW_256, Beton, Storage, open_beton
from tests.ffcv_files import RAW, differences, loader_of, overwrite


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    return dataset_of(photos(tmp_path, 12))


@pytest.mark.parametrize("storage", [RAW, RAW_256, Storage(32, None)], ids=lambda s: s.name)
@pytest.mark.parametrize("view", [View(48, 5), View(24, 5, scale=(0.02, 0.1)), View.evaluation(33, 5, 0.9)])
def test_raw_pixels_are_pillows(dataset: ImageDataset, cache: Path, storage: Storage, view: View) -> None:
    with loader_of(dataset, cache, storage) as loader:
        batches = list(loader.run(EpochPlan(dataset, 0, view)))
    beton = open_beton(dataset, storage, cache)
    assert max(differences(beton, batch).max() for batch in batches) < 0.5


@pytest.mark.parametrize("storage", [JPEG_500, RAW_256], ids=lambda s: s.name)
def test_bad_files_keep_their_place(tmp_path: Path, cache: Path, storage: Storage) -> None:
    good = photos(tmp_path, 9)
    paths = [path for pair in zip(good, [damaged(tmp_path, d, d) for d in DAMAGES], strict=False) for path in pair]
    dataset = dataset_of(paths)
    bad = {i for i, path in enumerate(paths) if path not in good}
    beton = open_beton(dataset, storage, cache, show_progress=False)
    assert set(beton.bad) == bad
    assert all(beton.bad.values())
    rows = beton.path.with_suffix(".bad.csv").read_text().splitlines()
    assert len(rows) == len(bad) + 1
    assert all(str(paths[i]) in row for i, row in zip(sorted(bad), rows[1:], strict=True))
    for _ in range(2):  # the second time from the list
        found = BadSamples(max_fraction=1)
        with loader_of(dataset, cache, storage, bad_samples=found) as loader:
            delivered = [
                i for b in loader.run(EpochPlan(dataset, 0, View.evaluation(16, 4))) for i in b.indices.tolist()
            ]
        assert delivered == sorted(set(range(len(paths))) - bad)
        assert {sample.index: sample.reason for sample in found} == beton.bad


def test_what_an_earlier_run_found_bad_stays_bad(dataset: ImageDataset, cache: Path) -> None:
    found = BadSamples(max_fraction=0.5)
    found.load_state_dict([(dataset.name, 3, dataset.paths[3], "found by another loader")])
    with loader_of(dataset, cache, bad_samples=found) as loader:
        (batch,) = loader.run(EpochPlan(dataset, 0, View(16, 12)))
    assert 3 not in batch.indices.tolist()
    assert len(batch) == 12


def damage_record(beton: Beton, index: int) -> None:
    overwrite(beton.path, int(beton.offsets[index]) + 2, bytes(int(beton.lengths[index]) // 2))


@pytest.mark.parametrize("known", [False, True])
def test_a_damaged_record_is_a_bad_sample(dataset: ImageDataset, cache: Path, known: bool) -> None:
    beton = open_beton(dataset, JPEG_500, cache, show_progress=False)
    damage_record(beton, 5)
    plan = EpochPlan(dataset, 0, View(32, 4))
    found = BadSamples(max_fraction=0.5)
    with loader_of(dataset, cache, bad_samples=found) as loader:
        if known:
            list(loader.run(plan))
        for expected, batch in zip(plan, loader.run(plan), strict=True):
            indices = expected.indices.copy()
            for position in np.flatnonzero(indices == 5).tolist():
                indices[position] = _first_replacement(dataset, expected, position, {5})
            assert batch.indices.tolist() == indices.tolist()
            assert batch.images.float().std(dim=(1, 2, 3)).min() > 5  # no empty image, no leftover
        left = [b.indices.tolist() for b in loader.run(EpochPlan(dataset, 0, View.evaluation(32, 4)))]
    assert left == [[0, 1, 2, 3], [4, 6, 7], [8, 9, 10, 11]]
    (sample,) = found
    assert (sample.index, sample.path) == (5, dataset.paths[5])
    assert str(beton.path) in sample.reason
    with (
        loader_of(dataset, cache, bad_samples=BadSamples("raise")) as loader,
        pytest.raises(BadSampleError, match=r"sample 5 of test"),
    ):
        list(loader.run(plan))


def _first_replacement(dataset: ImageDataset, plan: BatchPlan, position: int, bad: set[int]) -> int:
    attempts = (int(substitute(dataset, plan, position, attempt).indices[0]) for attempt in range(100))
    return next(index for index in attempts if index not in bad)


def test_a_damaged_replacement_is_replaced_as_well(dataset: ImageDataset, cache: Path) -> None:
    beton = open_beton(dataset, JPEG_500, cache, show_progress=False)
    plan = EpochPlan(dataset, 0, View(16, 12))
    batch = plan.batch(0)
    position = int(np.flatnonzero(batch.indices == 2)[0])
    second = _first_replacement(dataset, batch, position, {2})
    damage_record(beton, 2)
    damage_record(beton, second)
    found = BadSamples(max_fraction=0.5)
    with loader_of(dataset, cache, bad_samples=found) as loader:
        (delivered,) = loader.run(plan)
    assert delivered.indices[position] == _first_replacement(dataset, batch, position, {2, second})
    assert {sample.index for sample in found} == {2, second}


def test_an_exception_in_the_thread_reaches_the_consumer(
    dataset: ImageDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = EpochPlan.batch

    def failing(self: EpochPlan, step: int) -> BatchPlan:
        if step == 2:
            raise MemoryError("no room for the plan")
        return batch(self, step)

    plan = EpochPlan(dataset, 0, View(16, 2))
    with loader_of(dataset, cache) as loader:
        with monkeypatch.context() as patch:
            patch.setattr(EpochPlan, "batch", failing)
            epoch = loader.run(plan)
            assert [len(next(epoch)) for _ in range(2)] == [2, 2]
            with pytest.raises(LoaderError, match="no room for the plan"):
                next(epoch)
        assert sum(len(b) for b in loader.run(plan)) == len(dataset)


def test_one_library_loader_serves_every_epoch(
    dataset: ImageDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    build = ffcv_backend.build_loader

    def recording(beton: Beton, *arguments: Any) -> Any:
        built.append(beton.path)
        return build(beton, *arguments)

    monkeypatch.setattr(ffcv_backend, "build_loader", recording)
    with loader_of(dataset, cache, RAW) as loader:
        beton = open_beton(dataset, RAW, cache)
        for epoch, (resolution, batch_size) in enumerate([(16, 6), (48, 4), (24, 6), (24, 9), (16, 6)]):
            for batch in loader.run(EpochPlan(dataset, epoch, View(resolution, batch_size))):
                assert differences(beton, batch).max() < 0.5
    assert built == [beton.path]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_loaders_side_by_side(dataset: ImageDataset, tmp_path: Path, cache: Path, num_workers: int) -> None:
    (tmp_path / "other").mkdir()
    other = dataset_of(photos(tmp_path / "other", 12, [(40, 60)]), name="other")
    with loader_of(dataset, cache, RAW, num_workers=num_workers) as one, loader_of(other, cache, RAW) as two:
        betons = [open_beton(d, RAW, cache, show_progress=False) for d in (dataset, other)]
        for epoch in range(2):
            plans = [EpochPlan(dataset, epoch, View(40, 3)), EpochPlan(other, epoch, View.evaluation(24, 3))]
            pairs = zip(one.run(plans[0]), two.run(plans[1]), strict=True)
            assert (
                max(differences(b, batch).max() for pair in pairs for b, batch in zip(betons, pair, strict=True)) < 0.5
            )


def test_leaving_epochs_early_leaves_no_threads(dataset: ImageDataset, cache: Path) -> None:
    with loader_of(dataset, cache) as loader:
        next(loader.run(EpochPlan(dataset, 0, View(16, 2))))
        running = threading.active_count()
        for epoch in range(6):
            next(loader.run(EpochPlan(dataset, epoch, View(16, 2))))
        assert threading.active_count() == running
    assert threading.active_count() < running


def test_pytorch_keeps_its_threads(dataset: ImageDataset, cache: Path) -> None:
    def threads_elsewhere() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with loader_of(dataset, cache) as loader:
            for _ in loader.run(EpochPlan(dataset, 0, View(16, 4))):
                assert torch.get_num_threads() == threads_elsewhere() == 3
        assert torch.get_num_threads() == threads_elsewhere() == 3
    finally:
        torch.set_num_threads(before)


def test_numba_compiles_what_writes_to_bytes(dataset: ImageDataset, cache: Path) -> None:
    @njit
    def fill(array: np.ndarray) -> None:
        array[:] = 7

    with loader_of(dataset, cache) as loader:
        next(loader.run(EpochPlan(dataset, 0, View(16, 4))))
        array = np.zeros(3, np.uint8)
        fill(array)
    assert array.tolist() == [7, 7, 7]


def test_global_generators_are_left_alone(dataset: ImageDataset, cache: Path) -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    states = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with loader_of(dataset, cache) as loader:
        list(loader.run(EpochPlan(dataset, 0, View(16, 4))))
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def test_threads_are_the_cores_at_most(dataset: ImageDataset, cache: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    for num_workers, threads in ((0, 1), (1, 1), (10_000, cores)):
        assert int(loader_of(dataset, cache, num_workers=num_workers).describe().split()[-2]) in range(1, threads + 1)


def test_without_a_threading_layer_one_thread_works(
    dataset: ImageDataset, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ffcv_backend.numba, "threading_layer", lambda: "workqueue")
    with loader_of(dataset, cache, num_workers=2) as loader:
        assert sum(len(b) for b in loader.run(EpochPlan(dataset, 0, View(16, 4)))) == len(dataset)
        assert loader.describe().endswith(", 1 thread")
    assert any("installing tbb" in record.message for record in caplog.records)


def test_without_ffcv_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ffcv.fields", None)
    monkeypatch.delitem(sys.modules, "loaders.ffcv_library")
    with pytest.raises(ImportError, match=r"(?s)apt-get install .*libturbojpeg0-dev.*headrace\[ffcv\].*--loader torch"):
        importlib.import_module("loaders.ffcv_library")
