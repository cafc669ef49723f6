"""The epoch plan: which samples, in which order, with which crop and flip, before any pixel is read.

Everything here is a pure function of (seed, epoch, sample), so a run gives the same batches with any backend, any
number of workers and after any interruption; a rank of a distributed job takes its slice of the one plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from kernels.crops import center_windows, random_resized_windows, random_square_windows, stretched_windows
from kernels.random import Stream, permutation, uniform, words
from loaders.dataset import ImageDataset

Crop = Literal["random-resized", "random-square", "random-stretch", "padded", "center", "stretch"]


@dataclass(frozen=True)
class View:
    """How an epoch looks at a data set: the size, the batch, and how crops are drawn.

    Attributes:
        resolution: side of the square images, pixels.
        batch_size: samples of a batch over all ranks.
        crop: ``center`` a centered square; ``stretch`` a centered window of the image's own shape, squeezed into a
            square; ``random-square`` and ``random-stretch`` the same at random places, as torchvision's Resize and
            RandomCrop; ``random-resized`` as its RandomResizedCrop; ``padded`` a centered square, to be shifted later
            within a reflected border (the shift is drawn on the device).
        scale: range of the crop's area over the image's (``random-resized``).
        ratio: range of the crop's aspect ratio (``random-resized``).
        crop_fraction: side of a square over the image's shorter side, or sides of a stretched window over the image's
            (all but ``random-resized``).
        flip: probability of a horizontal flip.
        shuffle: draw a new order each epoch.
        balanced: draw with replacement so that every class is equally likely.
        drop_last: leave out the last batch when it is not full.
    """

    resolution: int
    batch_size: int
    crop: Crop = "random-resized"
    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_fraction: float = 1.0
    flip: float = 0.5
    shuffle: bool = True
    balanced: bool = False
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {self.resolution}")
        if self.batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {self.batch_size}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two rising numbers in (0, 1], got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two rising positive numbers, got {self.ratio}")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop fraction must be in (0, 1], got {self.crop_fraction}")

    @property
    def is_evaluation(self) -> bool:
        """Whether every sample counts once as it is: bad ones are left out, not replaced."""
        return not (self.shuffle or self.balanced)

    @staticmethod
    def evaluation(resolution: int, batch_size: int, crop_fraction: float = 1.0) -> View:
        """Return the view for evaluation: file order, centered crop, no flip."""
        return View(resolution, batch_size, crop="center", crop_fraction=crop_fraction, flip=0.0, shuffle=False)


@dataclass(frozen=True)
class BatchPlan:
    """What one rank reads for one batch.

    Attributes:
        step: number of the batch in its epoch.
        indices: int64 (n,), samples of the data set.
        keys: uint64 (n,), what their random draws are keyed by: the index, plus the size of the set for each earlier
            occurrence in a balanced epoch.
        windows: float64 (n, 4), crops in fractions of the upright image: left, top, width, height.
        flips: bool (n,).
    """

    step: int
    seed: int
    epoch: int
    view: View
    indices: np.ndarray
    keys: np.ndarray
    windows: np.ndarray
    flips: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def resolution(self) -> int:
        return self.view.resolution


def draw_batch(
    dataset: ImageDataset, view: View, seed: int, epoch: int, step: int, indices: np.ndarray, keys: np.ndarray
) -> BatchPlan:
    """Draw the crops and flips of the given samples."""
    widths, heights = dataset.widths[indices], dataset.heights[indices]
    match view.crop:
        case "random-resized":
            windows = random_resized_windows(seed, epoch, keys, widths, heights, view.scale, view.ratio)
        case "random-square" | "random-stretch":
            resized = max(view.resolution, round(view.resolution / view.crop_fraction))
            stretched = view.crop == "random-stretch"
            windows = random_square_windows(seed, epoch, keys, widths, heights, view.resolution, resized, stretched)
        case "stretch":
            windows = stretched_windows(len(keys), view.crop_fraction)
        case "center" | "padded":
            windows = center_windows(widths, heights, view.crop_fraction)
    flips = uniform(seed, epoch, keys, Stream.FLIP, 1)[:, 0] < view.flip
    return BatchPlan(step, seed, epoch, view, indices, keys, windows, flips)


def substitute(dataset: ImageDataset, batch: BatchPlan, position: int, attempt: int) -> BatchPlan:
    """Return a batch of one: the ``attempt``-th replacement for the sample at ``position``, should it be bad.

    The replacement depends on the sample alone, never on who finds it bad or when.
    """
    key = batch.keys[position : position + 1]
    draw = words(batch.seed, batch.epoch, key, Stream.REPLACEMENT, attempt)
    index = (draw % np.uint64(len(dataset))).astype(np.int64)
    return draw_batch(dataset, batch.view, batch.seed, batch.epoch, batch.step, index, key)


@dataclass(frozen=True)
class EpochPlan:
    """All batches of one epoch for one rank. Iterating yields a BatchPlan each, from ``start_batch`` on.

    A rank's share of a batch is every ``world``-th of its samples; in the last batch of an epoch a share may be empty.
    """

    dataset: ImageDataset
    epoch: int
    view: View
    seed: int = 0
    rank: int = 0
    world: int = 1
    start_batch: int = 0

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            raise ValueError(f"{self.dataset.name} has no images")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank must be in [0, {self.world}), got {self.rank}")
        if self.view.drop_last and len(self.dataset) < self.view.batch_size:
            raise ValueError(
                f"{self.dataset.name} has {len(self.dataset)} images, fewer than one batch of {self.view.batch_size}: "
                "nothing is left to train on; lower --batch-size or do not use --drop-last"
            )
        if not 0 <= self.start_batch <= self.num_batches:
            raise ValueError(f"start batch must be in [0, {self.num_batches}], got {self.start_batch}")

    @property
    def num_batches(self) -> int:
        """Batches of the whole epoch, those before ``start_batch`` included."""
        full, rest = divmod(len(self.dataset), self.view.batch_size)
        return full + (rest > 0 and not self.view.drop_last)

    @property
    def num_samples(self) -> int:
        """Samples of the whole epoch over all ranks."""
        return min(len(self.dataset), self.num_batches * self.view.batch_size)

    def __len__(self) -> int:
        return self.num_batches - self.start_batch

    @cached_property
    def _samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices and keys of the epoch in order."""
        count = len(self.dataset)
        if self.view.balanced:
            order = self._balanced_order()
        elif self.view.shuffle:
            order = permutation(self.seed, self.epoch, count)
        else:
            order = np.arange(count, dtype=np.int64)
        keys = order.astype(np.uint64)
        if self.view.balanced:
            keys += _occurrence(order).astype(np.uint64) * np.uint64(count)
        return order, keys

    def _balanced_order(self) -> np.ndarray:
        draws = uniform(self.seed, self.epoch, np.arange(len(self.dataset)), Stream.BALANCE, 2)
        by_class = np.argsort(self.dataset.labels, kind="stable")
        counts = self.dataset.class_counts()
        present = np.flatnonzero(counts)
        chosen = present[(draws[:, 0] * len(present)).astype(np.int64)]
        first = np.cumsum(counts) - counts
        return by_class[first[chosen] + (draws[:, 1] * counts[chosen]).astype(np.int64)]

    def global_count(self, step: int) -> int:
        """Return how many samples batch ``step`` has over all ranks."""
        return min(self.view.batch_size, len(self.dataset) - step * self.view.batch_size)

    def batch(self, step: int) -> BatchPlan:
        """Return this rank's share of batch ``step``."""
        order, keys = self._samples
        share = slice(
            step * self.view.batch_size + self.rank,
            min((step + 1) * self.view.batch_size, len(order)),
            self.world,
        )
        return draw_batch(self.dataset, self.view, self.seed, self.epoch, step, order[share], keys[share])

    def __iter__(self) -> Iterator[BatchPlan]:
        for step in range(self.start_batch, self.num_batches):
            yield self.batch(step)

    def starting_at(self, step: int) -> EpochPlan:
        """Return the same epoch from batch ``step`` on."""
        return replace(self, start_batch=step)


def _occurrence(values: np.ndarray) -> np.ndarray:
    """Return for each element how many equal ones stand before it."""
    by_value = np.argsort(values, kind="stable")
    ordered = values[by_value]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    run_start = np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    out = np.empty(len(values), np.int64)
    out[by_value] = np.arange(len(values)) - run_start
    return out
