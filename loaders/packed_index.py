"""The index of a packed split: the small columns of all its shards in one Arrow file, to be mapped into memory.

It is made from the shards alone. Opening a set reads it in place of them, without a copy, whatever their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa

from kernels.checksum import xxh64
from loaders.dataset import StringColumn
from loaders.files import atomic_file
from loaders.shards import RecordPlaces, ShardRows

_IMAGE_COLUMNS = ("labels", "orientations", "components")


@dataclass(frozen=True, eq=False)
class PackedIndex:
    """The columns of a split; offsets count from the beginning of each row's shard.

    Attributes:
        labels: int64 (N,).
        orientations, components: uint8 (N,).
        names: names of the original files.
        records: places of the images, then of each rendition.
    """

    labels: np.ndarray
    orientations: np.ndarray
    components: np.ndarray
    names: StringColumn
    records: tuple[RecordPlaces, ...]

    def __len__(self) -> int:
        return len(self.labels)


def write_index(path: Path, shards: Sequence[ShardRows]) -> tuple[int, int]:
    """Write the index of a split's shards, in their order; return its size in bytes and its XXH64."""
    columns = {name: pa.array(np.concatenate([getattr(s, name) for s in shards])) for name in _IMAGE_COLUMNS}
    columns["names"] = pa.concat_arrays([shard.names.cast(pa.large_string()) for shard in shards])
    for number in range(len(shards[0].records)):
        joined = RecordPlaces.joined([shard.records[number] for shard in shards])
        columns |= {f"{f.name}_{number}": pa.array(getattr(joined, f.name)) for f in fields(joined)}
    batch = pa.RecordBatch.from_pydict(columns)
    with atomic_file(path) as temporary:
        with pa.ipc.new_file(str(temporary), batch.schema) as file:
            file.write_batch(batch)
        content = np.fromfile(temporary, np.uint8)
    return len(content), int(xxh64(content))


def read_index(path: Path, size: int, checksum: int, versions: int) -> PackedIndex:
    """Map an index into memory.

    Args:
        path: the file.
        size: its bytes, as the manifest has them.
        checksum: its XXH64, as the manifest has it.
        versions: records per image: one, and one for each rendition.

    Raises:
        ValueError: the file is missing or not the one that was written.
    """
    try:
        with pa.memory_map(str(path)) as source:
            buffer = source.read_buffer()
    except OSError as error:
        raise ValueError("it is missing" if not path.exists() else str(error)) from error
    if buffer.size != size:
        raise ValueError(f"it has {buffer.size} bytes in place of {size}")
    if int(xxh64(np.frombuffer(buffer, np.uint8))) != checksum:
        raise ValueError("its checksum differs")
    batch = pa.ipc.open_file(buffer).get_batch(0)

    def column(name: str) -> np.ndarray:
        return batch[name].to_numpy()  # without a copy; it refuses to make one

    _, offsets, characters = batch["names"].buffers()
    return PackedIndex(
        labels=column("labels"),
        orientations=column("orientations"),
        components=column("components"),
        names=StringColumn(
            np.frombuffer(characters, np.uint8), np.frombuffer(offsets, np.int64)[: len(batch["names"]) + 1]
        ),
        records=tuple(
            RecordPlaces(**{f.name: column(f"{f.name}_{number}") for f in fields(RecordPlaces)})
            for number in range(versions)
        ),
    )
