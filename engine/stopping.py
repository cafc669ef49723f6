"""When a run ends: a signal, a time limit, a target reached, or no progress any more."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

logger = logging.getLogger("headrace")

EXIT_INTERRUPTED = 75  # stopped by a signal after saving: run again with --resume auto


@dataclass(frozen=True)
class Ending:
    """How training ended.

    Attributes:
        reason: in words.
        finished: nothing is left to do; otherwise the run can be resumed.
        interrupted: a signal ended it.
    """

    reason: str
    finished: bool
    interrupted: bool = False


class StopRequest:
    """Set by SIGTERM or SIGINT; the loop looks at it after each step. A second SIGINT ends the process at once.

    torchrun passes on an interrupt that the terminal has sent to the whole group already, so what follows within two
    seconds counts as the same one.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._at = signal.Signals(number), now
            logger.info("%s: this step is finished and saved, then the run stops", self.signal.name)
        elif number == signal.SIGINT and now - self._at > 2:
            raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a StopRequest for the time of the block."""
    request = StopRequest()
    previous = {number: signal.signal(number, request.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Clock:
    """A run's time, and the limit on what this part of it may take.

    Args:
        limit: seconds from now, 0 for none. A resumed run has it anew, so that it gets on.
        spent: seconds that earlier parts of the run took.
    """

    def __init__(self, limit: float, spent: float = 0.0) -> None:
        self._limit = limit
        self._spent = spent
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds that the run took, all its parts together."""
        return self._spent + time.monotonic() - self._started

    def is_over(self) -> bool:
        """Whether this part has reached its limit."""
        return bool(self._limit) and time.monotonic() - self._started >= self._limit


def stopped_improving(metrics: Sequence[float], patience: int) -> bool:
    """Say whether the last ``patience`` evaluations brought no new best (never with patience 0)."""
    if not patience or len(metrics) <= patience:
        return False
    return max(metrics[-patience:]) <= max(metrics[:-patience])
