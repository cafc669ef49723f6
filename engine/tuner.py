"""How many workers the loader gets, found while training.

Training itself is the measurement: for some seconds it runs with one worker, and the share of the time that it waits
tells how many would keep up. By Little's law the images in workers' hands are the rate times the seconds that one
takes, so that a model which waits for a fraction f of the time behind w workers needs w / (1 - f) of them (J. D. C.
Little, "A Proof for the Queuing Formula L = λW", Operations Research 9(3), 1961). From there it is a climb with
hysteresis: workers beyond that cost memory and, on a CPU, take cores from the model, so that they stay only where the
rate rises by more than chance, and where a jump has brought less than the workers promised, fewer are tried: between
the two where it brought nothing, as a disk or a memory may serve some workers best.

Where two numbers do not differ clearly, as the waiting lets expect, the loser is looked at once more, and its faster
window counts: whatever else the machine does, it only ever makes training slower (the argument of Python's ``timeit``).
What stays is looked at last; where it is far slower than before, something else has begun to take the machine's time,
and the search begins anew.

The plan makes batches independent of the workers, so that changing them in the middle of an epoch changes no result.

Several processes that train together are as fast as the slowest of them, in which alone the waiting shows. They look
after the same batches and go by the longest waiting and time of any, so that all decide alike.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, cast

from engine.charts import number
from loaders.contract import Batch, Loader
from loaders.plan import EpochPlan

TUNED_LOADERS = ("torch", "dali", "roi")  # FFCV compiles for seconds when it begins anew
WAIT_TOLERATED = 0.03  # share of the time; less is not worth a worker
GAIN_WANTED = 0.05  # by which more workers must be faster to stay; less is within what repeats scatter
_CLEAR = 0.25  # a difference of rates that one window of each is enough for
_CHANGED = 0.15  # by which a number that is looked at again is slower where something else takes the machine's time
_LOOKS = 2  # at each of two numbers that differ less
_BEGINNINGS = 3  # of a search at one size, because of that
_WINDOW_SECONDS = 2.0
_WINDOW_BATCHES = 8
_UNSTEADY_BATCHES = 4  # after a start, until queues are as full as they are going to be

logger = logging.getLogger("headrace")


@dataclass(frozen=True)
class Window:
    """What was seen of training over some seconds.

    Attributes:
        rate: images per second, above 0.
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
    """The search for a number of workers at one size: up while that helps, then down while that costs nothing.

    Attributes:
        workers: what to train with until the next decision.
        settled: nothing is going to change any more.

    Args:
        workers: in use when it begins.
        most: not more than these.
    """

    def __init__(self, workers: int, most: int) -> None:
        self.workers, self.settled = workers, False
        self._limit, self._kept = most, workers
        self._beginnings = 0
        self._begin()

    def _begin(self) -> None:
        self._beginnings += 1
        self._windows: dict[int, list[Window]] = {}
        self._tried = self._kept  # what the best so far is compared with; itself while nothing is
        self._most = self._limit  # more are not going to be faster
        self._has_lost = False  # one more than that was tried, and was not
        self._too_few = 0  # these and fewer are slower
        self._compared = ""  # the last comparison in words

    def observe(self, seen: Window) -> Decision | None:
        """Take what was seen with the present number of workers; return what follows, or None to see more first."""
        if self._tried != self._kept:
            self._windows.setdefault(self.workers, []).append(seen)
            return self._compare()
        before = max((window.rate for window in self._windows.get(self._kept, [])), default=0.0)
        if seen.rate < before * (1 - _CHANGED) and self._beginnings < _BEGINNINGS:
            self._begin()  # something else takes the machine's time, and comparisons with what was seen mean nothing
        self._windows.setdefault(self._kept, []).append(seen)
        best = self._best(self._kept)
        waits = f"{best.waiting:.0%} of the time waited for data at {number(best.rate)} images/s"
        return self._next(self._compared or waits)

    def _best(self, workers: int) -> Window:
        return max(self._windows[workers], key=lambda window: window.rate)

    def _compare(self) -> Decision | None:
        kept, tried = self._best(self._kept).rate, self._best(self._tried).rate
        self._compared = f"{self._tried} gave {number(tried)} images/s in place of {number(kept)}"
        more = self._tried > self._kept
        if more:
            won = tried >= kept * (1 + GAIN_WANTED)
        else:
            won = tried >= (1 - WAIT_TOLERATED) * max(self._best(workers).rate for workers in self._windows)
        loser = self._kept if won else self._tried
        if len(self._windows[loser]) < _LOOKS and not self._is_clear(more):
            return None if loser == self.workers else self._go(loser, f"{self._compared}; {loser} once more")
        if more and won:
            self._too_few, self._kept = self._kept, self._tried
        elif won:
            self._most = self._kept = self._tried
        elif more:
            self._most, self._has_lost = self._tried - 1, True
        else:
            self._too_few = self._tried
        return self._next(self._compared)

    def _is_clear(self, more: bool) -> bool:
        """Whether the rates differ by far, in the way that the waiting lets expect."""
        kept, tried = self._best(self._kept), self._best(self._tried)
        if more:
            keeping_up = 1 / max(1 - kept.waiting, 1e-3)
            return 1 + _CLEAR < tried.rate / kept.rate < keeping_up * (1 + _CHANGED)
        return tried.rate < kept.rate * (1 - _CLEAR) and tried.waiting > WAIT_TOLERATED

    def _next(self, reason: str) -> Decision | None:
        """Choose what to compare the best with, or settle for it."""
        kept, seen = self._kept, self._best(self._kept)
        if seen.waiting > WAIT_TOLERATED and kept < self._most:
            needed = math.ceil((1 - WAIT_TOLERATED) * kept / max(1 - seen.waiting, 1e-3))
            if self._has_lost:
                needed = min(needed, round(math.sqrt(kept * (self._most + 1))))
            self._tried = max(kept + 1, min(self._most, needed))
            return self._go(self._tried, reason)
        self._tried = kept
        fewer = kept // 2
        if self._too_few:  # were all of a jump's workers as good as those before it, so many would bring the same rate
            fewer = math.ceil((1 - WAIT_TOLERATED) * self._too_few * seen.rate / self._best(self._too_few).rate)
        fewer = max(self._too_few + 1, fewer)
        if fewer < kept:
            is_certain = len(self._windows[kept]) > 1
        else:  # what stays is looked at last
            is_certain = self.workers == kept and sum(map(len, self._windows.values())) > 1
        if not is_certain:
            return None if self.workers == kept else self._go(kept, reason)
        self._most = kept
        self.settled = fewer >= kept
        self._tried = min(fewer, kept)
        return self._go(self._tried, reason)

    def _go(self, workers: int, reason: str) -> Decision:
        self.workers = workers
        return Decision(workers, reason)


Agree = Callable[[Sequence[float]], Sequence[float]]
"""Returns the largest of each number in any process; all processes of a run call it with as many, in the same order."""


def _alone(values: Sequence[float]) -> Sequence[float]:
    return values


class Tuner:
    """Sets the loader's workers while training goes on, and logs each decision with its reason.

    Args:
        loader: whose workers to set; it begins with what it has.
        most: not more than these, and one at least.
        waited: returns the seconds that training has waited for data so far.
        agree: lets the processes of a run decide alike; called a few times in each window while there is a search.
        clock: returns seconds.
    """

    def __init__(
        self,
        loader: Loader,
        most: int,
        waited: Callable[[], float],
        agree: Agree = _alone,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        (fewest,) = agree([-max(1, most)])
        self._loader, self._most = loader, int(-fewest)
        self._watch = _Watch(waited, agree, clock)
        self._size = (0, 0)  # side and batch size, with which what loading and training take changes
        self._climbs: dict[tuple[int, int], Climb] = {}

    @property
    def is_settled(self) -> bool:
        """Whether the loader has the workers that the present size is going to be trained with."""
        climb = self._climbs.get(self._size)
        return climb is not None and climb.settled and self._loader.num_workers == climb.workers

    def batches(self, plan: EpochPlan) -> Iterator[Batch]:
        """Yield the plan's batches as the loader does, which may go on with other workers in between."""
        climb = self._climb_at(plan.view.resolution, plan.view.batch_size)
        step = plan.start_batch
        while step < plan.num_batches:
            if self._loader.num_workers != climb.workers:
                self._loader.use_workers(climb.workers)
                self._watch.forget()
            self._watch.begin_epoch()
            batches = self._loader.run(replace(plan, start_batch=step))
            with closing(cast(Any, batches)):  # a generator, as every loader's
                for batch in batches:
                    yield batch
                    step = batch.plan.step + 1
                    if not climb.settled:
                        self._take(self._watch.see(len(batch), climb.workers), climb)
                    if self._loader.num_workers != climb.workers:
                        break
        if not climb.settled:
            self._take(self._watch.end_epoch(), climb)

    def _take(self, seen: Window | None, climb: Climb) -> None:
        """Have what was seen decided on."""
        if seen is not None and (decision := climb.observe(seen)) is not None:
            self._log(decision)

    def _climb_at(self, resolution: int, batch_size: int) -> Climb:
        """Return the search at a size, which is begun with the first epoch of it."""
        size = resolution, batch_size
        if size == self._size:
            return self._climbs[size]
        self._size = size
        self._watch.forget()
        if size in self._climbs:
            self._log(Decision(self._climbs[size].workers, "as before at this size"))
            return self._climbs[size]
        climb = self._climbs[size] = Climb(self._loader.num_workers, self._most)
        if self._most == climb.workers == 1:
            climb.settled = True
            self._log(Decision(1, "one core is all there is"))
        return climb

    def _log(self, decision: Decision) -> None:
        before = self._loader.num_workers
        change = "stays at" if before == decision.workers else f"{before} ->"
        logger.info("Workers: %s %d at %d px: %s", change, decision.workers, self._size[0], decision.reason)


@dataclass
class _Total:
    """What was seen of some batches."""

    batches: int = 0
    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    def add(self, other: _Total) -> None:
        self.batches += other.batches
        self.images += other.images
        self.seconds += other.seconds
        self.waiting += other.waiting


class _Watch:
    """Watches training where it is steady: within an epoch, or over whole epochs where these are short.

    Args:
        waited: returns the seconds that training has waited for data so far.
        agree: gives all processes the same view.
        clock: returns seconds.
    """

    def __init__(self, waited: Callable[[], float], agree: Agree, clock: Callable[[], float]) -> None:
        self._waited, self._agree, self._clock = waited, agree, clock
        self.forget()

    def forget(self) -> None:
        """Begin anew, as with other workers or at another size."""
        self._epochs = _Total()  # whole ones
        self._is_whole = False  # of the one under way: no, as what has just started takes its time

    def begin_epoch(self) -> None:
        """Begin an epoch, or what is left of one; what lay before it is no training."""
        self._epoch = _Total()
        self._begin_window()
        self._then, self._waited_then = self._clock(), self._waited()

    def _begin_window(self) -> None:
        self._steady, self._look_at = _Total(), _WINDOW_BATCHES

    def see(self, images: int, workers: int) -> Window | None:
        """Count a batch that was trained on; return what was seen within the epoch when that is enough.

        Processes deliver a batch each at about the same time: what is seen ends with the last of so many.
        """
        now, waited = self._clock(), self._waited()
        batch = _Total(1, images, now - self._then, waited - self._waited_then)
        self._then, self._waited_then = now, waited
        self._epoch.add(batch)
        if self._epoch.batches <= _UNSTEADY_BATCHES:
            return None
        self._steady.add(batch)
        if self._steady.batches < self._look_at or self._steady.batches % workers:
            return None
        seen = self._agreed(self._steady)
        if seen is None:
            return None
        self._begin_window()
        self._epochs, self._is_whole = _Total(), False
        return seen

    def end_epoch(self) -> Window | None:
        """Count an epoch that was too short for a look at its steady part; return what was seen when it is enough."""
        if self._is_whole:
            self._epochs.add(self._epoch)
        self._is_whole = True
        seen = self._agreed(self._epochs) if self._epochs.batches >= _WINDOW_BATCHES else None
        if seen is not None:
            self._epochs = _Total()
        return seen

    def _agreed(self, total: _Total) -> Window | None:
        """Return what all processes together have seen; None, and when to look again, where that is too little."""
        seconds, waiting, images = self._agree([total.seconds, total.waiting, total.images])
        if seconds >= _WINDOW_SECONDS:
            return Window(images / seconds, min(1.0, max(0.0, waiting / seconds)))
        left = total.batches * (_WINDOW_SECONDS / max(seconds, 1e-3) - 1)
        self._look_at = total.batches + max(1, min(math.ceil(left), total.batches))  # the rate may rise meanwhile
        return None
