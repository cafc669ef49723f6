"""Checking every record of a packed set against its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numba import njit
from tqdm import tqdm

from kernels.checksum import xxh64
from kernels.memory import bytes_at
from loaders.cores import usable_cores
from loaders.packed import PackedDataset, Records, open_packed, verify_record
from loaders.packed_manifest import read_manifest
from loaders.shards import RecordPlaces, ShardError, ShardRows, read_shard

_ROWS_PER_TASK = 256


def verify_packed(folder: str | Path, show_progress: bool = True) -> Iterator[str]:
    """Check a whole packed set and yield what is wrong with it, one line for each shard or record.

    Every record and rendition is compared with its checksum, and what the shards say of themselves with the index.

    Raises:
        DataError: the set cannot even be opened.
    """
    root = Path(folder).expanduser().absolute()
    data = open_packed(root)
    sides = read_manifest(root).options.renditions
    total = len(data.train) + len(data.val)
    with tqdm(total=total, desc=f"verifying {data.name}", unit=" images", disable=not show_progress) as bar:
        for dataset in (data.train, data.val):
            assert isinstance(dataset, PackedDataset)
            yield from _damaged_records(dataset, bar)
            yield from _damaged_shards(dataset, sides)


def _damaged_records(dataset: PackedDataset, bar: tqdm) -> Iterator[str]:
    def check(start: int) -> list[str]:
        stop = min(start + _ROWS_PER_TASK, len(dataset))
        problems: list[str | None] = []
        for number, records in enumerate((dataset.records, *dataset.renditions)):
            differing = _differing(_columns(records), start, stop).tolist()
            problems += [verify_record(dataset, index, number - 1 if number else None) for index in differing]
        bar.update(stop - start)
        return [problem for problem in dict.fromkeys(problems) if problem is not None]

    with ThreadPoolExecutor(max(1, round(usable_cores())), thread_name_prefix="verify") as pool:
        for problems in pool.map(check, range(0, len(dataset), _ROWS_PER_TASK)):
            yield from problems


def _columns(records: Records) -> tuple[np.ndarray, ...]:
    return (
        records.addresses,
        records.lengths,
        records.checksums,
        records.index_addresses,
        records.index_counts,
        records.index_checksums,
    )


@njit(nogil=True, cache=True)
def _differing(columns: tuple[np.ndarray, ...], start: int, stop: int) -> np.ndarray:
    """Return int64, the rows from ``start`` to ``stop`` that differ from their checksums: see `_columns`."""
    addresses, lengths, checksums, index_addresses, index_counts, index_checksums = columns
    found = np.zeros(stop - start, np.bool_)
    for row in range(start, stop):
        found[row - start] = (
            xxh64(bytes_at(addresses[row], lengths[row])) != checksums[row]
            or xxh64(bytes_at(index_addresses[row], 4 * index_counts[row])) != index_checksums[row]
        )
    return np.flatnonzero(found) + start


def _damaged_shards(dataset: PackedDataset, sides: tuple[int, ...]) -> Iterator[str]:
    """Yield the shards that other tools would read otherwise than the index says."""
    for number, file in enumerate(dataset.shards.files):
        rows = slice(int(dataset.shards.starts[number]), int(dataset.shards.starts[number + 1]))
        try:
            shard = read_shard(dataset.shards.folder / file, sides)
        except ShardError as error:
            yield f"shard {file}: no whole Arrow stream: {error}"
            continue
        if not _agree(shard, dataset, rows, int(dataset.shards.bases[number])):
            yield f"shard {file}: its columns differ from the index"


def _agree(shard: ShardRows, dataset: PackedDataset, rows: slice, base: int) -> bool:
    pairs = [(shard.labels, dataset.labels[rows]), (shard.orientations, dataset.orientations[rows])]
    for places, records in zip(shard.records, (dataset.records, *dataset.renditions), strict=True):
        pairs += [
            (theirs, ours[rows]) for theirs, ours in zip(_columns_of(places, base), _described(records), strict=True)
        ]
    return all(np.array_equal(theirs, ours) for theirs, ours in pairs)


def _columns_of(places: RecordPlaces, base: int) -> tuple[np.ndarray, ...]:
    return (
        places.widths,
        places.heights,
        places.offsets + base,
        places.lengths,
        places.checksums,
        places.restart_offsets + base,
        places.restart_counts,
        places.restart_checksums,
    )


def _described(records: Records) -> tuple[np.ndarray, ...]:
    return (records.widths, records.heights, *_columns(records))
