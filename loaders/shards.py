"""Shards: Arrow streams of images that ``datasets``, pandas and any other reader of Arrow open.

The layout is Arrow's IPC streaming format with the schema metadata by which Hugging Face ``datasets`` knows images
and classes. Each row has a JPEG as ``image`` (a struct of ``bytes`` and ``path``) with its ``width``, ``height``,
``checksum`` and restart index, and the same for each rendition with its side as a suffix: ``image_160``, null where
the image itself is no larger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa

from loaders.pack_records import Jpeg, PackedImage

_BATCH_BYTES = 32 << 20  # of JPEG data in one record batch; Arrow's limit is 2 GiB
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_JPEG_TYPES = {
    "image": _IMAGE,
    "width": pa.int32(),
    "height": pa.int32(),
    "checksum": pa.uint64(),
    "restart_index": pa.binary(),
    "restart_checksum": pa.uint64(),
}


class ShardError(ValueError):
    """A file is no whole shard; the message says what is wrong with it, without its name."""


@dataclass(frozen=True, eq=False)
class RecordPlaces:
    """Where the JPEGs of a shard are in its file. Every column has one entry for each row.

    Attributes:
        widths, heights: int32, upright, pixels.
        offsets, lengths: int64, bytes of the JPEG data.
        checksums: uint64, XXH64 of the JPEG data.
        restart_offsets: int64, bytes: where the restart index begins.
        restart_counts: int64, its entries, uint32 each.
        restart_checksums: uint64, XXH64 of the restart index.
    """

    widths: np.ndarray
    heights: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    checksums: np.ndarray
    restart_offsets: np.ndarray
    restart_counts: np.ndarray
    restart_checksums: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[RecordPlaces]) -> Self:
        """Return the rows of all parts, one after the other."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def or_else(self, others: RecordPlaces) -> RecordPlaces:
        """Return these places, and the others where there is no record."""
        absent = self.lengths == 0
        return RecordPlaces(
            **{f.name: np.where(absent, getattr(others, f.name), getattr(self, f.name)) for f in fields(self)}
        )


@dataclass(frozen=True, eq=False)
class ShardRows:
    """The rows of a shard, but for the JPEG data.

    Attributes:
        labels: int64.
        orientations, components: uint8.
        names: the names of the original files, an Arrow array of strings.
        records: places of the images, then of each rendition; a rendition's are its image's where it has none.
    """

    labels: np.ndarray
    orientations: np.ndarray
    components: np.ndarray
    names: pa.Array
    records: tuple[RecordPlaces, ...]


def shard_schema(classes: Sequence[str], renditions: Sequence[int]) -> pa.Schema:
    """Return the columns of a shard."""
    columns: dict[str, pa.DataType] = {"image": _IMAGE, "label": pa.int64()}
    columns |= {"orientation": pa.uint8(), "components": pa.uint8()}
    for suffix in _suffixes(renditions):
        columns |= {name + suffix: kind for name, kind in _JPEG_TYPES.items()}
    features: dict[str, Any] = {}
    for name, kind in columns.items():
        if kind == _IMAGE:
            features[name] = {"_type": "Image"}
        elif name == "label":
            features[name] = {"names": list(classes), "_type": "ClassLabel"}
        else:
            features[name] = {"dtype": str(kind), "_type": "Value"}
    return pa.schema(columns.items(), {"huggingface": json.dumps({"info": {"features": features}})})


def write_shard(file: IO[bytes], images: Iterable[PackedImage], schema: pa.Schema, renditions: Sequence[int]) -> int:
    """Write images as one shard and return their number. The same images always give the same bytes."""
    rows = pending_bytes = 0
    pending: list[PackedImage] = []
    with pa.ipc.new_stream(file, schema) as stream:
        for image in images:
            pending.append(image)
            rows += 1
            pending_bytes += image.stored_bytes
            if pending_bytes >= _BATCH_BYTES:
                stream.write_batch(_batch(pending, schema, renditions))
                pending, pending_bytes = [], 0
        if pending:
            stream.write_batch(_batch(pending, schema, renditions))
    return rows


def read_shard(path: Path, renditions: Sequence[int]) -> ShardRows:
    """Read the rows of a shard without touching the JPEG data.

    Raises:
        ShardError: the file is no whole Arrow stream or has other columns.
    """
    try:
        with pa.memory_map(str(path)) as source:
            base = source.read_buffer(1).address
            source.seek(0)
            batches = list(pa.ipc.open_stream(source))
            return _rows(batches, base, renditions)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise ShardError(str(error)) from error


def _suffixes(renditions: Sequence[int]) -> list[str]:
    return ["", *(f"_{side}" for side in renditions)]


def _batch(images: Sequence[PackedImage], schema: pa.Schema, renditions: Sequence[int]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {
        "label": [image.source.label for image in images],
        "orientation": [image.orientation for image in images],
        "components": [image.components for image in images],
    }
    for number, suffix in enumerate(_suffixes(renditions)):
        jpegs = [image.renditions[number - 1] if number else image.image for image in images]
        columns |= {name + suffix: values for name, values in _jpeg_columns(jpegs, images).items()}
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _jpeg_columns(jpegs: Sequence[Jpeg | None], images: Sequence[PackedImage]) -> dict[str, list[Any]]:
    names = [image.source.name for image in images]
    return {
        "image": [jpeg and {"bytes": jpeg.data, "path": name} for jpeg, name in zip(jpegs, names, strict=True)],
        **{name: [jpeg and getattr(jpeg, name) for jpeg in jpegs] for name in list(_JPEG_TYPES)[1:]},
    }


def _rows(batches: Sequence[pa.RecordBatch], base: int, renditions: Sequence[int]) -> ShardRows:
    if not batches:
        raise ShardError("it has no rows")

    def column(name: str) -> np.ndarray:
        return np.concatenate([batch[name].to_numpy(zero_copy_only=False) for batch in batches])

    images, *smaller = (
        RecordPlaces.joined([_places(batch, suffix, base) for batch in batches]) for suffix in _suffixes(renditions)
    )
    return ShardRows(
        labels=column("label"),
        orientations=column("orientation"),
        components=column("components"),
        names=pa.concat_arrays([batch["image"].field("path") for batch in batches]),
        records=(images, *(places.or_else(images) for places in smaller)),
    )


def _places(batch: pa.RecordBatch, suffix: str, base: int) -> RecordPlaces:
    offsets, lengths = _slices(batch["image" + suffix].field("bytes"), base)
    restart_offsets, restart_lengths = _slices(batch["restart_index" + suffix], base)

    def column(name: str) -> np.ndarray:
        return batch[name + suffix].fill_null(0).to_numpy(zero_copy_only=False)

    return RecordPlaces(
        widths=column("width"),
        heights=column("height"),
        offsets=offsets,
        lengths=lengths,
        checksums=column("checksum"),
        restart_offsets=restart_offsets,
        restart_counts=restart_lengths // 4,
        restart_checksums=column("restart_checksum"),
    )


def _slices(array: pa.Array, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 offsets in the file and lengths of the values of a binary array; an absent value has length 0."""
    _, offset_buffer, data = array.buffers()
    bounds = np.frombuffer(offset_buffer, np.int32)[: len(array) + 1].astype(np.int64)
    start = data.address - base if data is not None and data.size else 0
    return start + bounds[:-1], np.diff(bounds)
