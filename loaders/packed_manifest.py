"""The manifest of a packed set: what it consists of. A folder without one is not a packed set, or not a whole one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loaders.files import atomic_file
from loaders.pack_records import PackOptions
from loaders.sources import DataError

MANIFEST = "manifest.json"
JOURNAL = "packing.json"  # stands in place of the manifest until the set is whole
BAD_FILES = "bad_files.csv"
FORMAT = "headrace packed images"
FORMAT_VERSION = 1  # raise it when a column or its meaning changes
SPLITS = ("train", "val")
_OWN_NAME = re.compile(
    rf"\.?(({'|'.join(SPLITS)})(-\d{{5,}}\.arrow|\.index)|{re.escape(MANIFEST)}|{re.escape(JOURNAL)}|{re.escape(BAD_FILES)})"
)


@dataclass
class Tally:
    """What became of a number of images.

    Attributes:
        bytes_in: size of the files that were packed.
        changes: how many files each change was made to.
        bad: name and reason of each file that was left out.
    """

    bytes_in: int = 0
    changes: dict[str, int] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count what the other has counted, too."""
        self.bytes_in += other.bytes_in
        for change, count in other.changes.items():
            self.changes[change] = self.changes.get(change, 0) + count
        self.bad += other.bad


@dataclass(frozen=True)
class ShardEntry:
    """A shard: its file in the folder, rows and size; the source's row that follows it; what it was made from."""

    file: str
    rows: int
    bytes: int
    next_row: int
    tally: Tally


@dataclass(frozen=True)
class SplitEntry:
    """A split: its shards, its index file with size and XXH64, and what it was made from."""

    shards: tuple[ShardEntry, ...]
    index: str
    index_bytes: int
    index_checksum: int
    tally: Tally

    @property
    def rows(self) -> int:
        """Number of images."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """A packed set.

    Attributes:
        name: of the data set.
        classes: class names; the labels index into it.
        source: fingerprint of what it was made from.
        options: what the records are like.
        encoder: what made the JPEG data.
        splits: by name, see SPLITS; a journal has none.
        finished: of a journal, the shards that are there already, by split.
    """

    name: str
    classes: tuple[str, ...]
    source: str
    options: PackOptions
    encoder: str
    splits: dict[str, SplitEntry] = field(default_factory=dict)
    finished: dict[str, list[ShardEntry]] = field(default_factory=dict)


def is_packed(folder: Path) -> bool:
    """Tell whether a folder holds a packed set, or one that is not finished."""
    return any(_is_ours(folder / name) for name in (MANIFEST, JOURNAL))


def own_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that packing has made, temporary ones included."""
    for path in folder.iterdir():
        if _OWN_NAME.match(path.name):
            yield path


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a packed set.

    Raises:
        DataError: there is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / JOURNAL).is_file():
            raise DataError(f"{folder} is not packed to the end: run the same python -m loaders.pack command again")
        raise DataError(f"{folder} is no packed set: it has no {MANIFEST}")
    manifest = _read(path)
    if set(manifest.splits) != set(SPLITS):
        raise DataError(_damaged(path, f"it has the splits {sorted(manifest.splits)}"))
    return manifest


def read_journal(folder: Path) -> Manifest | None:
    """Read how far packing had come; None where there is no journal.

    Raises:
        DataError: it is damaged or of another version.
    """
    path = folder / JOURNAL
    return _read(path) if path.is_file() else None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest or a journal, whole or not at all."""
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _is_ours(path: Path) -> bool:
    """Tell by its beginning whether a file is a manifest; other programs have files of that name, too."""
    try:
        with path.open("rb") as file:
            return FORMAT.encode() in file.read(100)
    except OSError:
        return False


def _read(path: Path) -> Manifest:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise DataError(f"{path} is no manifest of packed images")
        if document["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{path} is of format version {document['format_version']}, this Headrace reads {FORMAT_VERSION}: "
                "pack the data again, into another folder or with --overwrite"
            )
        return Manifest(
            name=document["name"],
            classes=tuple(document["classes"]),
            source=document["source"],
            options=PackOptions(**document["options"]),
            encoder=document["encoder"],
            splits={name: _split(entry) for name, entry in document["splits"].items()},
            finished={name: [_shard(shard) for shard in shards] for name, shards in document["finished"].items()},
        )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(_damaged(path, f"{type(error).__name__}: {error}")) from error


def _split(entry: dict[str, Any]) -> SplitEntry:
    shards = tuple(_shard(shard) for shard in entry.pop("shards"))
    return SplitEntry(shards=shards, tally=_tally(entry.pop("tally")), **entry)


def _shard(entry: dict[str, Any]) -> ShardEntry:
    shard = ShardEntry(tally=_tally(entry.pop("tally")), **entry)
    if "/" in shard.file or shard.rows < 1:
        raise ValueError(f"shard {shard.file} of {shard.rows} rows")
    return shard


def _tally(entry: dict[str, Any]) -> Tally:
    return Tally(entry["bytes_in"], entry["changes"], [(name, reason) for name, reason in entry["bad"]])


def _damaged(path: Path, detail: str) -> str:
    return f"{path} is damaged ({detail}): pack the data again, into another folder or with --overwrite"
