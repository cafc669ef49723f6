"""Opening data: from what a user names to two indexed splits."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from loaders.cache import cache_dir
from loaders.dataset import ImageData, ImageDataset
from loaders.demo import demo_folder
from loaders.index import index_images
from loaders.known import KNOWN_SETS, find_known
from loaders.packed import open_packed
from loaders.packed_manifest import is_packed
from loaders.sources import DataError, Source, find_in_folder, find_unlabeled
from loaders.tables import find_in_csv

__all__ = ["DataError", "open_data", "open_unlabeled"]

logger = logging.getLogger("headrace")


def open_data(
    source: str,
    *,
    csv: Path | None = None,
    image_root: Path | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    val_fraction: float = 0.1,
    seed: int = 0,
    cache: Path | None = None,
    show_progress: bool = True,
) -> ImageData:
    """Open a labeled data set; its splits are named ``<name>/train`` and ``<name>/val``.

    Args:
        source: a folder, of image files or packed by loaders.pack; ``demo``; or a known name such as ``cifar10`` (a
            folder of that name is ``./cifar10``).
        csv: a CSV that names the files instead of the folder layout.
        image_root: the folder that the CSV's paths start from; by default ``source`` when that is a folder, else the
            CSV's own folder.
        path_column, label_column, split_column: the CSV's columns; the split column may be missing.
        val_fraction: share of each class for validation where the data come without a split.
        seed: of that split.
        cache: where the index and made or downloaded data are kept; None for ``cache_dir()``.
        show_progress: show progress bars for what takes long.

    Raises:
        DataError: the data are missing or have no layout that is understood; the message says what to do.
    """
    cache = cache_dir() if cache is None else Path(cache).expanduser().absolute()
    if csv is not None:
        if image_root is None and source != "demo" and os.path.isdir(os.path.expanduser(source)):
            image_root = Path(source)
        table = Path(csv).expanduser()
        found = find_in_csv(
            table, image_root, path_column, label_column, split_column, val_fraction, seed, show_progress
        )
        return _index(table.stem, found, cache, show_progress)
    if source == "demo":
        found = find_in_folder(demo_folder(cache, show_progress), val_fraction, seed, show_progress)
        return _index(source, found, cache, show_progress)
    if source in KNOWN_SETS:
        if os.path.isdir(source):
            logger.info("%s is taken as the known data set; the folder of that name is ./%s", source, source)
        return _index(source, find_known(source, cache, val_fraction, seed, show_progress), cache, show_progress)
    folder = Path(source).expanduser()
    if is_packed(folder):
        return open_packed(folder)
    if not folder.exists() and os.sep not in source:
        raise DataError(
            f"{source!r} is neither a folder nor a known data set; known are demo, {', '.join(sorted(KNOWN_SETS))}"
        )
    found = find_in_folder(folder, val_fraction, seed, show_progress)
    return _index(folder.resolve().name or "images", found, cache, show_progress)


def open_unlabeled(folder: Path, *, cache: Path | None = None, show_progress: bool = True) -> ImageDataset:
    """Open all images below a folder (or one image file) for prediction: label 0 throughout, one class named "".

    Raises:
        DataError: there are no images.
    """
    cache = cache_dir() if cache is None else Path(cache).expanduser().absolute()
    name = Path(folder).expanduser().resolve().name or "images"
    return index_images(name, ("",), find_unlabeled(folder, show_progress), cache, show_progress)


def _index(name: str, source: Source, cache: Path, show_progress: bool) -> ImageData:
    return ImageData(
        name,
        index_images(f"{name}/train", source.classes, source.train, cache, show_progress),
        index_images(f"{name}/val", source.classes, source.val, cache, show_progress),
    )
