"""What a data set is made of, as its index and the bytes of its files tell, without decoding anything."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import njit
from tqdm import tqdm

from kernels.checksum import xxh64
from kernels.files import PATH_LIMIT, close_file, file_size, open_file, read_at
from loaders.dataset import ImageData, ImageDataset, PixelForm
from loaders.packed import PackedDataset

_FORM_NAMES = {
    PixelForm.RGB: "RGB",
    PixelForm.GRAY: "gray",
    PixelForm.CMYK: "CMYK",
    PixelForm.OTHER: "palette, alpha or 16-bit",
    PixelForm.UNREADABLE: "unreadable",
}
_PIECE = 4096  # bytes from the middle of a file that tell most files of equal size apart
_PER_TASK = 256


@dataclass(frozen=True)
class Distribution:
    """Smallest, middle and largest of a number over all images."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True)
class DataFacts:
    """What the index tells. Counts are over both splits unless they are named after one.

    Attributes:
        name: of the set.
        classes: C names.
        train_counts, val_counts: C numbers of images.
        widths, heights, megapixels, bytes: of the readable images.
        total_bytes: of all files.
        orientations: images by EXIF orientation, upright ones (1) left out.
        forms: images by color form, the most frequent first.
        unreadable: path and reason of each file whose header cannot be read.
    """

    name: str
    classes: tuple[str, ...]
    train_counts: tuple[int, ...]
    val_counts: tuple[int, ...]
    widths: Distribution
    heights: Distribution
    megapixels: Distribution
    bytes: Distribution
    total_bytes: int
    orientations: dict[int, int]
    forms: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]

    @property
    def num_train(self) -> int:
        return sum(self.train_counts)

    @property
    def num_val(self) -> int:
        return sum(self.val_counts)

    @property
    def imbalance(self) -> float:
        """Training images of the largest class over those of the smallest that has any."""
        present = [count for count in self.train_counts if count]
        return max(present) / min(present) if present else 1.0


def data_facts(data: ImageData) -> DataFacts:
    """Collect what the index of a set tells."""
    splits = (data.train, data.val)

    def joined(column: str) -> np.ndarray:
        return np.concatenate([getattr(split, column) for split in splits])

    forms = joined("forms")
    readable = forms != PixelForm.UNREADABLE
    widths, heights = joined("widths")[readable].astype(np.int64), joined("heights")[readable].astype(np.int64)
    turned, turned_counts = np.unique(joined("orientations")[readable], return_counts=True)
    kinds, kind_counts = np.unique(forms, return_counts=True)
    by_count = sorted(zip(kind_counts.tolist(), kinds.tolist(), strict=True), reverse=True)
    return DataFacts(
        name=data.name,
        classes=data.classes,
        train_counts=tuple(data.train.class_counts().tolist()),
        val_counts=tuple(data.val.class_counts().tolist()),
        widths=_distribution(widths),
        heights=_distribution(heights),
        megapixels=_distribution(widths * heights / 1e6),
        bytes=_distribution(joined("sizes")[readable]),
        total_bytes=int(joined("sizes").sum()),
        orientations={int(value): int(count) for value, count in zip(turned, turned_counts, strict=True) if value != 1},
        forms={_FORM_NAMES[PixelForm(kind)]: count for count, kind in by_count},
        unreadable=tuple(
            (split.paths[index], reason) for split in splits for index, reason in sorted(split.problems.items())
        ),
    )


def _distribution(values: np.ndarray) -> Distribution:
    if not len(values):
        return Distribution(0.0, 0.0, 0.0)
    return Distribution(float(values.min()), float(np.median(values)), float(values.max()))


@dataclass(frozen=True)
class Duplicates:
    """Files that are the same byte for byte.

    Attributes:
        across: pairs of paths, of a training file and a validation file that equals it; one for each such
            validation file.
        conflicting: pairs of paths of equal files with different labels, within a split or across.
        within_train: training files that equal an earlier one.
        compared: files that were compared, most of them by their size alone.
        unchecked: files that share their size with others, for which there was no time.
        unread: files that share their size with others and could not be read, or are empty.
    """

    across: tuple[tuple[str, str], ...]
    conflicting: tuple[tuple[str, str], ...]
    within_train: int
    compared: int
    unchecked: int = 0
    unread: int = 0


def exact_duplicates(data: ImageData, seconds: float, bar: tqdm[None]) -> Duplicates:
    """Find equal files.

    Only files of equal size can be equal; of these first 4 KiB from the middle are compared, by their XXH64, then the
    whole files. A packed set has checksums of its records.

    Args:
        data: both splits.
        seconds: to read for at most.
        bar: to be moved on by 1 in all.
    """
    bar.set_postfix_str("equal files")
    sizes = np.concatenate([data.train.sizes, data.val.sizes])
    keys = sizes.astype(np.uint64)
    late, unread = np.zeros(len(sizes), bool), sizes <= 0
    if isinstance(data.train, PackedDataset) and isinstance(data.val, PackedDataset):
        keys = np.concatenate([data.train.records.checksums, data.val.records.checksums])
    else:
        deadline = time.perf_counter() + seconds
        for whole in (False, True):
            among = np.flatnonzero(_repeated(keys) & ~unread & ~late)
            digests, known, tried = _digests(data, among, whole, deadline)
            keys[among] = digests
            late[among[~tried]] = True
            unread[among[tried & ~known]] = True
    bar.update(1)
    return _duplicates(data, keys, late, unread)


def _duplicates(data: ImageData, keys: np.ndarray, late: np.ndarray, unread: np.ndarray) -> Duplicates:
    """Find equal keys among those that there was time for and that could be read."""
    num_train = len(data.train)
    labels = np.concatenate([data.train.labels, data.val.labels])

    def path(index: int) -> str:
        return data.train.paths[index] if index < num_train else data.val.paths[index - num_train]

    indices = np.flatnonzero(~late & ~unread)
    _, first, group = np.unique(keys[indices], return_index=True, return_inverse=True)
    earliest = indices[first[group]]  # of each group the first file; training files come first
    again = indices != earliest
    pairs = list(zip(earliest[again].tolist(), indices[again].tolist(), strict=True))
    return Duplicates(
        across=tuple((path(one), path(other)) for one, other in pairs if one < num_train <= other),
        conflicting=tuple((path(one), path(other)) for one, other in pairs if labels[one] != labels[other]),
        within_train=sum(other < num_train for _, other in pairs),
        compared=len(indices),
        unchecked=int(late.sum()),
        unread=int(unread.sum()),
    )


def _repeated(keys: np.ndarray) -> np.ndarray:
    """Return bool (N,): whether each key occurs more than once."""
    _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
    repeated: np.ndarray = counts[group] > 1
    return repeated


def _digests(
    data: ImageData, indices: np.ndarray, whole: bool, deadline: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return uint64 (n,), the XXH64 of files counted through both splits, and bool (n,) twice: which were read, and for
    which there was time.
    """
    digests = np.zeros(len(indices), np.uint64)
    known, tried = np.zeros(len(indices), bool), np.zeros(len(indices), bool)
    # Validation first: it is the smaller one, and each of its files is to be compared with training.
    parts: Iterable[tuple[ImageDataset, int]] = ((data.val, len(data.train)), (data.train, 0))
    with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1)), thread_name_prefix="digest") as executor:
        tasks = []
        for split, offset in parts:
            mine = np.flatnonzero((indices >= offset) & (indices < offset + len(split)))
            for start in range(0, len(mine), _PER_TASK):
                rows = mine[start : start + _PER_TASK]
                files = indices[rows] - offset
                tasks.append(executor.submit(_digest_task, split, files, rows, whole, deadline, digests, known, tried))
        for task in tasks:
            task.result()
    return digests, known, tried


def _digest_task(
    split: ImageDataset,
    files: np.ndarray,
    rows: np.ndarray,
    whole: bool,
    deadline: float,
    digests: np.ndarray,
    known: np.ndarray,
    tried: np.ndarray,
) -> None:
    if time.perf_counter() < deadline:
        tried[rows] = True
        _digest_files(split.paths.buffer, split.paths.offsets, files, rows, whole, digests, known)


@njit(cache=True, nogil=True)
def _digest_files(
    buffer: np.ndarray,
    offsets: np.ndarray,
    files: np.ndarray,
    rows: np.ndarray,
    whole: bool,
    digests: np.ndarray,
    known: np.ndarray,
) -> None:
    """Fill in the XXH64 of whole files, or of a piece from the middle of each, seeded with the size."""
    path = np.empty(PATH_LIMIT, np.uint8)
    content = np.empty(_PIECE, np.uint8)
    for place in range(len(files)):
        name = buffer[offsets[files[place]] : offsets[files[place] + 1]]
        file = open_file(name, path)
        if file < 0:
            continue
        size = file_size(file)
        wanted = size if whole else min(size, _PIECE)
        if len(content) < wanted:
            content = np.empty(wanted, np.uint8)
        begin = (size - wanted) // 2
        count = read_at(file, begin, content[: max(0, wanted)])
        close_file(file)
        if count == wanted:
            digests[rows[place]] = xxh64(content[:count], size)
            known[rows[place]] = True
