"""Packed sets in the cache: where they are, how large they are, and removing them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from loaders.pack_records import PackOptions
from loaders.pack_sources import PackSource
from loaders.packed_manifest import FORMAT_VERSION, MANIFEST, is_packed

FOLDER = "packed"  # in the cache folder


@dataclass(frozen=True)
class CachedSet:
    """A packed set in the cache: its folder, size in bytes, and whether it was packed to the end."""

    folder: Path
    bytes: int
    whole: bool


def cached_pack_path(source: PackSource, options: PackOptions, cache: Path) -> Path:
    """Return the folder in the cache where a source belongs that is packed with these options; it need not exist."""
    key = f"{FORMAT_VERSION} {source.fingerprint} {sorted(asdict(options).items())}"
    return cache / FOLDER / f"{source.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def cached_sets(cache: Path) -> Iterator[CachedSet]:
    """Yield the packed sets in a cache folder, by name."""
    root = cache / FOLDER
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.is_dir() and is_packed(folder):
            size = sum(path.stat().st_size for path in folder.iterdir())
            yield CachedSet(folder, size, (folder / MANIFEST).is_file())


def remove_cached(cached: CachedSet) -> bool:
    """Remove a packed set; return False, leaving it alone, while a process is packing it."""
    handle = os.open(cached.folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (cached.folder / MANIFEST).unlink(missing_ok=True)  # so that no part is ever taken for the whole
        shutil.rmtree(cached.folder)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
