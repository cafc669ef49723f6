"""The index of a data set: size, orientation and form of every image, from the headers alone, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from tqdm import tqdm

from loaders.dataset import ImageDataset, StringColumn
from loaders.files import atomic_file
from loaders.headers import read_headers
from loaders.sources import Listing

FORMAT_VERSION = 1  # of the cached file; raise it when the meaning of a column changes
_FILES_PER_TASK = 512

logger = logging.getLogger("headrace")


def index_images(
    name: str, classes: tuple[str, ...], listing: Listing, cache: Path, show_progress: bool = True
) -> ImageDataset:
    """Make the data set of the listed files.

    Headers are read by threads (compiled code without the GIL; enough of them to keep a slow disk busy) and the result
    is kept in ``cache/index``. It is found again by a hash of the paths, file sizes and modification times, so that any
    change of the files makes a new one; labels are not part of it.

    Args:
        name: what to call the set, for example ``"demo/train"``.
        classes: class names; the labels index into it.
        listing: the files.
        cache: the cache folder.
        show_progress: show a progress bar while headers are read.
    """
    paths = StringColumn.of(listing.paths)
    stored = cache / "index" / f"{_content_key(paths, listing)}.npz"
    columns = _restore(stored, len(listing))
    if columns is None or columns[3]:
        # What could not be read is looked at again: permissions and network file systems mend without a trace.
        columns = _read_all(name, paths, show_progress) if columns is None else _read_again(paths, columns)
        _store(stored, columns)
    upright, orientations, forms, problems = columns
    if problems:
        logger.warning(
            "%s: the headers of %d of %d files cannot be read, first %s",
            name,
            len(problems),
            len(listing),
            _first(paths, problems),
        )
    return ImageDataset(
        name=name,
        classes=classes,
        paths=paths,
        labels=listing.labels,
        widths=np.ascontiguousarray(upright[:, 0]),
        heights=np.ascontiguousarray(upright[:, 1]),
        orientations=orientations,
        forms=forms,
        sizes=listing.sizes,
        problems=problems,
    )


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, str]]  # upright sizes, orientations, forms, problems


def _content_key(paths: StringColumn, listing: Listing) -> str:
    digest = hashlib.sha256(f"headrace index {FORMAT_VERSION}".encode())
    for column in (paths.buffer, paths.offsets, listing.sizes, listing.mtimes):
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()[:32]


def _read_all(name: str, paths: StringColumn, show_progress: bool) -> _Columns:
    count = len(paths)
    upright = np.ones((count, 2), np.int32)
    orientations = np.ones(count, np.uint8)
    forms = np.zeros(count, np.uint8)
    problems: dict[int, str] = {}
    threads = min(32, 4 * (os.cpu_count() or 1))
    executor = ThreadPoolExecutor(threads, thread_name_prefix="headers")
    try:
        tasks = {}
        for start in range(0, count, _FILES_PER_TASK):
            stop = min(start + _FILES_PER_TASK, count)
            task = executor.submit(read_headers, paths, start, stop, upright, orientations, forms)
            tasks[task] = stop - start
        with tqdm(
            total=count, desc=f"index {name}", unit=" files", unit_scale=True, disable=not show_progress, leave=False
        ) as bar:
            for task in as_completed(tasks):
                problems |= task.result()
                bar.update(tasks[task])
    finally:
        executor.shutdown(cancel_futures=True)
    return upright, orientations, forms, dict(sorted(problems.items()))


def _read_again(paths: StringColumn, columns: _Columns) -> _Columns:
    upright, orientations, forms, problems = columns
    still: dict[int, str] = {}
    for index in problems:
        still |= read_headers(paths, index, index + 1, upright, orientations, forms)
    return upright, orientations, forms, still


def _store(path: Path, columns: _Columns) -> None:
    upright, orientations, forms, problems = columns
    reasons = np.frombuffer(json.dumps(problems).encode(), np.uint8)
    try:
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, upright=upright, orientations=orientations, forms=forms, problems=reasons)
    except OSError as error:
        logger.warning("the index cannot be kept in %s (%s); it is made again next time", path.parent, error.strerror)


def _restore(path: Path, count: int) -> _Columns | None:
    """Return the kept columns, or None when there are none or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            upright, orientations, forms = kept["upright"], kept["orientations"], kept["forms"]
            problems = {int(index): reason for index, reason in json.loads(kept["problems"].tobytes()).items()}
    except Exception as error:  # a damaged archive shows in many ways (zipfile, zlib, numpy and JSON errors)
        if not isinstance(error, FileNotFoundError):
            logger.info("the kept index %s is damaged (%s) and is made again", path, error)
        return None
    if upright.shape != (count, 2) or orientations.shape != (count,) or forms.shape != (count,):
        return None
    return upright, orientations, forms, problems


def _first(paths: StringColumn, problems: dict[int, str]) -> str:
    index, reason = next(iter(problems.items()))
    return f"{paths[index]}: {reason}"
