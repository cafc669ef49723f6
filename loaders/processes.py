"""How worker processes are started and how their batches come back."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from multiprocessing.context import BaseContext
from typing import Literal

logger = logging.getLogger("headrace")

Transport = Literal["shared-memory", "pipe", "none"]


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
    """Return how batches travel: shared memory, or a pipe where /dev/shm is too small (Docker gives 64 MB).

    Args:
        bytes_in_flight: of one process's batches; the other processes of a job on this machine need as much each.
    """
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # Twice, because the consumer may hold some of the batches while others are on their way.
    return "shared-memory" if _free_shared_memory() >= 2 * sharing * bytes_in_flight else "pipe"


def warn_of_pipes() -> None:
    """Say why batches come through pipes."""
    logger.warning(
        "/dev/shm has %d MB free, too little for batches in shared memory; they go through pipes, which is slower. "
        "In Docker, --shm-size=2g or --ipc=host helps",
        _free_shared_memory() // 1_000_000,
    )


def _free_shared_memory() -> int:
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def _numba_threads_running() -> bool:
    layer = sys.modules.get("numba.np.ufunc.parallel")
    return bool(layer is not None and getattr(layer, "_is_initialized", False))
