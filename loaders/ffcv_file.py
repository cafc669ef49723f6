"""A data set as a `.beton` file: written on first use, checked whenever it is opened.

The layout is FFCV's own (its documentation: "DatasetWriter", fields `image` and `label`), so FFCV's loaders read the
file as well. A sample whose image is bad keeps its place, held by a single gray pixel, and a list of the bad ones lies
beside the file.
"""

from __future__ import annotations

import csv
import fcntl
import io
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from loaders.contract import LoaderError
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.ffcv_library import DatasetWriter, HeaderType, IntField, MemoryAllocator, Reader, RGBImageField
from loaders.files import atomic_file
from loaders.pixels import PixelError, decode

JPEG, RAW = 0, 1  # how FFCV marks what a record holds

_AHEAD = 8  # images encoded ahead of the one to be written, for each thread
_JPEG_BYTES_PER_PIXEL = 0.5  # photos at quality 90 take about 0.35
_MIN_PAGE_BITS = 23  # FFCV's default: pages of 8 MiB


@dataclass(frozen=True)
class Storage:
    """How images are stored.

    Attributes:
        max_side: pixels of the longer side; larger images are reduced.
        quality: of the JPEGs, 1 to 95; None stores raw pixels.
    """

    max_side: int
    quality: int | None

    @property
    def name(self) -> str:
        """What tells the files of one data set apart."""
        return f"raw{self.max_side}" if self.quality is None else f"jpeg{self.max_side}q{self.quality}"

    @property
    def page_size(self) -> int:
        """Bytes of a page, a power of two; no record may be larger."""
        return 1 << max(_MIN_PAGE_BITS, (4 * self.max_side**2).bit_length())


JPEG_500 = Storage(500, 90)
RAW_256 = Storage(256, None)


class _Record(NamedTuple):
    """An image as it is stored; with a reason, the place of one that is bad."""

    data: bytes
    width: int
    height: int
    problem: str | None


@dataclass(frozen=True, eq=False)
class Beton:
    """A `.beton` file that has been checked: every record lies within it.

    Attributes:
        path: the file.
        bad: the reasons for the samples that hold no image, by index.
        data: uint8, the whole file, mapped.
        modes: uint8 (N,), JPEG or RAW.
        widths, heights: uint16 (N,), pixels as stored.
        offsets, lengths: int64 (N,), bytes: where each sample's record lies in the file.
    """

    path: Path
    bad: dict[int, str]
    data: np.ndarray
    modes: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def record(self, index: int) -> np.ndarray:
        """Return the bytes of a sample's image: uint8, read-only, mapped."""
        return self.data[self.offsets[index] : self.offsets[index] + self.lengths[index]]

    def place(self, index: int) -> tuple[int, int, int, int, int]:
        """Return the address of a sample's bytes, how many they are, and mode, width and height."""
        row = (self.offsets[index], self.lengths[index], self.modes[index], self.widths[index], self.heights[index])
        return self.data.ctypes.data + int(row[0]), *(int(value) for value in row[1:])  # type: ignore[return-value]


def open_beton(dataset: ImageDataset, storage: Storage, cache: Path, show_progress: bool = True) -> Beton:
    """Open the file of a data set; write it when the cache has none.

    Of several processes that need the same file one writes it and the others wait.

    Raises:
        LoaderError: there is too little room, or the file is damaged.
    """
    path = cache / "ffcv" / f"{dataset.fingerprint}-{storage.name}.beton"
    listing = path.with_suffix(".bad.csv")
    if not path.exists():
        with _one_process(path.with_suffix(".lock")):
            if not path.exists():
                _write(path, listing, dataset, storage, show_progress)
    try:
        return _opened(path, _read_listing(listing), len(dataset))
    except (ValueError, OSError, LookupError, AssertionError) as error:  # FFCV asserts that the version is its own
        raise LoaderError(f"{path} is damaged ({error}); remove it to have it written again") from error


@contextmanager
def _one_process(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _opened(path: Path, bad: dict[int, str], count: int) -> Beton:
    """Map a file.

    Raises:
        ValueError, LookupError, AssertionError: it is not what FFCV writes, or cut off.
    """
    (header,) = np.fromfile(path, HeaderType, 1)
    end = int(header["alloc_table_ptr"])
    if header["num_samples"] != count or not header["page_size"] or end >= path.stat().st_size:
        raise ValueError(f"it does not hold {count} samples, or is cut off")
    reader = Reader(str(path))
    table = np.sort(reader.alloc_table, order="ptr")
    images = reader.metadata["f0"]
    if not len(table) or end + table.nbytes != path.stat().st_size:
        raise ValueError("it is cut off")
    if (table["ptr"] > end).any() or (table["size"] > end - table["ptr"]).any():
        raise ValueError("a record lies outside of it")
    rows = np.minimum(np.searchsorted(table["ptr"], images["data_ptr"]), len(table) - 1)
    if (table["ptr"][rows] != images["data_ptr"]).any():
        raise ValueError("a sample has no record")
    return Beton(
        path,
        bad,
        np.memmap(path, np.uint8, "r"),
        images["mode"],
        images["width"],
        images["height"],
        images["data_ptr"].astype(np.int64),
        table["size"][rows].astype(np.int64),
    )


def _write(path: Path, listing: Path, dataset: ImageDataset, storage: Storage, show_progress: bool) -> None:
    """Write a file and the list of its bad samples, or neither."""
    firsts, first_of = _distinct_files(dataset)
    _check_free_space(path.parent, dataset, firsts, storage)
    bad: dict[int, str] = {}
    with atomic_file(path) as temporary:
        # FFCV's writer is driven from here: its own worker processes leave the parent waiting for ever when one of
        # them fails, and forking beside the threads of Numba and PyTorch is not safe.
        writer: Any = DatasetWriter(
            str(temporary), {"image": RGBImageField(), "label": IntField()}, storage.page_size, num_workers=1
        )
        writer.num_samples = len(dataset)
        writer.prepare()
        writer.metadata_sm.close()  # shared memory is for worker processes, and /dev/shm may be too small
        writer.metadata_sm.unlink()
        metadata = np.zeros(len(dataset), writer.metadata_type)
        images, labels = metadata["f0"], metadata["f1"]
        allocator = MemoryAllocator(writer.fname, writer.data_region_start, writer.page_size)
        progress = tqdm(
            _encoded(dataset, firsts, storage),
            f"writing {path.name} for FFCV",
            len(firsts),
            unit=" images",
            disable=not show_progress,
            leave=False,
        )
        with progress, allocator:
            for index, record in zip(firsts.tolist(), progress, strict=True):
                allocator.set_current_sample(index)
                pointer, memory = allocator.malloc(len(record.data))
                memory[:] = np.frombuffer(record.data, np.uint8)
                images[index] = (RAW if storage.quality is None else JPEG, record.width, record.height, pointer)
                if record.problem is not None:
                    bad[index] = record.problem
        images[:] = images[first_of]
        labels[:] = dataset.labels
        writer.metadata_sm = SimpleNamespace(buf=metadata.tobytes())
        writer.finalize(allocator.allocations)
        _opened(temporary, {}, len(dataset))  # FFCV does not look whether what it wrote arrived
        _write_listing(listing, dataset, {i: bad[f] for i, f in enumerate(first_of.tolist()) if f in bad})


def _distinct_files(dataset: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples that are the first of their file, int64, and for each sample that first one, int64 (N,)."""
    first: dict[str, int] = {}
    first_of = np.fromiter((first.setdefault(p, i) for i, p in enumerate(dataset.paths)), np.int64, len(dataset))
    return np.fromiter(first.values(), np.int64, len(first)), first_of


def _check_free_space(folder: Path, dataset: ImageDataset, indices: np.ndarray, storage: Storage) -> None:
    widths, heights = dataset.widths[indices].astype(float), dataset.heights[indices].astype(float)
    reduction = np.minimum(1, storage.max_side / np.maximum(widths, heights))
    pixels = float((widths * heights * reduction**2).sum())
    needed = pixels * (3 if storage.quality is None else _JPEG_BYTES_PER_PIXEL) + storage.page_size
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise LoaderError(
            f"{dataset.name} takes about {needed / 1e9:.1f} GB as a .beton file, and {folder} has {free / 1e9:.1f} GB "
            "free: make room, or name another cache folder"
        )


def _encoded(dataset: ImageDataset, indices: np.ndarray, storage: Storage) -> Iterator[_Record]:
    """Yield the records of samples, in order, encoded by as many threads as there are cores."""

    def encode(index: int) -> _Record:
        if index in dataset.problems:
            return _placeholder(storage, dataset.problems[index])
        try:
            return _as_stored(decode(dataset.paths[index]), storage)
        except PixelError as error:
            return _placeholder(storage, str(error))

    num_threads = max(1, int(usable_cores()))
    with ThreadPoolExecutor(num_threads, thread_name_prefix="beton") as executor:
        yield from _in_order(executor, encode, indices.tolist(), _AHEAD * num_threads)


def _in_order(
    executor: ThreadPoolExecutor, task: Callable[[int], _Record], items: Iterable[int], ahead: int
) -> Iterator[_Record]:
    """Yield the results of a task, no more than ``ahead`` of them waiting to be taken."""
    pending: deque[Future[_Record]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(task, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _as_stored(image: Image.Image, storage: Storage, problem: str | None = None) -> _Record:
    reduction = storage.max_side / max(image.size)
    if reduction < 1:
        width, height = (max(1, round(side * reduction)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if storage.quality is None:
        return _Record(image.tobytes(), *image.size, problem)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=storage.quality, comment=b"")  # Pillow would copy the file's
    return _Record(buffer.getvalue(), *image.size, problem)


def _placeholder(storage: Storage, problem: str) -> _Record:
    return _as_stored(Image.new("RGB", (1, 1), "gray"), storage, problem)


def _write_listing(listing: Path, dataset: ImageDataset, bad: dict[int, str]) -> None:
    with (
        atomic_file(listing) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["index", "path", "reason"])
        writer.writerows((index, dataset.paths[index], reason) for index, reason in bad.items())


def _read_listing(listing: Path) -> dict[int, str]:
    with listing.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {int(row["index"]): row["reason"] for row in csv.DictReader(file)}
