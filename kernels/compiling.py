"""Says that compiled code is being compiled: that happens once on a machine, and takes long then."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from numba.core import event

logger = logging.getLogger("headrace")


class _Announcement(event.Listener):
    """Logs a sentence when the first function is compiled; nothing where all are found in the cache."""

    def __init__(self, sentence: str) -> None:
        self.started: float | None = None
        self._sentence = sentence

    def on_start(self, event: event.Event) -> None:
        if self.started is None:
            self.started = time.monotonic()
            logger.info(self._sentence)

    def on_end(self, event: event.Event) -> None:
        pass


@contextmanager
def announced(what: str, duration: str) -> Iterator[None]:
    """Log it where something within is compiled.

    Args:
        what: is compiled, such as "roi: the decoder".
        duration: about what it takes, such as "half a minute".
    """
    announcement = _Announcement(f"{what} is compiled for this machine, once; that takes about {duration}")
    with event.install_listener("numba:compile", announcement):
        yield
    if announcement.started is not None:
        logger.info("%s was compiled in %.0f s", what, time.monotonic() - announcement.started)
