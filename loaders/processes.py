"""How worker processes are started and how their batches come back."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import sys
import threading
import time
import weakref
from copy import copy
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from typing import Any, Literal

from torch.utils.data._utils.signal_handling import _remove_worker_pids

logger = logging.getLogger("headrace")

Transport = Literal["shared-memory", "pipe", "none"]
GRACE_SECONDS = 1.0  # for a worker to end by itself; what it works on is wanted no more
_NOTICE_SECONDS = 0.5  # from a broken connection to the news that a process has ended


class _Flag:
    """An event without the lock of multiprocessing's.

    A worker looks whether it is to end before each batch; killed in that moment, it would keep the lock for good.
    """

    def __init__(self, context: BaseContext) -> None:
        self._value = context.RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        self._value.value = True

    def is_set(self) -> bool:
        return bool(self._value.value)


def worker_context() -> BaseContext:
    """Return the way to start workers: ``fork``, which is quick, unless this process holds threads that break it.

    The context is a DataLoader's alone: its events can be set and asked, not waited for.
    """
    reason = None
    if "nvidia.dali" in sys.modules:
        reason = "DALI is loaded"
    elif _numba_threads_running():
        reason = "numba's threads are running"
    if reason is not None:
        logger.info("Worker processes are started by a fork server: %s, and a fork of this process could hang", reason)
    context = copy(multiprocessing.get_context("forkserver" if reason else "fork"))
    context.set_forkserver_preload(["loaders.torch_backend"])
    context.Event = lambda: _Flag(context)  # type: ignore[assignment, method-assign, return-value]
    return context


class Workers:
    """The worker processes of a DataLoader's iterator, which end all together.

    A worker that is killed may take the lock of the queue of answers with it, or leave half an answer in there, and who
    needs them would wait forever. So a thread kills the others as soon as one ends. With that the last writer to the
    queue is gone, and reading from it raises EOFError, or OSError in the middle of an answer.

    PyTorch's own watch is off: it raises from a signal handler, wherever the main thread is (in a step, in closing),
    and knows nothing of workers that a fork server has started.

    Args:
        iterator: of a DataLoader with ``persistent_workers``.
    """

    def __init__(self, iterator: Any) -> None:
        self._processes: list[multiprocessing.Process] = iterator._workers
        self._sentinels = [process.sentinel for process in self._processes]
        self._requests: list[Queue[Any]] = iterator._index_queues
        self._answers: Queue[Any] = iterator._worker_result_queue
        self._iterator = iterator
        self._stopping = False
        _running.add(self)
        _remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
        self._watch = threading.Thread(target=self._end_together, name="headrace-workers", daemon=True)
        self._watch.start()

    def have_lost_one(self) -> bool:
        """Return whether a worker has ended, or is found to within a moment."""
        return bool(wait(self._sentinels, _NOTICE_SECONDS))

    def stop(self) -> None:
        """End the workers and what else serves them: a moment after being asked, and otherwise by force."""
        self._stopping = True
        self._iterator._shutdown = True  # nothing is left for the iterator to do
        try:
            self._iterator._workers_done_event.set()
            for requests in self._requests:
                requests.put(None)
            deadline = time.monotonic() + GRACE_SECONDS
            for process in self._processes:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for process in self._processes:
                process.kill()
                process.join()
            self._watch.join()
            for requests in self._requests:
                _close(requests)

    def _end_together(self) -> None:
        wait(self._sentinels)
        if self._stopping:
            return
        for process in self._processes:
            process.kill()
        self.write_no_answers()

    def write_no_answers(self) -> None:
        """Close this process's way to write to the queue of answers."""
        self._answers._writer.close()  # type: ignore[attr-defined]


_running: weakref.WeakSet[Workers] = weakref.WeakSet()


def _write_no_answers_of_others() -> None:
    for workers in _running:
        workers.write_no_answers()


# Any process forked later, another loader's worker say, would otherwise be one more writer that may outlive the others.
os.register_at_fork(after_in_child=_write_no_answers_of_others)


def _close(queue: Queue[Any]) -> None:
    """Close a queue whose reader has ended, and end its thread, which may be stuck in the full pipe."""
    pipe = os.dup(queue._reader.fileno())  # type: ignore[attr-defined]
    try:
        queue.close()
        thread: threading.Thread | None = queue._thread  # type: ignore[attr-defined]
        while thread is not None and thread.is_alive():
            if wait([pipe], timeout=0.01):
                os.read(pipe, 1 << 16)
    finally:
        os.close(pipe)


def end_with_parent() -> None:
    """Wait for the end of the process that started this one, and end this one: for a thread of a worker.

    If the parent is killed outright, a worker would otherwise wait forever for an answer to be taken from it.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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
