"""What the pixels of a data set tell: mean and deviation, pictures that look alike, files that do not decode."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from engine.doctor_similar import most_similar, no_thumbnails, thumbnails
from kernels.random import Stream, permutation
from loaders.bad_samples import BadSamples
from loaders.contract import Loader
from loaders.dataset import ImageData, ImageDataset
from loaders.plan import BatchPlan, EpochPlan, View
from loaders.registry import create_loader

_BATCH = 64
_CHANNEL_LEVELS = 255.0
_DECODING = 0.8  # share of the time; the rest is for comparing


@dataclass(frozen=True)
class NearDuplicate:
    """A training and a validation image that look alike.

    Attributes:
        train, val: their paths.
        similarity: correlation of their gray thumbnails, near 1.
    """

    train: str
    val: str
    similarity: float

    @property
    def pair(self) -> tuple[str, str]:
        return self.train, self.val


@dataclass(frozen=True)
class PixelFacts:
    """What a pass over the pixels told.

    Attributes:
        resolution: of the images it looked at, whole and scaled to a square, pixels.
        mean, std: of red, green and blue over the training images seen, for pixels in 0..1.
        num_train, num_val: images seen of each split.
        whole: whether these were all of the set.
        num_compared: validation images that were compared with all training images seen.
        near: validation images that look like a training image.
        bad: path and reason of the files that could not be decoded.
    """

    resolution: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_train: int
    num_val: int
    whole: bool
    num_compared: int
    near: tuple[NearDuplicate, ...]
    bad: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class WholeImages(EpochPlan):
    """An epoch that shows whole images, in file order, whatever their shape."""

    def batch(self, step: int) -> BatchPlan:
        batch = super().batch(step)
        return replace(batch, windows=np.tile(np.array([0.0, 0.0, 1.0, 1.0]), (len(batch), 1)))


@dataclass(frozen=True, eq=False)
class _Seen:
    """What was gathered of a split.

    Attributes:
        sums, squares: three numbers each, over all pixels of a channel; whole, so that no order of adding matters.
        indices: int64 (n,), of the images seen.
        thumbnails: float16 (n, side, side), gray.
    """

    sums: tuple[int, ...]
    squares: tuple[int, ...]
    indices: np.ndarray
    thumbnails: torch.Tensor


def pixel_facts(
    data: ImageData,
    loader: str,
    num_workers: int,
    resolution: int,
    seconds: float,
    bar: tqdm[None],
    *,
    most: int = 50_000,
    known: Collection[str] = (),
    seed: int = 0,
) -> PixelFacts:
    """Decode images of both splits, at random, until all are seen or time is up.

    Args:
        data: both splits.
        loader: what decodes.
        num_workers: its workers.
        resolution: to scale each whole image to, pixels.
        seconds: for all of it. Validation images, of which there are fewer, go first.
        bar: to be moved on by 1 in all.
        most: images of each split to look at.
        known: validation files that equal a training file, which need no second mention.
        seed: of the choice.
    """
    bad = BadSamples(max_fraction=1.0)
    train, val = (_sample(split, most, seed) for split in (data.train, data.val))
    bar.set_postfix_str(f"pixels by {loader}")
    begin = time.perf_counter()
    with create_loader(loader, [train, val], num_workers, bad) as opened, _one_thread():
        share = 0.5 * len(val) / max(1, len(train) + len(val)) + 0.25
        seen_val = _look(opened, val, resolution, begin + share * _DECODING * seconds, bar)
        seen_train = _look(opened, train, resolution, begin + _DECODING * seconds, bar)
    bar.set_postfix_str("near duplicates")
    places, similarities, compared = most_similar(seen_train.thumbnails, seen_val.thumbnails, begin + seconds)
    near = [
        NearDuplicate(
            train.paths[int(seen_train.indices[places[row]])], val.paths[int(seen_val.indices[row])], float(similarity)
        )
        for row, similarity in enumerate(similarities)
        if places[row] >= 0
    ]
    mean, std = _statistics(seen_train, resolution)
    return PixelFacts(
        resolution,
        mean,
        std,
        len(seen_train.indices),
        len(seen_val.indices),
        len(seen_train.indices) + len(seen_val.indices) + len(bad) >= len(data.train) + len(data.val),
        compared,
        tuple(sorted((pair for pair in near if pair.val not in known), key=lambda pair: -pair.similarity)),
        tuple((sample.path, sample.reason) for sample in sorted(bad)),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have PyTorch compute in one thread: what is done to a batch is little, and the loader needs the other cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sample(split: ImageDataset, most: int, seed: int) -> ImageDataset:
    """Return images of a split in random order, so that those seen until time is up stand for all."""
    return split.select(permutation(seed, 0, len(split), Stream.SPLIT)[:most]) if len(split) else split


def _look(loader: Loader, split: ImageDataset, resolution: int, deadline: float, bar: tqdm[None]) -> _Seen:
    sums, squares = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    indices: list[np.ndarray] = []
    thumbs: list[torch.Tensor] = []
    for pixels, batch_indices in _batches(loader, split, resolution):
        sums += pixels.sum((0, 2, 3), dtype=torch.int64)
        squares += pixels.to(torch.int32).square_().sum((0, 2, 3), dtype=torch.int64)
        thumbs.append(thumbnails(pixels))
        indices.append(batch_indices)
        bar.update(0.5 * len(batch_indices) / len(split))
        if time.perf_counter() >= deadline:
            break
    return _Seen(
        tuple(sums.tolist()),
        tuple(squares.tolist()),
        np.concatenate(indices) if indices else np.empty(0, np.int64),
        torch.cat(thumbs) if thumbs else no_thumbnails(),
    )


def _batches(loader: Loader, split: ImageDataset, resolution: int) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    if not len(split):
        return
    for batch in loader.run(WholeImages(split, 0, View.evaluation(resolution, _BATCH))):
        if len(batch):
            yield batch.images.cpu(), batch.indices.numpy()


def _statistics(seen: _Seen, resolution: int) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of the channels, of whole numbers up to the last division."""
    count = len(seen.indices) * resolution**2
    if not count:
        return (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    means = [total / count / _CHANNEL_LEVELS for total in seen.sums]
    variances = [(count * square - total**2) / count**2 for total, square in zip(seen.sums, seen.squares, strict=True)]
    deviations = [variance**0.5 / _CHANNEL_LEVELS for variance in variances]
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])
