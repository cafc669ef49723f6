"""Opening a packed set: its shards mapped into memory, its records found by their addresses."""

from __future__ import annotations

import errno
import hashlib
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numba import njit

from kernels.checksum import xxh64
from loaders.dataset import ImageData, ImageDataset, PixelForm
from loaders.packed_index import PackedIndex, read_index
from loaders.packed_manifest import Manifest, ShardEntry, SplitEntry, read_manifest
from loaders.pixels import PixelError
from loaders.shards import RecordPlaces
from loaders.sources import DataError

_REMEDY = "Pack the data again, into another folder or with --overwrite"


@dataclass(frozen=True, eq=False)
class Records:
    """The JPEG records of a packed set in memory. Every column has one entry for each sample.

    Attributes:
        widths, heights: int32 (N,), upright, pixels.
        addresses: int64 (N,), where the JPEG data begin, for compiled code: see kernels.memory.
        lengths: int64 (N,), bytes.
        checksums: uint64 (N,), XXH64 of the JPEG data.
        index_addresses: int64 (N,), where the restart index begins: aligned uint32.
        index_counts: int64 (N,), its entries: see `kernels.restart.interval_starts`.
        index_checksums: uint64 (N,), XXH64 of the restart index.
    """

    widths: np.ndarray
    heights: np.ndarray
    addresses: np.ndarray
    lengths: np.ndarray
    checksums: np.ndarray
    index_addresses: np.ndarray
    index_counts: np.ndarray
    index_checksums: np.ndarray

    def select(self, indices: np.ndarray) -> Self:
        """Return the records at ``indices``, in that order."""
        columns = {
            name: value[indices] if isinstance(value, np.ndarray) else value for name, value in vars(self).items()
        }
        return type(self)(**columns)


@dataclass(frozen=True, eq=False)
class Rendition(Records):
    """A smaller version of each image, or the image itself where that is no larger.

    Its orientation and form are those of the image.

    Attributes:
        max_side: the longest side it was made for, pixels.
    """

    max_side: int


@dataclass(frozen=True, eq=False)
class Shards:
    """The shards of a split, in memory as long as this object lives.

    Attributes:
        folder: where they lie.
        files: their names.
        starts: int64 (S + 1,): the first row of each, and the number of rows.
        maps: their bytes.
    """

    folder: Path
    files: tuple[str, ...]
    starts: np.ndarray
    maps: tuple[mmap.mmap, ...]

    @cached_property
    def bases(self) -> np.ndarray:
        """int64 (S,): the addresses that the shards are mapped to."""
        return np.array([np.frombuffer(m, np.uint8).ctypes.data for m in self.maps], np.int64)


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedDataset(ImageDataset):
    """One split of a packed set. Its paths are names of the original files, for messages; no such files are needed.

    Addresses are those of this process and of processes forked from it.

    Attributes:
        records: the images.
        renditions: smaller versions, from the largest to the smallest.
        rows: int64 (N,), each sample's row in the split as it was packed.
        shards: what the records lie in.
    """

    records: Records
    renditions: tuple[Rendition, ...]
    rows: np.ndarray
    shards: Shards

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of what the set holds: checksums of the images, and labels."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for column in (self.records.checksums, self.labels):
            digest.update(int(xxh64(np.ascontiguousarray(column).view(np.uint8))).to_bytes(8, "little"))
        return digest.hexdigest()[:16]

    def locate(self, index: int) -> str:
        """Return where a sample is stored, for messages: ``"shard train-00003.arrow, record 17"``."""
        row = int(self.rows[index])
        shard = int(np.searchsorted(self.shards.starts, row, "right")) - 1
        return f"shard {self.shards.files[shard]}, record {row - int(self.shards.starts[shard])}"

    def record(self, index: int, rendition: int | None = None) -> np.ndarray:
        """Return the JPEG data of a sample as they are, uint8, without a copy; see also `checked_record`.

        Args:
            index: of the sample.
            rendition: which of ``renditions``; None for the image.
        """
        records = self.records if rendition is None else self.renditions[rendition]
        return self._view(index, records.addresses[index], records.lengths[index])

    def restart_index(self, index: int, rendition: int | None = None) -> np.ndarray:
        """Return the restart index of a sample as it is, uint32: see `kernels.restart.interval_starts`."""
        records = self.records if rendition is None else self.renditions[rendition]
        return self._view(index, records.index_addresses[index], 4 * records.index_counts[index]).view("<u4")

    def checked_record(self, index: int, rendition: int | None = None) -> np.ndarray:
        """Return the JPEG data of a sample, uint8, without a copy.

        Raises:
            PixelError: they are not what was packed; the message names the shard and the record.
        """
        problem = verify_record(self, index, rendition)
        if problem is not None:
            raise PixelError(problem)
        return self.record(index, rendition)

    def _view(self, index: int, address: int, length: int) -> np.ndarray:
        shard = int(np.searchsorted(self.shards.starts, self.rows[index], "right")) - 1
        return np.frombuffer(self.shards.maps[shard], np.uint8, int(length), int(address - self.shards.bases[shard]))

    def _columns_at(self, indices: np.ndarray) -> dict[str, Any]:
        return {
            **super()._columns_at(indices),
            "records": self.records.select(indices),
            "renditions": tuple(rendition.select(indices) for rendition in self.renditions),
            "rows": self.rows[indices],
        }


def verify_record(dataset: PackedDataset, index: int, rendition: int | None = None) -> str | None:
    """Compare a record and its restart index with their checksums.

    Returns:
        What is wrong, such as ``"shard train-00000.arrow, record 5: checksum differs"``; None when nothing is.
    """
    records = dataset.records if rendition is None else dataset.renditions[rendition]
    which = "" if rendition is None else f" of the rendition of {dataset.renditions[rendition].max_side} pixels"
    if int(xxh64(dataset.record(index, rendition))) != records.checksums[index]:
        return f"{dataset.locate(index)}: checksum{which} differs"
    if int(xxh64(dataset.restart_index(index, rendition).view(np.uint8))) != records.index_checksums[index]:
        return f"{dataset.locate(index)}: checksum of the restart index{which} differs"
    return None


def open_packed(folder: str | Path) -> ImageData:
    """Open a packed set; its splits, named ``<name>/train`` and ``<name>/val``, are PackedDatasets.

    The index is compared with its checksum and the sizes of the shards with the manifest; records are to be compared
    with their checksums when they are read.

    Raises:
        DataError: the set is not whole; the message names the file and says what to do.
    """
    root = Path(folder).expanduser().absolute()
    manifest = read_manifest(root)
    train, val = (_open_split(root, manifest, name) for name in ("train", "val"))
    return ImageData(manifest.name, train, val)


def _open_split(root: Path, manifest: Manifest, name: str) -> PackedDataset:
    split = manifest.splits[name]
    renditions = manifest.options.renditions
    shards = _map_shards(root, split.shards)
    index = _index_of(root, split, 1 + len(renditions))
    if int(shards.starts[-1]) != len(index):
        raise DataError(
            f"{root}: the manifest promises {shards.starts[-1]} records of {name}, the index has {len(index)}. "
            + _REMEDY
        )
    if len(index) and not 0 <= index.labels.min() <= index.labels.max() < len(manifest.classes):
        raise DataError(f"{root}: the manifest lacks classes that {split.index} refers to. {_REMEDY}")
    images, *smaller = (_in_memory(places, shards) for places in index.records)
    return PackedDataset(
        name=f"{manifest.name}/{name}",
        classes=manifest.classes,
        paths=index.names,
        labels=index.labels,
        widths=images["widths"],
        heights=images["heights"],
        orientations=index.orientations,
        forms=np.where(index.components == 1, np.uint8(PixelForm.GRAY), np.uint8(PixelForm.RGB)),
        sizes=images["lengths"],
        records=Records(**images),
        renditions=tuple(
            Rendition(**columns, max_side=side) for columns, side in zip(smaller, renditions, strict=True)
        ),
        rows=np.arange(len(index)),
        shards=shards,
    )


def _map_shards(root: Path, entries: Sequence[ShardEntry]) -> Shards:
    maps = []
    for entry in entries:
        try:
            with open(root / entry.file, "rb") as file:
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            if getattr(error, "errno", None) == errno.EMFILE:
                raise DataError(
                    f"{root} has more shards than this process may open files: raise the limit (ulimit -n), or pack "
                    "with a larger --shard-mb"
                ) from error
            reason = getattr(error, "strerror", None) or "it is empty"
            raise DataError(f"shard {entry.file} in {root} cannot be opened: {reason}. {_REMEDY}") from error
        if len(maps[-1]) != entry.bytes:
            raise DataError(
                f"shard {entry.file} in {root} has {len(maps[-1])} bytes in place of {entry.bytes}: it was cut off or "
                f"changed. {_REMEDY}"
            )
    starts = np.concatenate([[0], np.cumsum([entry.rows for entry in entries])]).astype(np.int64)
    return Shards(root, tuple(entry.file for entry in entries), starts, tuple(maps))


def _index_of(root: Path, split: SplitEntry, versions: int) -> PackedIndex:
    try:
        return read_index(root / split.index, split.index_bytes, split.index_checksum, versions)
    except ValueError as error:
        raise DataError(f"the index {split.index} in {root} cannot be used: {error}. {_REMEDY}") from error


def _in_memory(places: RecordPlaces, shards: Shards) -> dict[str, np.ndarray]:
    """Return the columns of Records."""
    return {
        "widths": places.widths,
        "heights": places.heights,
        "addresses": _addresses(places.offsets, places.lengths, 1, shards),
        "lengths": places.lengths,
        "checksums": places.checksums,
        "index_addresses": _addresses(places.restart_offsets, places.restart_counts, 4, shards),
        "index_counts": places.restart_counts,
        "index_checksums": places.restart_checksums,
    }


def _addresses(offsets: np.ndarray, counts: np.ndarray, unit: int, shards: Shards) -> np.ndarray:
    """Return int64 (N,): where in memory something begins that has ``counts`` items of ``unit`` (1 or 4) bytes.

    Raises:
        DataError: some of it lies outside of its shard, or is not aligned.
    """
    addresses = np.empty(len(offsets), np.int64)
    limits = np.array([len(m) for m in shards.maps], np.int64)
    shard = _locate_all(offsets, counts, unit, shards.starts, shards.bases, limits, addresses)
    if shard >= 0:
        raise DataError(f"records of shard {shards.files[shard]} in {shards.folder} lie outside of it. {_REMEDY}")
    return addresses


@njit(nogil=True, cache=True)
def _locate_all(
    offsets: np.ndarray,
    counts: np.ndarray,
    unit: int,
    starts: np.ndarray,
    bases: np.ndarray,
    limits: np.ndarray,
    addresses: np.ndarray,
) -> int:
    """Fill in the addresses; return the first shard that something lies outside of, -1 where there is none."""
    for shard in range(len(bases)):
        base, limit = bases[shard], limits[shard]
        rows = slice(starts[shard], starts[shard + 1])
        begins, items, found = offsets[rows], counts[rows], addresses[rows]
        wrong = np.int64(0)
        for row in range(len(begins)):  # without a branch, so that it is vectorized
            begin, count = begins[row], items[row]
            room = limit - begin - count * unit
            wrong |= begin | (limit - begin) | count | (limit - count) | room  # below 0 if any of them is
            wrong |= -(begin & (unit - 1))
            found[row] = base + begin
        if wrong < 0:
            return shard
    return -1
