"""A disk as slow as is wanted: runs a module whose processes share so many bytes per second, and no page cache.

    python -m bench.slow_disk --bytes-per-second 500000 --queue FILE engine.train demo --loader torch

A read is served when those before it are, whichever process asked, as a disk does that one after the other keeps busy.
Slowed down are the reads of whole files by the loader ``torch`` (``numpy.fromfile``) and the doctor's measurement
(``os.pread``), in this process and in those that it forks; a fork server's processes start afresh and read as ever.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import os
import runpy
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_TIME = struct.Struct("d")


class SlowDisk:
    """Serves reads at a rate, one after the other, for all processes that name the same queue.

    Args:
        bytes_per_second: the rate.
        queue: a file that says until when the disk is busy, on the system's monotonic clock, which processes share.
    """

    def __init__(self, bytes_per_second: float, queue: Path) -> None:
        self._bytes_per_second = bytes_per_second
        self._queue = queue
        self._lock = threading.Lock()
        self._served = 0

    def bytes_served(self) -> int:
        """Return how many bytes this process has had so far."""
        return self._served

    def serve(self, size: int) -> None:
        """Wait until so many bytes are read."""
        # A file opened for itself: a lock belongs to an open file, which forked processes would share.
        with self._queue.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            entry = file.read(_TIME.size)
            now = time.monotonic()
            busy_until = _TIME.unpack(entry)[0] if len(entry) == _TIME.size else now
            done = max(now, busy_until) + size / self._bytes_per_second
            file.truncate(0)
            file.write(_TIME.pack(done))
        with self._lock:
            self._served += size
        time.sleep(max(0.0, done - time.monotonic()))

    def slowed(self, read: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that reads, at this disk's rate; what it returns has a length in bytes."""

        @functools.wraps(read)
        def slow(*arguments: Any, **options: Any) -> Any:
            data = read(*arguments, **options)
            self.serve(memoryview(data).nbytes)
            return data

        return slow


def main(argv: Sequence[str] | None = None) -> None:
    """Run a module as ``python -m`` does, with slow reads."""
    parser = argparse.ArgumentParser(prog="python -m bench.slow_disk", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bytes-per-second", type=float, required=True, help="of all processes together")
    parser.add_argument("--queue", type=Path, required=True, metavar="FILE", help="where the processes find each other")
    parser.add_argument("module", choices=("engine.train", "engine.doctor"), help="what to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the module")
    options = parser.parse_args(argv)
    disk = SlowDisk(options.bytes_per_second, options.queue)
    np.fromfile, os.pread = disk.slowed(np.fromfile), disk.slowed(os.pread)  # type: ignore[assignment]
    if options.module == "engine.doctor":
        from engine import doctor_machine

        doctor_machine.storage_bytes = disk.bytes_served  # the system does not know of this disk
    sys.argv = [options.module, *options.arguments]
    runpy.run_module(options.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
