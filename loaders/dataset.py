"""An indexed set of labeled image files, held as columns: a million samples cost a few arrays, no Python objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Any, Self

import numpy as np


class PixelForm(IntEnum):
    """How the stored pixels have to be treated to become 8-bit RGB."""

    RGB = 0  # 8-bit RGB or YCbCr: decodes straight to RGB
    GRAY = 1  # 8-bit gray
    CMYK = 2  # CMYK or YCCK JPEG
    OTHER = 3  # palette, alpha, bilevel, 16-bit: converted by Pillow
    UNREADABLE = 4  # the header is bad; the reason stands in ImageDataset.problems


class StringColumn(Sequence[str]):
    """An immutable column of strings in one UTF-8 buffer."""

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray) -> None:
        self.buffer = buffer  # uint8
        self.offsets = offsets  # int64 (N + 1,)

    @classmethod
    def of(cls, strings: Iterable[str]) -> StringColumn:
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def encoded(self, index: int) -> np.ndarray:
        """Return the UTF-8 bytes of one string as a uint8 view."""
        return self.buffer[self.offsets[index] : self.offsets[index + 1]]

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self.encoded(int(index)).tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """One split of a data set. Every column has one entry for each sample; sizes are those of the upright image.

    Attributes:
        name: what to call it in messages, for example ``"demo/train"``.
        classes: class names; ``labels`` index into it.
        paths: absolute file paths.
        labels: int64 (N,).
        widths, heights: int32 (N,), pixels after the EXIF orientation is applied; 1 where the header is unreadable.
        orientations: uint8 (N,), EXIF orientation 1 to 8.
        forms: uint8 (N,), a PixelForm each.
        sizes: int64 (N,), bytes of the file.
        problems: reasons for the samples whose header is unreadable, by index.
    """

    name: str
    classes: tuple[str, ...]
    paths: StringColumn
    labels: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    orientations: np.ndarray
    forms: np.ndarray
    sizes: np.ndarray
    problems: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of what the set holds: paths, labels and file sizes."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for column in (self.paths.buffer, self.paths.offsets, self.labels, self.sizes):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def common_size(self) -> tuple[int, int] | None:
        """(height, width) of all images, as far as their headers are readable, where they have the same; else None."""
        sizes = np.delete(np.stack([self.heights, self.widths], axis=1), list(self.problems), axis=0)
        if not len(sizes) or (sizes != sizes[0]).any():
            return None
        height, width = sizes[0].tolist()
        return height, width

    def class_counts(self) -> np.ndarray:
        """Return int64 (num_classes,): samples of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def relabeled(self, classes: tuple[str, ...], labels: np.ndarray) -> Self:
        """Return the same samples with other classes and labels."""
        return replace(self, classes=classes, labels=labels)

    def select(self, indices: np.ndarray) -> Self:
        """Return the samples at ``indices``, in that order."""
        return replace(self, **self._columns_at(np.asarray(indices, np.int64)))

    def _columns_at(self, indices: np.ndarray) -> dict[str, Any]:
        """Return the fields that differ between the samples, by name, for some of the samples."""
        position = {int(old): new for new, old in enumerate(indices)} if self.problems else {}
        return {
            "paths": StringColumn.of(self.paths[i] for i in indices),
            "labels": self.labels[indices],
            "widths": self.widths[indices],
            "heights": self.heights[indices],
            "orientations": self.orientations[indices],
            "forms": self.forms[indices],
            "sizes": self.sizes[indices],
            "problems": {position[old]: reason for old, reason in self.problems.items() if old in position},
        }


@dataclass(frozen=True)
class ImageData:
    """A data set with its two splits; both have the same classes."""

    name: str
    train: ImageDataset
    val: ImageDataset

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes
