"""What the pixels of a data set tell: mean and deviation, pictures that look alike, files that do not decode."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from kernels.random import Stream, permutation
from loaders.bad_samples import BadSamples
from loaders.contract import Loader
from loaders.dataset import ImageData, ImageDataset
from loaders.plan import BatchPlan, EpochPlan, View
from loaders.registry import create_loader

_ROWS, _COLUMNS = 8, 9  # of a thumbnail: eight comparisons in each row make 64 bits
_MOST_BITS = 7  # in which the hashes of two pictures that look alike may differ
_MOST_LEVELS = 6.0  # by which their thumbnails may differ, of 255, on average
_LEAST_CONTRAST = 8  # levels between the lightest and the darkest part: a flat picture looks like every other
_PAIRS_AT_ONCE = 1 << 22
_BATCH = 64
_CHANNEL_LEVELS = 255.0


@dataclass(frozen=True)
class NearDuplicate:
    """A training and a validation image that look alike.

    Attributes:
        train, val: their paths.
        bits: of 64, in which their hashes differ.
        levels: of 255, by which their thumbnails differ on average.
    """

    train: str
    val: str
    bits: int
    levels: float

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
        near: validation images that look like a training image.
        bad: path and reason of the files that could not be decoded.
    """

    resolution: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_train: int
    num_val: int
    whole: bool
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
        thumbnails: float32 (n, 3, 8, 9), 0 to 255.
    """

    sums: tuple[int, ...]
    squares: tuple[int, ...]
    indices: np.ndarray
    thumbnails: np.ndarray


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
    with create_loader(loader, [train, val], num_workers, bad) as opened:
        share = 0.5 * len(val) / max(1, len(train) + len(val)) + 0.25
        seen_val = _look(opened, val, resolution, begin + share * seconds, bar)
        seen_train = _look(opened, train, resolution, begin + seconds, bar)
    mean, std = _statistics(seen_train, resolution)
    return PixelFacts(
        resolution,
        mean,
        std,
        len(seen_train.indices),
        len(seen_val.indices),
        len(seen_train.indices) + len(seen_val.indices) + len(bad) >= len(data.train) + len(data.val),
        tuple(_near_duplicates(train, seen_train, val, seen_val, frozenset(known))),
        tuple((sample.path, sample.reason) for sample in sorted(bad)),
    )


def _sample(split: ImageDataset, most: int, seed: int) -> ImageDataset:
    """Return images of a split in random order, so that those seen until time is up stand for all."""
    return split.select(permutation(seed, 0, len(split), Stream.SPLIT)[:most]) if len(split) else split


def _look(loader: Loader, split: ImageDataset, resolution: int, deadline: float, bar: tqdm[None]) -> _Seen:
    sums, squares = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    indices: list[np.ndarray] = []
    thumbnails: list[np.ndarray] = []
    rows, columns = (_box_weights(resolution, count) for count in (_ROWS, _COLUMNS))
    for pixels, batch_indices in _batches(loader, split, resolution):
        sums += pixels.sum((0, 2, 3), dtype=torch.int64)
        squares += pixels.to(torch.int32).square_().sum((0, 2, 3), dtype=torch.int64)
        thumbnails.append((rows @ pixels.to(torch.float32) @ columns.T).numpy())
        indices.append(batch_indices)
        bar.update(0.5 * len(batch_indices) / len(split))
        if time.perf_counter() >= deadline:
            break
    return _Seen(
        tuple(sums.tolist()),
        tuple(squares.tolist()),
        np.concatenate(indices) if indices else np.empty(0, np.int64),
        np.concatenate(thumbnails) if thumbnails else np.empty((0, 3, _ROWS, _COLUMNS), np.float32),
    )


def _batches(loader: Loader, split: ImageDataset, resolution: int) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    if not len(split):
        return
    for batch in loader.run(WholeImages(split, 0, View.evaluation(resolution, _BATCH))):
        if len(batch):
            yield batch.images.cpu(), batch.indices.numpy()


def _box_weights(resolution: int, count: int) -> torch.Tensor:
    """Return float32 (count, resolution): the weights that average a line of pixels over ``count`` equal stretches."""
    edges = np.arange(resolution)
    starts = np.arange(count)[:, None] * resolution / count
    overlap = np.minimum(edges + 1, starts + resolution / count) - np.maximum(edges, starts)
    return torch.from_numpy((overlap.clip(0) * count / resolution).astype(np.float32))


def _statistics(seen: _Seen, resolution: int) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of the channels, of whole numbers up to the last division."""
    count = len(seen.indices) * resolution**2
    if not count:
        return (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    means = [total / count / _CHANNEL_LEVELS for total in seen.sums]
    variances = [(count * square - total**2) / count**2 for total, square in zip(seen.sums, seen.squares, strict=True)]
    deviations = [variance**0.5 / _CHANNEL_LEVELS for variance in variances]
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])


def difference_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Return the difference hash of each thumbnail: a bit says whether a part is darker than its right neighbor.

    After N. Krawetz, "Kind of Like That", The Hacker Factor Blog, 2013 (dHash).

    Args:
        thumbnails: float32 (n, 3, 8, 9), red, green and blue.

    Returns:
        uint64 (n,).
    """
    gray = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), thumbnails, (0, 1))  # ITU-R BT.601
    bits = np.packbits((gray[:, :, :-1] < gray[:, :, 1:]).reshape(len(gray), 64), axis=1)
    return np.ascontiguousarray(bits).view(np.uint64)[:, 0]


def similar_pairs(hashes: np.ndarray, others: np.ndarray, most_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Find all pairs of hashes that differ in few bits, without comparing all pairs.

    Cut into one more band than bits may differ, two such hashes agree in at least one band: those that do are found by
    sorting, and compared.

    Args:
        hashes: uint64 (n,).
        others: uint64 (m,).
        most_bits: in which they may differ, at most 31.

    Returns:
        int64 (k,) and int64 (k,): places in ``hashes`` and in ``others``, each pair once.
    """
    found: list[np.ndarray] = []
    edges = np.linspace(0, 64, most_bits + 2).astype(int)
    for low, high in itertools.pairwise(edges.tolist()):
        mask = np.uint64(((1 << (high - low)) - 1) << low)
        order = np.argsort(hashes & mask, kind="stable")
        ordered = (hashes & mask)[order]
        first = np.searchsorted(ordered, others & mask, "left")
        counts = np.searchsorted(ordered, others & mask, "right") - first
        for start, stop in _chunks(counts):
            right = np.repeat(np.arange(start, stop), counts[start:stop])
            begins = np.repeat(np.cumsum(counts[start:stop]) - counts[start:stop], counts[start:stop])
            left = order[np.repeat(first[start:stop], counts[start:stop]) + np.arange(len(right)) - begins]
            near = np.bitwise_count(hashes[left] ^ others[right]) <= most_bits
            found.append(left[near] * np.int64(len(others)) + right[near])
    pairs = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    return pairs // max(1, len(others)), pairs % max(1, len(others))


def _chunks(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut what is to be compared into stretches of at most about _PAIRS_AT_ONCE pairs."""
    totals = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(totals[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(totals, before + _PAIRS_AT_ONCE, "right")))
        yield start, stop
        start = stop


def _near_duplicates(
    train: ImageDataset, seen_train: _Seen, val: ImageDataset, seen_val: _Seen, known: frozenset[str]
) -> Iterator[NearDuplicate]:
    """Yield for each validation image the training image that it looks most like, if it looks like one."""
    rows = [np.flatnonzero(_contrast(seen.thumbnails) >= _LEAST_CONTRAST) for seen in (seen_train, seen_val)]
    thumbnails = [seen.thumbnails[chosen] for seen, chosen in zip((seen_train, seen_val), rows, strict=True)]
    hashes = [difference_hashes(some) for some in thumbnails]
    left, right = similar_pairs(hashes[0], hashes[1], _MOST_BITS)
    levels = np.abs(thumbnails[0][left] - thumbnails[1][right]).mean(axis=(1, 2, 3))
    bits = np.bitwise_count(hashes[0][left] ^ hashes[1][right])
    reported: set[str] = set()
    for pair in np.lexsort((left, bits, levels)).tolist():
        if levels[pair] > _MOST_LEVELS:
            break
        path = val.paths[int(seen_val.indices[rows[1][right[pair]]])]
        if path in reported or path in known:
            continue
        reported.add(path)
        partner = train.paths[int(seen_train.indices[rows[0][left[pair]]])]
        yield NearDuplicate(partner, path, int(bits[pair]), float(levels[pair]))


def _contrast(thumbnails: np.ndarray) -> np.ndarray:
    """Return float32 (n,): levels between the lightest and the darkest part of each thumbnail."""
    contrast: np.ndarray = np.ptp(thumbnails, axis=(1, 2, 3))
    return contrast
