"""The plan: every sample once, in slices that fit together, the same from wherever it is read."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.dataset import ImageDataset, StringColumn
from loaders.plan import BatchPlan, Crop, EpochPlan, View, substitute


def dataset_of(count: int, num_classes: int = 3) -> ImageDataset:
    sizes = np.random.default_rng(0).integers(20, 400, (2, count)).astype(np.int32)
    return ImageDataset(
        name="test/train",
        classes=tuple(f"class{i}" for i in range(num_classes)),
        paths=StringColumn.of(f"/images/{i}.jpg" for i in range(count)),
        labels=np.arange(count) % num_classes,
        widths=sizes[0],
        heights=sizes[1],
        orientations=np.ones(count, np.uint8),
        forms=np.zeros(count, np.uint8),
        sizes=np.full(count, 1000),
    )


def same(one: BatchPlan, other: BatchPlan) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("indices", "keys", "windows", "flips")
    )


@settings(deadline=None)  # compiling takes long
@given(st.integers(1, 200), st.integers(1, 64), st.integers(1, 5), st.booleans(), st.integers(0, 3))
def test_ranks_share_every_sample_once(count: int, batch_size: int, world: int, shuffle: bool, epoch: int) -> None:
    view = View(32, batch_size, shuffle=shuffle)
    plans = [EpochPlan(dataset_of(count), epoch, view, rank=rank, world=world) for rank in range(world)]
    seen: list[int] = []
    for batches in zip(*plans, strict=True):
        sizes = [len(batch) for batch in batches]
        assert sum(sizes) == plans[0].global_count(batches[0].step)
        assert max(sizes) - min(sizes) <= 1
        seen += [int(index) for batch in batches for index in batch.indices]
    assert sorted(seen) == list(range(count))


@settings(deadline=None)  # compiling takes long
@given(st.integers(2, 100), st.integers(1, 32), st.integers(1, 4))
def test_ranks_together_are_the_batch_of_one(count: int, batch_size: int, world: int) -> None:
    data, view = dataset_of(count), View(48, batch_size)
    whole = list(EpochPlan(data, 2, view))
    ranks = [list(EpochPlan(data, 2, view, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        for rank in range(world):
            share = ranks[rank][step]
            assert np.array_equal(share.indices, batch.indices[rank::world])
            assert np.array_equal(share.windows, batch.windows[rank::world])
            assert np.array_equal(share.flips, batch.flips[rank::world])


@settings(deadline=None)  # compiling takes long
@given(st.integers(1, 100), st.integers(1, 32), st.data())
def test_starting_late_gives_the_tail(count: int, batch_size: int, data: st.DataObject) -> None:
    plan = EpochPlan(dataset_of(count), 1, View(32, batch_size))
    start = data.draw(st.integers(0, plan.num_batches))
    tail = list(plan.starting_at(start))
    assert len(tail) == len(plan.starting_at(start)) == plan.num_batches - start
    assert all(same(a, b) for a, b in zip(tail, list(plan)[start:], strict=True))


def test_crops_do_not_depend_on_batch_size_or_resolution() -> None:
    data = dataset_of(100)
    small = list(EpochPlan(data, 0, View(32, 7)))
    large = list(EpochPlan(data, 0, View(224, 50)))
    for name in ("indices", "windows", "flips"):
        assert np.array_equal(
            np.concatenate([getattr(batch, name) for batch in small]),
            np.concatenate([getattr(batch, name) for batch in large]),
        )


def test_epochs_and_seeds_differ() -> None:
    data, view = dataset_of(100), View(32, 100)
    first = EpochPlan(data, 0, view).batch(0)
    assert not np.array_equal(first.indices, EpochPlan(data, 1, view).batch(0).indices)
    assert not np.array_equal(first.indices, EpochPlan(data, 0, view, seed=1).batch(0).indices)


def test_drop_last_leaves_out_the_partial_batch() -> None:
    plan = EpochPlan(dataset_of(10), 0, View(32, 4, drop_last=True))
    assert [len(batch) for batch in plan] == [4, 4]
    with pytest.raises(ValueError, match="drop-last"):
        EpochPlan(dataset_of(3), 0, View(32, 4, drop_last=True))


def test_balanced_epochs_draw_classes_equally() -> None:
    data = replace(dataset_of(3000), labels=(np.arange(3000) % 100 == 0).astype(np.int64))
    (batch,) = EpochPlan(data, 0, View(32, 3000, balanced=True))
    assert 0.45 < data.labels[batch.indices].mean() < 0.55
    repeated = batch.indices[np.argsort(batch.indices, kind="stable")]
    assert len(np.unique(batch.keys)) == 3000, "repetitions of a sample have draws of their own"
    assert (np.diff(repeated) == 0).any()


def test_evaluation_is_in_file_order_and_centered() -> None:
    (batch,) = EpochPlan(dataset_of(9), 5, View.evaluation(32, 16, 0.875))
    assert np.array_equal(batch.indices, np.arange(9))
    assert not batch.flips.any()
    assert batch.view.is_evaluation
    assert np.allclose(batch.windows[:, :2] + batch.windows[:, 2:] / 2, 0.5)


@pytest.mark.parametrize("crop", get_args(Crop))
@settings(deadline=None)  # compiling takes long
@given(st.integers(1, 300), st.floats(0.05, 1), st.integers(0, 5))
def test_windows_are_inside_of_the_image(crop: Crop, resolution: int, fraction: float, seed: int) -> None:
    view = View(resolution, 16, crop=crop, crop_fraction=fraction)
    windows = EpochPlan(dataset_of(16), 0, view, seed).batch(0).windows
    assert windows.shape == (16, 4)
    assert (windows > -1e-12).all()
    assert (windows[:, 2:] > 0).all()
    assert (windows[:, :2] + windows[:, 2:] < 1 + 1e-12).all()


def test_stretched_windows_have_the_images_shape() -> None:
    view = View(24, 16, crop="stretch", crop_fraction=0.75, shuffle=False)
    assert (EpochPlan(dataset_of(16), 0, view).batch(0).windows == [0.125, 0.125, 0.75, 0.75]).all()
    placed = EpochPlan(dataset_of(16), 0, replace(view, crop="random-stretch")).batch(0).windows
    assert (placed[:, 2:] == 0.75).all()
    assert len(np.unique(placed[:, 0])) > 3
    assert np.allclose(placed[:, :2] * 32 % 1, 0), "whole pixels of the image resized to 32 x 32"


def test_a_replacement_depends_on_the_sample_alone() -> None:
    data = dataset_of(50)
    one = EpochPlan(data, 0, View(32, 50)).batch(0)
    position = 17
    other = EpochPlan(data, 0, View(64, 5)).batch(position // 5)
    for attempt in range(3):
        a = substitute(data, one, position, attempt)
        b = substitute(data, other, position % 5, attempt)
        assert same(a, b)
        assert len(a) == 1
    assert len({int(substitute(data, one, position, k).indices[0]) for k in range(20)}) > 10


def test_impossible_views_are_refused() -> None:
    for arguments in ({"resolution": 0}, {"batch_size": 0}, {"scale": (0.5, 0.2)}, {"ratio": (0, 1)}):
        with pytest.raises(ValueError, match="must be"):
            View(**{"resolution": 32, "batch_size": 4, **arguments})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no images"):
        EpochPlan(dataset_of(0), 0, View(32, 4))
