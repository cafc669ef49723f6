"""When a run ends: a signal, a time limit, a target reached, or no progress any more."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 75  # stopped by a signal after saving: run again with --resume auto


class StopRequest:
    """Set by SIGTERM or SIGINT; the loop looks at it after each step. A second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


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


class Deadline:
    """A limit on a run's time; the seconds that earlier parts of a resumed run took count.

    Args:
        limit: seconds, 0 for none.
        spent: seconds that the run took before.
    """

    def __init__(self, limit: float, spent: float = 0.0) -> None:
        self.limit = limit
        self.started = time.monotonic() - spent

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def passed(self) -> bool:
        return bool(self.limit) and self.elapsed >= self.limit


def stopped_improving(metrics: Sequence[float], patience: int) -> bool:
    """Say whether the last ``patience`` evaluations brought no new best (never with patience 0)."""
    if not patience or len(metrics) <= patience:
        return False
    return max(metrics[-patience:]) <= max(metrics[:-patience])
