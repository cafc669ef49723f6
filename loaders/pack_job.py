"""Packing a data set: from its files to shards, an index and a manifest, resumable and whole or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import PIL
from PIL import features
from tqdm import tqdm

from loaders.cores import usable_cores
from loaders.files import atomic_file
from loaders.pack_images import find_jpegtran, pack_images
from loaders.pack_records import BadImage, PackedImage, PackError, PackOptions, SourceImage
from loaders.pack_sources import PackSource, SourceSplit
from loaders.pack_workers import PackWorkers
from loaders.packed_index import write_index
from loaders.packed_manifest import (
    BAD_FILES,
    JOURNAL,
    MANIFEST,
    SPLITS,
    Manifest,
    ShardEntry,
    SplitEntry,
    Tally,
    is_packed,
    own_files,
    read_journal,
    read_manifest,
    write_manifest,
)
from loaders.shards import read_shard, shard_schema, write_shard

_SAMPLE = 64  # images that the size of the packed set is estimated from
_FULL = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger("headrace")


def pack(
    source: PackSource,
    destination: Path,
    options: PackOptions | None = None,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Manifest:
    """Pack a data set into a folder, or recognize that it is there.

    The folder is usable when this returns, and not before. After any interruption, the same call goes on behind the
    last whole shard; the result is the same, byte for byte, as without it, and whatever the number of workers. Other
    processes that want to pack into the same folder wait.

    Args:
        source: see `loaders.pack_sources`.
        destination: the folder.
        options: what the records are like; None for the defaults.
        workers: processes that encode; None for one per core.
        overwrite: throw away the packed set that is in the folder, and begin anew.
        show_progress: show a progress bar.

    Raises:
        PackError: the folder holds something else, the disk is too small, no image can be decoded, or jpegtran is
            missing.
        DataError: what the folder holds is damaged.
    """
    options = options or PackOptions()
    if options.keep:
        find_jpegtran()
    with _locked(destination):
        if overwrite and is_packed(destination):
            _empty(destination)
        if (destination / MANIFEST).is_file():
            manifest = _recognized(source, destination, options)
            (destination / JOURNAL).unlink(missing_ok=True)  # left by a call that was killed at its very end
            return manifest
        job = _Job(source, destination, options, show_progress)
        try:
            return job.run(workers or max(1, round(usable_cores())))
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise PackError(
                f"the disk is full: {destination} has {_size(_free(destination))} left, and about "
                f"{_size(job.missing_bytes())} more is needed. Whole shards are kept; make room and run the same "
                "command again to go on"
            ) from error


class _Job:
    """One call of `pack` that has something to do."""

    def __init__(self, source: PackSource, destination: Path, options: PackOptions, show_progress: bool) -> None:
        self.source, self.destination, self.options = source, destination, options
        self.show_progress = show_progress
        self.schema = shard_schema(source.classes, options.renditions)
        self.journal = self._resumed()
        self.bytes_per_image = 0.0  # as estimated

    def run(self, workers: int) -> Manifest:
        """Pack what is missing and return the manifest."""
        total = sum(len(split) for _, split in self.source.splits())
        done = sum(map(self._done, SPLITS))
        if done:
            logger.info("%s: going on behind %d of %d images", self.destination, done, total)
        sample = self._sample()
        pack_images(sample[:1], self.options)  # compiles once what the workers would compile each
        with PackWorkers(workers, self.options) as pool:
            sizes = [i.stored_bytes if isinstance(i, PackedImage) else 0 for i in pool.encode(sample)]
            self.bytes_per_image = float(np.mean(sizes)) if sizes else 0.0
            self._require_space()
            write_manifest(self.destination / JOURNAL, self.journal)
            with tqdm(
                total=total,
                initial=done,
                desc=f"packing {self.source.name}",
                unit=" images",
                smoothing=0.05,
                disable=not self.show_progress,
            ) as bar:
                splits = {name: self._pack_split(name, split, pool, bar) for name, split in self.source.splits()}
        manifest = Manifest(
            self.journal.name, self.journal.classes, self.journal.source, self.options, self.journal.encoder, splits
        )
        self._write_bad_files(manifest)
        write_manifest(self.destination / MANIFEST, manifest)
        (self.destination / JOURNAL).unlink()
        return manifest

    def _resumed(self) -> Manifest:
        """Return the journal of an earlier call, with the shards that are still whole, or a new one."""
        journal = read_journal(self.destination)
        if journal is None:
            if any(not name.startswith(".") for name in os.listdir(self.destination)):
                raise PackError(f"{self.destination} holds other files: give a new or an empty folder")
            encoder = f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
            journal = Manifest(
                self.source.name, self.source.classes, self.source.fingerprint, self.options, encoder, {}, {}
            )
        _require_same(journal, self.source, self.destination, self.options)
        for name in SPLITS:
            shards = journal.finished.setdefault(name, [])
            whole = [_has_size(self.destination / shard.file, shard.bytes) for shard in shards]
            del shards[whole.index(False) if False in whole else len(whole) :]
        kept = {shard.file for shards in journal.finished.values() for shard in shards}
        for path in own_files(self.destination):
            if path.name not in kept and path.name != JOURNAL:
                path.unlink()  # what an interrupted call was writing
        return journal

    def missing_bytes(self) -> int:
        """Return about how much more disk the images behind the last whole shards need."""
        return int(self.bytes_per_image * sum(len(split) - self._done(name) for name, split in self.source.splits()))

    def _done(self, name: str) -> int:
        """Return the source's row behind the last whole shard of a split."""
        shards = self.journal.finished[name]
        return shards[-1].next_row if shards else 0

    def _sample(self) -> list[SourceImage]:
        """Return images spread evenly over what is still to be packed."""
        images = []
        for name, split in self.source.splits():
            share = -(-_SAMPLE * len(split) // (len(self.source.train) + len(self.source.val)))
            done = self._done(name)
            rows = np.linspace(done, len(split), min(share, len(split) - done), endpoint=False, dtype=int)
            images += [split[row] for row in rows.tolist()]
        return images

    def _require_space(self) -> None:
        needed, free = self.missing_bytes(), _free(self.destination)
        if needed > free:
            raise PackError(
                f"{self.destination} needs about {_size(needed)} more, and {_size(free)} is free there: make "
                "room, give another folder, or store less (--max-side, --quality, fewer --renditions)"
            )

    def _pack_split(self, name: str, split: SourceSplit, pool: PackWorkers, bar: tqdm) -> SplitEntry:
        shards = self.journal.finished[name]
        start = self._done(name)
        results = _Results(pool.encode(split[row] for row in range(start, len(split))), start, bar)
        for first in results:
            path = self.destination / f"{name}-{len(shards):05d}.arrow"
            images = _until_full(chain([first], results), self.options.shard_mb * 1_000_000)
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                rows = write_shard(file, images, self.schema, self.options.renditions)
            shards.append(ShardEntry(path.name, rows, path.stat().st_size, results.next_row, results.take_tally()))
            write_manifest(self.destination / JOURNAL, self.journal)
        tally = Tally()
        for part in (*(shard.tally for shard in shards), results.take_tally()):  # the last: behind the last shard
            tally.add(part)
        if not shards:
            raise PackError(
                f"none of the {len(split)} images of {self.source.name}/{name} can be decoded, first "
                + (": ".join(tally.bad[0]) if tally.bad else "none")
            )
        index = self.destination / f"{name}.index"
        size, checksum = write_index(
            index, [read_shard(self.destination / shard.file, self.options.renditions) for shard in shards]
        )
        return SplitEntry(tuple(shards), index.name, size, checksum, tally)

    def _write_bad_files(self, manifest: Manifest) -> None:
        bad = [(name, *row) for name, split in manifest.splits.items() for row in split.tally.bad]
        if not bad:
            return
        with (
            atomic_file(self.destination / BAD_FILES) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows([("split", "path", "reason"), *bad])


class _Results(Iterator[PackedImage]):
    """The images that could be packed, in order; what became of all of them is counted on the way.

    Attributes:
        next_row: the source's row behind the last one seen.
    """

    def __init__(self, results: Iterator[PackedImage | BadImage], start: int, bar: tqdm) -> None:
        self.next_row = start
        self._results, self._bar = results, bar
        self._tally = Tally()

    def __next__(self) -> PackedImage:
        for result in self._results:
            self.next_row += 1
            self._bar.update()
            if isinstance(result, PackedImage):
                self._tally.add(Tally(result.source.size, dict.fromkeys(result.changes, 1)))
                return result
            self._tally.bad.append((result.source.name, result.reason))
        raise StopIteration

    def take_tally(self) -> Tally:
        """Return what was counted since the last call."""
        taken, self._tally = self._tally, Tally()
        return taken


def _until_full(images: Iterable[PackedImage], limit: int) -> Iterator[PackedImage]:
    """Yield images until they have ``limit`` bytes."""
    stored = 0
    for image in images:
        yield image
        stored += image.stored_bytes
        if stored >= limit:
            return


def _recognized(source: PackSource, destination: Path, options: PackOptions) -> Manifest:
    """Return the manifest of a whole set, when it is what is wanted."""
    manifest = read_manifest(destination)
    _require_same(manifest, source, destination, options)
    for split in manifest.splits.values():
        for file, size in [(split.index, split.index_bytes), *((shard.file, shard.bytes) for shard in split.shards)]:
            if not _has_size(destination / file, size):
                raise PackError(f"{destination} is damaged: {file} is missing or cut off. Pack again with --overwrite")
    return manifest


def _require_same(found: Manifest, source: PackSource, destination: Path, options: PackOptions) -> None:
    remedy = "Give another folder, or --overwrite to replace it"
    if found.source != source.fingerprint:
        raise PackError(f"{destination} holds other data, packed from {found.name} as it was then. {remedy}")
    if found.options != options:
        names = [name for name, value in vars(options).items() if value != getattr(found.options, name)]
        was = ", ".join(f"--{name.replace('_', '-')} {getattr(found.options, name)}" for name in names)
        raise PackError(f"{destination} is packed with other options ({was}). {remedy}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes that pack into it waiting."""
    if folder.exists() and not folder.is_dir():
        raise PackError(f"{folder} is a file; the destination is a folder")
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is packing into %s; waiting for it", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    """Remove a packed set: first what makes it one, so that no part is ever taken for the whole."""
    for path in (folder / MANIFEST, folder / JOURNAL, *own_files(folder)):
        path.unlink(missing_ok=True)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
