"""Processes that encode images, their results in the order of the source."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import parent_process
from multiprocessing.connection import wait
from types import TracebackType
from typing import Self

from loaders.pack_images import pack_images
from loaders.pack_records import BadImage, PackedImage, PackError, PackOptions, SourceImage
from loaders.processes import worker_context

_IMAGES_PER_TASK = 16
_TASKS_PER_WORKER = 4  # in flight, so that memory stays bounded however slow the disk is


class PackWorkers:
    """A pool of processes that encode images.

    Args:
        count: of processes.
        options: what the records are like.
    """

    def __init__(self, count: int, options: PackOptions) -> None:
        self._count = count
        self._options = options
        self._pool = ProcessPoolExecutor(count, worker_context(), _initialize)

    def encode(self, images: Iterable[SourceImage]) -> Iterator[PackedImage | BadImage]:
        """Yield what becomes of each image, in order.

        Raises:
            PackError: the options need a program that is not installed, or a process died.
        """
        remaining = iter(images)
        tasks = iter(lambda: list(islice(remaining, _IMAGES_PER_TASK)), [])
        pending: deque[Future[list[PackedImage | BadImage]]] = deque()
        try:
            while True:
                for task in islice(tasks, self._count * _TASKS_PER_WORKER - len(pending)):
                    pending.append(self._pool.submit(pack_images, task, self._options))
                if not pending:
                    return
                yield from pending.popleft().result()
        except BrokenProcessPool as error:
            raise PackError(
                "a worker process died, killed perhaps for the memory it used: fewer --workers need less. Run the same "
                "command again to go on from the last whole shard"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def _initialize() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the main process, which ends these
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the main one is gone, killed perhaps, and can end nothing itself any more."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
