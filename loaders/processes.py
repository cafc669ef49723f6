"""How worker processes are started and how their batches come back."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from multiprocessing.context import BaseContext
from typing import Literal

logger = logging.getLogger("headrace")

Transport = Literal["shared-memory", "pipe"]


def worker_context() -> BaseContext:
    """Return the way to start workers: ``fork``, which is quick, unless this process holds threads that break it."""
    reason = None
    if "nvidia.dali" in sys.modules:
        reason = "DALI is loaded"
    elif _numba_threads_running():
        reason = "numba's threads are running"
    if reason is None:
        return multiprocessing.get_context("fork")
    logger.info("Worker processes are started by a fork server: %s, and a fork of this process could hang", reason)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loaders.torch_backend"])
    return context


def choose_transport(bytes_in_flight: int) -> Transport:
    """Return how batches travel: shared memory, or a pipe where /dev/shm is too small (Docker gives 64 MB)."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        free = 0
    else:
        free = status.f_bavail * status.f_frsize
    # The consumer may hold a few batches, and the largest resolution of a schedule may be still to come.
    if free >= 4 * bytes_in_flight:
        return "shared-memory"
    logger.warning(
        "/dev/shm has %d MB free, too little for batches in shared memory; they go through pipes, which is slower. "
        "In Docker, --shm-size=2g or --ipc=host helps",
        free // 1_000_000,
    )
    return "pipe"


def _numba_threads_running() -> bool:
    layer = sys.modules.get("numba.np.ufunc.parallel")
    return bool(layer is not None and getattr(layer, "_is_initialized", False))
