"""What can be packed: an opened data set, or tar files of images."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from loaders.dataset import ImageData, ImageDataset, StringColumn
from loaders.pack_records import SourceImage
from loaders.sources import (
    IMAGE_EXTENSIONS,
    IMAGE_FILES,
    TRAIN_NAMES,
    VAL_NAMES,
    DataError,
    join_names,
    stratified_split,
)

_TAR_LAYOUTS = (
    "Expected are key.jpg beside key.cls (a number or a name), as in WebDataset, or files in class folders; train and "
    f"val are told by the names of the tars or by folders around the class folders. {IMAGE_FILES}"
)

logger = logging.getLogger("headrace")


@dataclass(frozen=True, eq=False)
class SourceSplit:
    """The images of one split, each of them a part of a file.

    Attributes:
        files: paths of the files.
        file_numbers: int64 (N,), which of ``files`` an image lies in; None where image ``i`` is file ``i``.
        offsets: int64 (N,), bytes: where in the file it begins; None for its beginning.
        sizes: int64 (N,), bytes.
        names: what to call the images in the packed set.
        labels: int64 (N,).
    """

    files: StringColumn
    file_numbers: np.ndarray | None
    offsets: np.ndarray | None
    sizes: np.ndarray
    names: StringColumn
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> SourceImage:
        return SourceImage(
            file=self.files[row if self.file_numbers is None else int(self.file_numbers[row])],
            offset=0 if self.offsets is None else int(self.offsets[row]),
            size=int(self.sizes[row]),
            name=self.names[row].encode("utf-8", "backslashreplace").decode(),  # Arrow wants valid UTF-8
            label=int(self.labels[row]),
        )


@dataclass(frozen=True, eq=False)
class PackSource:
    """What is to be packed.

    Attributes:
        name: of the data set.
        classes: class names; the labels index into it.
        train, val: the images.
    """

    name: str
    classes: tuple[str, ...]
    train: SourceSplit
    val: SourceSplit

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the classes and of all names, labels and sizes."""
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        for split in (self.train, self.val):
            for column in (split.names.buffer, split.names.offsets, split.labels, split.sizes):
                digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()[:16]

    def splits(self) -> Iterator[tuple[str, SourceSplit]]:
        """Yield the splits with their names."""
        yield "train", self.train
        yield "val", self.val


def source_of(data: ImageData) -> PackSource:
    """Return an opened data set as something to pack; names are paths from the folder that holds all files."""
    ends = [os.path.dirname(path) for split in (data.train, data.val) for path in (min(split.paths), max(split.paths))]
    root = os.path.commonpath(ends)
    return PackSource(data.name, data.classes, _split_of(data.train, root), _split_of(data.val, root))


def source_of_tars(paths: Sequence[Path], val_fraction: float, seed: int, show_progress: bool = True) -> PackSource:
    """List the images in tar files.

    Without validation images, which the names of the tars or of the outermost folders in them tell, the images are
    split: see ``stratified_split``.

    Raises:
        DataError: a file is no uncompressed tar, or there are no images or no labels in it.
    """
    listing = _TarListing()
    for number, path in enumerate(paths):
        listing.add(path, number, show_progress)
    if not listing.names:
        raise DataError(f"no labeled images in {join_names([str(path) for path in paths])}. {_TAR_LAYOUTS}")
    texts = set(listing.classes)
    classes = tuple(sorted(texts, key=int) if all(text.isdecimal() for text in texts) else sorted(texts))
    number_of = {text: number for number, text in enumerate(classes)}
    labels = np.array([number_of[text] for text in listing.classes], np.int64)
    held_out = np.array(listing.held_out, np.bool_)
    if not held_out.any():
        held_out = stratified_split(labels, listing.names, val_fraction, seed)
    if not held_out.any() or held_out.all():
        raise DataError(f"{join_names([str(path) for path in paths])}: train and val both need images. {_TAR_LAYOUTS}")
    files = StringColumn.of(str(path.absolute()) for path in paths)
    places = np.array(listing.places, np.int64)

    def split(chosen: np.ndarray) -> SourceSplit:
        names = StringColumn.of(listing.names[row] for row in np.flatnonzero(chosen))
        numbers, offsets, sizes = np.ascontiguousarray(places[chosen].T)
        return SourceSplit(files, numbers, offsets, sizes, names, labels[chosen])

    return PackSource(re.sub(r"[-_.]?\d*$", "", paths[0].stem) or "images", classes, split(~held_out), split(held_out))


def is_tar(path: Path) -> bool:
    """Tell whether a path names a tar file, going by its name."""
    return path.is_file() and re.search(r"\.tar(\.\w+)?$|\.tgz$", path.name) is not None


def _split_of(dataset: ImageDataset, root: str) -> SourceSplit:
    names = StringColumn.of(os.path.relpath(path, root) for path in dataset.paths)
    return SourceSplit(dataset.paths, None, None, dataset.sizes, names, dataset.labels)


@dataclass
class _TarListing:
    """What was found in tar files so far, one entry for each image.

    Attributes:
        names: the tar's name and the image's in it.
        classes: what the image shows.
        places: number of the tar, offset in it, size.
        held_out: the image is for validation.
    """

    names: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    held_out: list[bool] = field(default_factory=list)

    def add(self, path: Path, number: int, show_progress: bool) -> None:
        """List one more tar."""
        images: list[tarfile.TarInfo] = []
        texts: dict[str, str] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tqdm(tar, f"listing {path.name}", unit=" files", disable=not show_progress, leave=False):
                    key, extension = os.path.splitext(member.name)
                    if extension.lower() in IMAGE_EXTENSIONS and member.isreg():
                        images.append(member)
                    elif extension == ".cls" and member.isreg():
                        content = tar.extractfile(member)
                        assert content is not None  # it is a regular file
                        texts[key] = content.read().decode().strip()
        except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} cannot be read as a tar: {error}. Compressed tars have to be unpacked first, as images in "
                "them cannot be found again without reading everything before them"
            ) from error
        tokens = set(re.split(r"[^a-z]+", path.stem.lower()))
        unlabeled = 0
        for member in images:
            folders = [part for part in os.path.dirname(member.name).split("/") if part not in ("", ".")]
            split = next((name for name in (*TRAIN_NAMES, *VAL_NAMES) if folders and folders[0].lower() == name), None)
            folders = folders[1:] if split is not None else folders
            text = texts.get(os.path.splitext(member.name)[0]) if texts else next(iter(folders), None)
            if not text:
                unlabeled += 1
                continue
            self.names.append(f"{path.name}/{member.name}")
            self.classes.append(text)
            self.places.append((number, member.offset_data, member.size))
            self.held_out.append(split in VAL_NAMES if split is not None else bool(tokens & set(VAL_NAMES)))
        if unlabeled:
            logger.warning("%s: %d of %d images have no label and are left out", path, unlabeled, len(images))
