"""The region loader on packed sets: what tests/test_loader_contract.py asks of files, and memory."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from engine.setup import limit
from kernels.jpeg import JpegLibraryError, load_library
from loaders import roi_backend
from loaders.bad_samples import BadSamples
from loaders.buffers import BufferPool
from loaders.contract import LoaderError
from loaders.packed import PackedDataset, open_packed
from loaders.plan import EpochPlan, View
from loaders.registry import create_loader
from tests.packed_photos import TOLERANCE, contents, create, differences, opened, version_for

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def dataset(packed_set: Path) -> PackedDataset:
    return opened(packed_set)


@pytest.mark.parametrize(
    "view",
    [
        View(160, 8),
        View(64, 8),
        View(48, 8, scale=(0.02, 0.2)),
        View(32, 8, crop="padded"),
        View.evaluation(90, 8, crop_fraction=0.875),
    ],
    ids=["image", "renditions", "enlarged", "padded", "center"],
)
def test_pixels_are_those_of_the_stored_bytes(dataset: PackedDataset, view: View) -> None:
    with create(dataset) as loader:
        for batch in loader.run(EpochPlan(dataset, 1, view, seed=3)):
            assert max(differences(dataset, batch)) < TOLERANCE


def test_the_smallest_rendition_that_serves_is_read(dataset: PackedDataset) -> None:
    counts = dict.fromkeys((None, 0, 1), 0)
    near: dict[int | None, list[float]] = {None: [], 0: [], 1: []}
    with create(dataset) as loader:
        for resolution in (40, 90, 150):
            for batch in loader.run(EpochPlan(dataset, 0, View(resolution, 8))):
                chosen = differences(dataset, batch)
                whole = differences(dataset, batch, None)
                for position, index in enumerate(batch.indices.tolist()):
                    version = version_for(dataset, index, batch.plan.windows[position], resolution)
                    counts[version] += 1
                    near[version].append(whole[position])
                    assert chosen[position] < TOLERANCE
    assert min(counts.values()) > 5
    assert np.mean(near[None]) < TOLERANCE
    for rendition in (0, 1):
        assert 0.5 < np.mean(near[rendition]) < 8, "another file, the same picture"


def test_order_labels_and_keys(dataset: PackedDataset) -> None:
    plan = EpochPlan(dataset, 2, View(16, 5), seed=9)
    with create(dataset) as loader:
        for expected, batch in zip(plan, loader.run(plan), strict=True):
            assert batch.indices.tolist() == expected.indices.tolist()
            assert batch.labels.tolist() == dataset.labels[expected.indices].tolist()
            assert batch.keys.tolist() == expected.keys.tolist()
            assert batch.images.is_contiguous()


def test_same_batches_with_any_number_of_threads(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_backend, "usable_cores", lambda: 4.0)
    epochs = []
    for threads in (0, 1, 2, 4):
        with create(dataset, threads=threads) as loader:
            assert re.search(rf"in {max(1, threads)} threads?$", loader.describe())
            epochs.append(contents(loader.run(EpochPlan(dataset, 1, View(24, 4), seed=5))))
    assert epochs[1:] == epochs[:1] * 3


NO_EPOCH_COMPILES = """
import sys
from pathlib import Path
from loaders.bad_samples import BadSamples
from loaders.opening import open_data
from loaders.plan import EpochPlan, View
from loaders.roi_backend import RoiLoader

dataset = open_data(sys.argv[1], cache=Path(sys.argv[3]), show_progress=False).train
plans = [EpochPlan(dataset, 0, view) for view in (View(24, 4), View.evaluation(32, 4))]
for plan in plans:
    plan.batch(0)
with RoiLoader([dataset], 1, BadSamples(), resample_on=sys.argv[2]) as loader:
    kernels = sys.modules["kernels.region_planes" if sys.argv[2] == "device" else "kernels.regions"]
    kernel = kernels.decode_samples if sys.argv[2] == "device" else kernels.load_samples
    loaded = list(kernel.signatures)
    for plan in plans:
        list(loader.run(plan))
    assert loaded and loaded == list(kernel.signatures), (loaded, kernel.signatures)
"""


@pytest.mark.parametrize("resample_on", ["cpu", "device"])
@pytest.mark.parametrize("form", ["set", "photos"])
def test_no_epoch_waits_for_the_decoder_to_be_compiled(
    packed_set: Path, tmp_path: Path, form: str, resample_on: str
) -> None:
    words = [sys.executable, "-c", NO_EPOCH_COMPILES, str(packed_set.with_name(form)), resample_on, str(tmp_path)]
    process = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr


def test_start_in_the_middle_equals_the_tail(dataset: PackedDataset) -> None:
    plan = EpochPlan(dataset, 1, View(16, 4))
    with create(dataset) as loader:
        whole = contents(loader.run(plan))
        for begin in range(plan.num_batches + 1):
            assert contents(loader.run(plan.starting_at(begin))) == whole[begin:]


def test_sizes_batches_and_splits_switch(packed_set: Path) -> None:
    data = open_packed(packed_set)
    assert isinstance(data.val, PackedDataset) and isinstance(data.train, PackedDataset)
    with create(data.train, data.val) as loader:
        for epoch, (resolution, batch_size) in enumerate([(24, 4), (48, 8), (32, 3), (32, 31), (24, 4)]):
            for split, view in (
                (data.train, View(resolution, batch_size)),
                (data.val, View.evaluation(resolution, batch_size)),
            ):
                plan = EpochPlan(split, epoch, view)
                for expected, batch in zip(plan, loader.run(plan), strict=True):
                    assert batch.indices.tolist() == expected.indices.tolist()
                    assert max(differences(split, batch)) < TOLERANCE


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_break_then_another_epoch(dataset: PackedDataset, taken: int) -> None:
    second = EpochPlan(dataset, 2, View(24, 6))
    with create(dataset) as loader:
        expected = contents(loader.run(second))
        abandoned = loader.run(EpochPlan(dataset, 1, View(16, 3)))
        for _ in range(taken):
            next(abandoned)
        assert contents(loader.run(second)) == expected
        with pytest.raises(RuntimeError, match="another epoch was started"):
            next(abandoned)


@pytest.mark.parametrize("end", ["close", "with", "del"])
def test_no_thread_is_left(dataset: PackedDataset, end: str) -> None:
    loader = create(dataset)
    epoch = loader.run(EpochPlan(dataset, 0, View(16, 4)))
    next(epoch)
    assert any(thread.name.startswith("headrace-roi") for thread in threading.enumerate())
    if end == "close":
        loader.close()
        loader.close()
    elif end == "with":
        with loader:
            pass
    del loader, epoch
    gc.collect()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace-roi")]


def test_a_closed_loader_may_run_again(dataset: PackedDataset) -> None:
    plan = EpochPlan(dataset, 0, View(16, 4))
    loader = create(dataset)
    expected = contents(loader.run(plan))
    loader.close()
    with loader:
        assert contents(loader.run(plan)) == expected


def test_parts_of_a_set(packed_set: Path) -> None:
    data = limit(open_packed(packed_set), 12, 5, seed=1)
    chosen = data.train.select(np.array([7, 3, 3, 0]))
    relabeled = data.val.relabeled(("a", "b", "c"), np.full(5, 2, np.int64))
    with create(data.train, chosen, relabeled) as loader:
        for part, count in ((data.train, 12), (chosen, 4), (relabeled, 5)):
            assert isinstance(part, PackedDataset)
            batches = list(loader.run(EpochPlan(part, 0, View(40, 4))))
            assert sum(map(len, batches)) == count
            for batch in batches:
                assert max(differences(part, batch)) < TOLERANCE
                assert batch.labels.tolist() == part.labels[batch.indices.numpy()].tolist()


def test_held_batches_and_views_of_them_stay(dataset: PackedDataset) -> None:
    with create(dataset) as loader:
        plan = EpochPlan(dataset, 0, View(24, 4))
        whole = [batch.images for batch in loader.run(plan)]
        views = [batch.images[1:, :, 3:9].float().sub_(1) if i % 2 else batch.images[2].permute(1, 2, 0)
                 for i, batch in enumerate(loader.run(plan))]  # fmt: skip
        arrays = [batch.images.numpy() for batch in loader.run(plan)]
        copies = [tensor.clone() for tensor in (*whole, *views)], [array.copy() for array in arrays]
        for epoch in range(1, 4):
            for _ in loader.run(EpochPlan(dataset, epoch, View(24, 4))):
                pass
    assert all(torch.equal(*pair) for pair in zip((*whole, *views), copies[0], strict=True))
    assert all(np.array_equal(*pair) for pair in zip(arrays, copies[1], strict=True))


def test_buffers_are_used_again(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    allocated: list[int] = []
    allocate = BufferPool._allocate
    monkeypatch.setattr(BufferPool, "_allocate", lambda pool, size: allocated.append(size) or allocate(pool, size))
    with create(dataset) as loader:
        places = {batch.images.data_ptr() for batch in loader.run(EpochPlan(dataset, 0, View(24, 4)))}
        assert len(places) <= loader.prefetch + 3
        counts = []
        for epoch in range(1, 9):
            for resolution, batch_size in ((24, 4), (64, 4), (32, 8)):
                for _ in loader.run(EpochPlan(dataset, epoch, View(resolution, batch_size))):
                    pass
            counts.append(len(allocated))
    assert counts[-1] - counts[3] <= 3, "what the largest batches have had serves, but for a thread that was late"


def test_memory_does_not_grow(dataset: PackedDataset) -> None:
    process = psutil.Process()

    def epochs(first: int, count: int) -> int:
        for epoch in range(first, first + count):
            for resolution, batch_size in ((96, 8), (160, 31), (128, 16)):
                for _ in loader.run(EpochPlan(dataset, epoch, View(resolution, batch_size))):
                    pass
        gc.collect()
        return process.memory_full_info().uss

    with create(dataset) as loader:
        before = epochs(0, 5)
        assert epochs(5, 20) - before < 8 << 20


@pytest.mark.parametrize("name", ["torch", "dali"])
def test_other_loaders_refuse_packed_sets(dataset: PackedDataset, name: str) -> None:
    with pytest.raises(LoaderError, match=r"photos/train is packed: only the loader roi reads packed sets"):
        create_loader(name, [dataset], 1, BadSamples())
    with create_loader("roi", [dataset], 1, BadSamples()) as loader:
        assert len(list(loader.run(EpochPlan(dataset, 0, View(16, 31))))) == 1
