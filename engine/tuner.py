"""How many workers the loader gets, found while training.

Training itself is the measurement: for some seconds it runs with one worker, and the share of the time that it waits
tells how many would keep up. By Little's law the images in workers' hands are the rate times the seconds that one
takes, so that a model which waits for a fraction f of the time behind w workers needs w / (1 - f) of them (J. D. C.
Little, "A Proof for the Queuing Formula L = λW", Operations Research 9(3), 1961). From there it is a climb with
hysteresis: workers beyond that cost memory and, on a CPU, take cores from the model, so that they stay only where the
rate rises by more than chance.

The plan makes batches independent of the workers, so that changing them in the middle of an epoch changes no result.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, cast

from loaders.contract import Batch, Loader
from loaders.plan import EpochPlan

TUNED_LOADERS = ("torch", "dali", "roi")  # FFCV compiles for seconds when it begins anew
WAIT_TOLERATED = 0.03  # share of the time; less is not worth a worker
GAIN_WANTED = 0.05  # by which another number of workers must be faster to stay; less is within what repeats scatter
_WINDOW_SECONDS = 2.0
_WINDOW_BATCHES = 8
_UNSTEADY_BATCHES = 4  # after a start, until queues are as full as they are going to be

logger = logging.getLogger("headrace")


@dataclass(frozen=True)
class Window:
    """What was seen of training over some seconds.

    Attributes:
        rate: images per second, at least 0.
        waiting: share of the time that training waited for data, 0 to 1.
    """

    rate: float
    waiting: float


@dataclass(frozen=True)
class Decision:
    """How many workers to go on with, and why."""

    workers: int
    reason: str


class Climb:
    """The search for a number of workers at one size: from where it stands up, or down, while that helps.

    Args:
        workers: in use when it begins.
        most: not more than these.
    """

    def __init__(self, workers: int, most: int) -> None:
        self.workers, self._most = workers, most
        self._before: tuple[int, Window] | None = None  # what the present number is compared with
        self.settled = most == 1 and workers == 1

    def observe(self, seen: Window) -> Decision | None:
        """Take what was seen with the present number of workers; return another number, or None to stay.

        When ``settled`` is set, nothing more is going to change.
        """
        if self._before is not None:
            before, then = self._before
            slower = seen.rate < then.rate * (1 - WAIT_TOLERATED)
            if (self.workers > before and seen.rate < then.rate * (1 + GAIN_WANTED)) or slower:
                self.settled = True
                return self._go(before, f"{self.workers} gave {seen.rate:.0f} images/s in place of {then.rate:.0f}")
        went_up = self._before is not None and self.workers > self._before[0]
        went_down = self._before is not None and not went_up
        waits = f"{seen.waiting:.0%} of the time waited for data at {seen.rate:.0f} images/s"
        if seen.waiting > WAIT_TOLERATED and self.workers < self._most and not went_down:
            keeping_up = self.workers / max(1 - seen.waiting, 1e-3)
            self._before = self.workers, seen
            return self._go(max(self.workers + 1, min(self._most, math.ceil(keeping_up - WAIT_TOLERATED))), waits)
        if seen.waiting <= WAIT_TOLERATED and self.workers > 1 and not went_up:
            self._before = self.workers, seen
            return self._go(self.workers - 1, waits)
        self.settled = True
        return None

    def _go(self, workers: int, reason: str) -> Decision:
        self.workers = workers
        return Decision(workers, reason)


class Tuner:
    """Sets the loader's workers while training goes on, and logs each change with its reason.

    Args:
        loader: whose workers to set; it begins with what it has.
        most: not more than these.
        waited: returns the seconds that training has waited for data so far.
    """

    def __init__(self, loader: Loader, most: int, waited: Callable[[], float]) -> None:
        self._loader, self._most, self._waited = loader, max(1, most), waited
        self._resolution = 0
        self._climb = Climb(loader.num_workers, self._most)

    def batches(self, plan: EpochPlan) -> Iterator[Batch]:
        """Yield the plan's batches as the loader does, which may go on with other workers in between."""
        if plan.view.resolution != self._resolution:  # what loading and training take changes with the size
            self._resolution = plan.view.resolution
            self._climb = Climb(self._loader.num_workers, self._most)
        step = plan.start_batch
        while step < plan.num_batches:
            batches = self._loader.run(replace(plan, start_batch=step))
            with closing(cast(Any, batches)):  # a generator, as every loader's
                watch = _Watch(self._waited)
                for batch in batches:
                    yield batch
                    step = batch.plan.step + 1
                    if self._climb.settled or (seen := watch.see(len(batch))) is None:
                        continue
                    before = self._climb.workers
                    if (decision := self._climb.observe(seen)) is not None:
                        numbers = before, decision.workers, self._resolution
                        logger.info("Workers: %d -> %d at %d px: %s", *numbers, decision.reason)
                        break
            if self._loader.num_workers != self._climb.workers:
                self._loader.use_workers(self._climb.workers)


class _Watch:
    """Watches training from where it is steady."""

    def __init__(self, waited: Callable[[], float]) -> None:
        self._waited = waited
        self._batches = -_UNSTEADY_BATCHES
        self._images = 0
        self._begin = self._waited_before = 0.0

    def see(self, images: int) -> Window | None:
        """Count a batch that was trained on; return what was seen when that is enough, and begin anew."""
        self._batches += 1
        if self._batches > 0:
            self._images += images
        elif self._batches == 0:
            self._begin, self._waited_before = time.perf_counter(), self._waited()
        elapsed = time.perf_counter() - self._begin
        if self._batches < _WINDOW_BATCHES or elapsed < _WINDOW_SECONDS:
            return None
        seen = Window(self._images / elapsed, min(1.0, (self._waited() - self._waited_before) / elapsed))
        self._batches = self._images = 0
        self._begin, self._waited_before = time.perf_counter(), self._waited()
        return seen
