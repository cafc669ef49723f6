"""Finding image files and their classes in folders, and splitting them into training and validation."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kernels.random import Stream, words

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")
IMAGE_FILES = "Images are .jpg, .jpeg, .png, .webp or .bmp files"
LAYOUTS = (
    "Expected is a folder with train/ and val/ (or valid/, validation/, test/), each with one folder of images per "
    "class; or one folder of images per class, which is then split with --val-fraction; or --csv FILE with a path and "
    f"a label column. {IMAGE_FILES}"
)

logger = logging.getLogger("headrace")


class DataError(ValueError):
    """The data cannot be used as they are; the message says what was found and what to do."""


@dataclass(frozen=True, eq=False)
class Listing:
    """Image files with their labels, in the order of the data set.

    Attributes:
        paths: absolute paths.
        labels: int64 (N,).
        sizes: int64 (N,), bytes; 0 for a file that cannot be looked at.
        mtimes: int64 (N,), nanoseconds since the epoch.
    """

    paths: list[str]
    labels: np.ndarray
    sizes: np.ndarray
    mtimes: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, chosen: np.ndarray) -> Listing:
        """Return the files where the bool array ``chosen`` (N,) is true."""
        paths = [path for path, wanted in zip(self.paths, chosen.tolist(), strict=True) if wanted]
        return Listing(paths, self.labels[chosen], self.sizes[chosen], self.mtimes[chosen])


@dataclass(frozen=True)
class Source:
    """Where the images of a data set lie."""

    classes: tuple[str, ...]
    train: Listing
    val: Listing


_File = tuple[str, int, int]  # path, size, mtime


def find_in_folder(folder: Path, val_fraction: float, seed: int, show_progress: bool = True) -> Source:
    """List a folder that has either ``train`` and ``val`` folders of class folders, or class folders.

    Files may lie at any depth below a class folder; hidden files and folders are passed over. Classes are sorted by
    name. Without a validation folder the files are split: see ``stratified_split``.

    Raises:
        DataError: the folder is missing, holds no images, or has another layout.
    """
    root = os.path.abspath(os.path.expanduser(folder))
    if not os.path.isdir(root):
        what = "is a file, not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"{root} {what}. {LAYOUTS}")
    names = _subfolders(root)
    # A folder without class folders in it is a class of that name, not a split.
    by_lower = {name.lower(): name for name in reversed(names) if _subfolders(os.path.join(root, name))}
    train = next((by_lower[name] for name in TRAIN_NAMES if name in by_lower), None)
    val = next((by_lower[name] for name in VAL_NAMES if name in by_lower), None)
    if train is None:
        if by_lower and all(name in VAL_NAMES for name in by_lower):
            raise DataError(f"{root} has {join_names(names)} but no train folder. {LAYOUTS}")
        classes, (listing,) = _list_splits([root], show_progress)
        return split_source(classes, listing, root, val_fraction, seed)
    train_root = os.path.join(root, train)
    if val is None:
        logger.info("%s has no validation folder: splitting %s", root, train_root)
        classes, (listing,) = _list_splits([train_root], show_progress)
        return split_source(classes, listing, train_root, val_fraction, seed)
    classes, (train_listing, val_listing) = _list_splits([train_root, os.path.join(root, val)], show_progress)
    return Source(classes, train_listing, val_listing)


def find_unlabeled(folder: Path, show_progress: bool = True) -> Listing:
    """List all images below a folder, or the one image that the path names, with label 0.

    Raises:
        DataError: there is no such path or no image below it.
    """
    root = os.path.abspath(os.path.expanduser(folder))
    if os.path.isfile(root):
        return list_paths([root], np.zeros(1, np.int64))[0]
    if not os.path.isdir(root):
        raise DataError(f"{root} does not exist; give a folder of images or one image file")
    with _progress(root, "files", None, show_progress) as bar:
        files, others = _scan(root, bar)
    _note_others(root, others)
    if not files:
        raise DataError(f"no images below {root}, only {others} other files. {IMAGE_FILES}")
    return _listing(files, np.zeros(len(files), np.int64))


def stratified_split(labels: np.ndarray, names: Iterable[str], fraction: float, seed: int) -> np.ndarray:
    """Choose about ``fraction`` of each class for validation.

    Every class with two or more images keeps at least one on each side; a single image goes to training. Which files
    are chosen depends on the seed and on each file's own name, so that adding a file moves few others.

    Args:
        labels: int64 (N,).
        names: N names that stay the same wherever the data lie.
        fraction: 0 < fraction < 1.
        seed: the run's seed.

    Returns:
        bool (N,): true for validation.

    Raises:
        DataError: the fraction is outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise DataError(f"--val-fraction must be between 0 and 1, got {fraction:g}")
    digests = b"".join(hashlib.blake2b(n.encode("utf-8", "surrogateescape"), digest_size=8).digest() for n in names)
    ranks = words(seed, 0, np.frombuffer(digests, "<u8").astype(np.uint64), Stream.SPLIT)
    order = np.lexsort((ranks, labels))
    counts = np.bincount(labels)
    wanted = np.clip(np.rint(counts * fraction).astype(np.int64), 1, np.maximum(counts - 1, 0))
    position = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.empty(len(labels), bool)
    chosen[order] = position < np.repeat(wanted, counts)
    return chosen


def split_source(classes: tuple[str, ...], listing: Listing, root: str, val_fraction: float, seed: int) -> Source:
    """Split the files below ``root``: see ``stratified_split``.

    Raises:
        DataError: no class has two images.
    """
    names = (os.path.relpath(path, root) for path in listing.paths)
    chosen = stratified_split(listing.labels, names, val_fraction, seed)
    if not chosen.any():
        raise DataError(f"no class below {root} has the two images that a split into train and val needs")
    return Source(classes, listing.select(~chosen), listing.select(chosen))


def list_paths(paths: Iterable[str], labels: np.ndarray, show_progress: bool = True) -> tuple[Listing, list[str]]:
    """Look at files known by path; return those that exist, with their labels, and the paths of the others."""
    missing: list[str] = []
    files: list[_File] = []
    present = np.ones(len(labels), bool)
    with _progress("the files", "files", len(labels), show_progress) as bar:
        for index, path in enumerate(paths):
            try:
                stat = os.stat(path)
                files.append((path, stat.st_size, stat.st_mtime_ns))
            except OSError:
                present[index] = False
                missing.append(path)
            bar.update()
    return _listing(files, labels[present]), missing


def join_names(names: Sequence[str], most: int = 5) -> str:
    """Join names for a message, the first few of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _list_splits(roots: Sequence[str], show_progress: bool) -> tuple[tuple[str, ...], list[Listing]]:
    """List folders of class folders that must agree on their classes; a class with no image at all is no class."""
    found: list[dict[str, list[_File]]] = []
    others = 0
    for root in roots:
        by_class: dict[str, list[_File]] = {}
        names = _subfolders(root)
        with _progress(root, "folders", len(names), show_progress) as bar:
            for name in names:
                by_class[name], skipped = _scan(os.path.join(root, name))
                others += skipped
                bar.update()
        if not any(by_class.values()):
            raise DataError(_nothing_found(root, by_class, others))
        found.append(by_class)
    _note_others(join_names(roots), others)
    nonempty = {name for by_class in found for name, files in by_class.items() if files}
    for by_class, root in zip(found, roots, strict=True):
        if absent := sorted(nonempty - by_class.keys()):
            raise DataError(
                f"{root} lacks {len(absent)} of the {len(nonempty)} classes of the other split: {join_names(absent)}. "
                "Every split needs the same class folders (an empty one will do)"
            )
        if empty := sorted(by_class.keys() - nonempty):
            logger.warning("%s: folders without images are not taken as classes: %s", root, join_names(empty))
    classes = tuple(sorted(nonempty))
    listings = []
    for by_class in found:
        labels = np.repeat(np.arange(len(classes)), [len(by_class[name]) for name in classes])
        listings.append(_listing([file for name in classes for file in by_class[name]], labels))
    return classes, listings


def _nothing_found(root: str, by_class: dict[str, list[_File]], others: int) -> str:
    loose = sum(os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS for entry in os.scandir(root))
    if loose:
        return f"{root} holds {loose} images directly, without class folders. {LAYOUTS}"
    folders = f"folders {join_names(sorted(by_class))}" if by_class else "no folders"
    return f"no images in {root}: it has {folders} and {others} files that are not images. {LAYOUTS}"


def _subfolders(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise DataError(f"cannot list {root}: {error.strerror}") from error


def _progress(where: str, unit: str, total: int | None, show: bool) -> tqdm[Any]:
    """Return the bar of a listing; it shows only if that takes longer than one does not notice."""
    return tqdm(desc=f"list {where}", unit=f" {unit}", total=total, disable=not show, leave=False, delay=1.0)


def _scan(root: str, bar: tqdm[Any] | None = None) -> tuple[list[_File], int]:
    """Return the images below a folder, sorted by path, and how many other files lie there; count images on a bar."""
    files: list[_File] = []
    others = 0
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    if entry.is_dir():
                        if not (entry.is_symlink() and _leads_back(entry.path, folder)):
                            pending.append(entry.path)
                    elif os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and (
                        entry.is_file() or entry.is_symlink()  # a link to nowhere is reported when its header is read
                    ):
                        files.append((entry.path, *_size_and_mtime(entry)))
                        if bar is not None:
                            bar.update()
                    else:
                        others += 1
        except OSError as error:
            raise DataError(f"cannot list {folder}: {error.strerror}") from error
    files.sort()
    return files, others


def _size_and_mtime(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        stat = entry.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _leads_back(link: str, folder: str) -> bool:
    """Tell whether a link to a folder leads to one of those it lies in."""
    return (os.path.realpath(folder) + os.sep).startswith(os.path.realpath(link) + os.sep)


def _listing(files: Sequence[_File], labels: np.ndarray) -> Listing:
    return Listing(
        [file[0] for file in files],
        labels,
        np.fromiter((file[1] for file in files), np.int64, len(files)),
        np.fromiter((file[2] for file in files), np.int64, len(files)),
    )


def _note_others(where: str, others: int) -> None:
    if others:
        logger.info("%s: %d files that are not images are ignored", where, others)
