"""The region loader when something is wrong: damage, exceptions in threads, waits cut short, what is missing."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.jpeg import JpegLibraryError, load_library
from loaders import roi_jobs
from loaders.bad_samples import BadSampleError, BadSamples
from loaders.packed import PackedDataset
from loaders.plan import EpochPlan, View, substitute
from loaders.registry import create_loader
from loaders.roi_backend import RoiLoader
from tests.images import dataset_of, photos
from tests.packed_photos import TOLERANCE, contents, create, differences, opened

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def dataset(packed_set: Path) -> PackedDataset:
    return opened(packed_set)


@pytest.fixture
def folder(packed_set: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(packed_set, tmp_path / "set"))


def flip_byte(folder: Path, dataset: PackedDataset, index: int, address: int) -> str:
    """Change a byte of a sample's shard; return where the sample is stored."""
    where = dataset.locate(index)
    shard = dataset.shards.files.index(where.removeprefix("shard ").split(",")[0])
    with (folder / dataset.shards.files[shard]).open("r+b") as file:
        file.seek(int(address - dataset.shards.bases[shard]))
        value = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([value ^ 16]))
    return where


@pytest.mark.parametrize("part", ["record", "restart index"])
def test_a_flipped_byte_is_a_bad_sample(folder: Path, part: str) -> None:
    dataset = opened(folder)
    bad = 25
    records = dataset.records
    address = records.addresses[bad] + 3000 if part == "record" else records.index_addresses[bad] + 8
    where = flip_byte(folder, dataset, bad, address)
    checksum = "checksum" if part == "record" else "checksum of the restart index"
    reason = f"{where}: {checksum} differs"
    plan = EpochPlan(dataset, 0, View(250, 4))  # larger than the renditions

    found = BadSamples(max_fraction=0.2)
    with create(dataset, bad_samples=found) as loader:
        for _ in range(2):
            for expected, batch in zip(plan, loader.run(plan), strict=True):
                indices = expected.indices.copy()
                for position in np.flatnonzero(indices == bad).tolist():
                    indices[position] = substitute(dataset, expected, position, 0).indices[0]
                assert batch.indices.tolist() == indices.tolist()
                assert max(differences(dataset, batch)) < TOLERANCE
        (sample,) = found
        assert (sample.index, sample.path, sample.reason) == (bad, dataset.paths[bad], reason)
        evaluated = loader.run(EpochPlan(dataset, 0, View.evaluation(250, 4)))
        delivered = [index for batch in evaluated for index in batch.indices.tolist()]
        assert delivered == [index for index in range(len(dataset)) if index != bad]

    with create(dataset, bad_samples=BadSamples("raise")) as loader, pytest.raises(BadSampleError) as raised:
        list(loader.run(plan))
    assert reason in str(raised.value)
    assert dataset.paths[bad] in str(raised.value)


def test_a_damaged_rendition_is_made_up_for_by_the_image(folder: Path) -> None:
    dataset = opened(folder)
    flip_byte(folder, dataset, 5, dataset.renditions[1].addresses[5] + 700)
    found = BadSamples()
    with create(dataset, bad_samples=found) as loader:
        batches = list(loader.run(EpochPlan(dataset, 0, View.evaluation(40, 31))))
    assert len(found) == 0
    assert differences(dataset, batches[0], None)[5] < TOLERANCE
    assert differences(dataset, batches[0])[4] < TOLERANCE


def test_an_exception_in_a_thread_reaches_the_caller(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = EpochPlan(dataset, 0, View(16, 4))

    def fail(*arguments: object) -> int:
        raise ZeroDivisionError("in a thread")

    raised = threading.Event()
    with create(dataset) as loader:
        expected = contents(loader.run(plan))
        for attribute in ("load_samples", "mark_done"):
            with monkeypatch.context() as patched:
                patched.setattr(roi_jobs, attribute, fail)
                if attribute == "mark_done":
                    patched.setattr(roi_jobs, "load_samples", lambda *arguments: 0)
                caller = threading.Thread(target=lambda: _expect_division(loader, plan, raised))
                caller.start()
                assert raised.wait(10)
                caller.join()
            raised.clear()
            assert contents(loader.run(plan)) == expected


def _expect_division(loader: RoiLoader, plan: EpochPlan, raised: threading.Event) -> None:
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        list(loader.run(plan))
    raised.set()


def test_closing_ends_a_wait(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def wait(*arguments: object) -> int:
        begun.set()
        assert go_on.wait(10)
        return -1

    def consume() -> None:
        try:
            list(loader.run(EpochPlan(dataset, 0, View(16, 4))))
        except RuntimeError as error:
            errors.append(error)

    loader = create(dataset)
    monkeypatch.setattr(roi_jobs, "load_samples", wait)
    consumer = threading.Thread(target=consume)
    consumer.start()
    assert begun.wait(10)
    closing = threading.Thread(target=loader.close)
    closing.start()
    consumer.join(10)
    assert not consumer.is_alive(), "it does not wait for what the threads are at"
    assert "the loader was closed" in str(errors[0])
    go_on.set()
    closing.join(10)
    assert not closing.is_alive()


def test_files_that_need_too_much_memory_are_left_to_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataset_of(photos(tmp_path, 6, [(300, 200)]))
    plan = EpochPlan(dataset, 0, View(32, 6))
    with create(dataset) as loader:
        (expected,) = loader.run(plan)
    monkeypatch.setattr(roi_jobs, "_FIRST_SCRATCH", 9000)
    monkeypatch.setattr(roi_jobs, "_MAX_SCRATCH", 20_000)
    with create(dataset) as loader:
        (batch,) = loader.run(plan)
    assert batch.indices.tolist() == expected.indices.tolist()
    assert float((batch.images.float() - expected.images.float()).abs().mean()) < 1
    monkeypatch.setattr(roi_jobs, "_MAX_SCRATCH", 1 << 28)
    with create(dataset) as loader:  # memory grows as it is needed
        (batch,) = loader.run(plan)
    assert torch.equal(batch.images, expected.images)


def test_a_folder_in_place_of_a_file_is_bad(tmp_path: Path) -> None:
    paths = photos(tmp_path, 6)
    dataset = dataset_of(paths)
    paths[2].unlink()
    paths[2].mkdir()
    found = BadSamples(max_fraction=0.2)
    with create(dataset, bad_samples=found) as loader:
        assert len(list(loader.run(EpochPlan(dataset, 0, View(16, 6))))) == 1
    assert [(sample.index, sample.reason) for sample in found] == [(2, "Is a directory")]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TURBOJPEG", "/nonexistent")
    load_library.cache_clear()
    with pytest.raises(ImportError) as raised:
        create_loader("roi", [], 1, BadSamples())
    for part in ("/nonexistent", "libturbojpeg0", "--loader torch", "--loader dali"):
        assert part in str(raised.value)
