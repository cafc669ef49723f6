"""Interleaved measurement of anything that delivers images.

Cells are measured in turn for some seconds each, then all again (A B C A B C ...), so that whatever else the machine
does meets all of them alike, and two cells can be compared round by round.

Each cell lives in a process of its own, where its CPU time and memory can be told from the others', and stays open
between its turns: its workers then stand blocked behind full queues. A turn starts with a lead-in, which takes what
those queues held ready, does not count, and leaves them as they are when the cell runs for long. It ends only when the
cell has filled them again and is quiet, so that no cell works in another's time.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from bench.resources import CoresWatch, tree_cpu_seconds, tree_peak_mb
from loaders.bad_samples import BadSampleError
from loaders.files import atomic_file

LEAD_IN_SECONDS = 0.5
QUIET_INTERVAL_SECONDS = 0.2
QUIET_CPU_SECONDS = 0.015  # CPU time is counted in ticks of 10 ms: at most one in the interval
QUIET_TIMEOUT_SECONDS = 20.0
FOREIGN_CPU_LIMIT = 0.1


@dataclass(frozen=True)
class Step:
    """A batch that a model was trained on.

    Attributes:
        images: of the batch.
        wait_seconds: how long training waited for data.
        trainer_cpu_seconds: CPU time of the threads that train.
    """

    images: int
    wait_seconds: float = 0.0
    trainer_cpu_seconds: float = 0.0

    def __add__(self, other: Step) -> Step:
        return Step(
            self.images + other.images,
            self.wait_seconds + other.wait_seconds,
            self.trainer_cpu_seconds + other.trainer_cpu_seconds,
        )


Batches = Generator[int | Step, bool | None, None]


@dataclass(frozen=True)
class Cell:
    """Something to measure.

    Attributes:
        name: what to call it in messages.
        open: starts it; can be pickled. The generator yields the number of images of each batch when that batch has
            arrived, or a Step when a model has been trained on it, without end, and releases everything when it is
            closed. One that trains, when it is sent True, takes the next batch without training on it.
        held: batches that its queues can hold ready for a model that trains; 0 where nothing does.
        together: batches that come at the same time, as from processes that begin together.
    """

    name: str
    open: Callable[[], Batches]
    held: int = 0
    together: int = 1


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Round:
    """One turn of one cell.

    Attributes:
        images: images delivered.
        seconds: time from the start of the turn to the last of them.
        cpu_seconds: CPU time of the cell's process and all its children.
        foreign_cpu: share of the usable cores' CPU time that went to other processes, 0 to 1.
        peak_mb: the most memory that the cell's process and its children have held so far, in 10**6 bytes; see
            bench.resources.tree_peak_mb.
        wait_seconds: how long training waited for data; 0 where nothing was trained.
        trainer_cpu_seconds: what of the CPU time was spent on training; 0 where nothing was trained.
    """

    images: int
    seconds: float
    cpu_seconds: float
    foreign_cpu: float
    peak_mb: float
    wait_seconds: float = 0.0
    trainer_cpu_seconds: float = 0.0

    @property
    def is_disturbed(self) -> bool:
        """Whether other processes took more of the usable cores' time than FOREIGN_CPU_LIMIT."""
        return self.foreign_cpu > FOREIGN_CPU_LIMIT

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def cpu_ms_per_image(self) -> float:
        return 1000 * self.cpu_seconds / self.images


@dataclass(frozen=True)
class Measurement:
    """All rounds of one cell.

    Attributes:
        seconds_to_first_batch: from opening the cell to its first batch, the import of its libraries included.
        rounds: in the order measured.
    """

    seconds_to_first_batch: float
    rounds: tuple[Round, ...]

    @property
    def images_per_second(self) -> Spread:
        return Spread.of([turn.images_per_second for turn in self.rounds])

    @property
    def cpu_ms_per_image(self) -> float:
        return statistics.median(turn.cpu_ms_per_image for turn in self.rounds)

    @property
    def peak_rss_mb(self) -> float:
        return max(turn.peak_mb for turn in self.rounds)

    @property
    def foreign_cpu(self) -> Spread:
        return Spread.of([turn.foreign_cpu for turn in self.rounds])

    @property
    def disturbed_rounds(self) -> int:
        """How many rounds were disturbed."""
        return sum(turn.is_disturbed for turn in self.rounds)

    def undisturbed(self) -> Measurement:
        """Return the measurement without the disturbed rounds; all of it where there are no others."""
        return replace(self, rounds=tuple(turn for turn in self.rounds if not turn.is_disturbed) or self.rounds)

    def record(self) -> dict[str, Any]:
        """Return the figures under the names that the benchmarks' JSON files use."""
        return {
            "images_per_second": asdict(self.images_per_second),
            "cpu_ms_per_image": self.cpu_ms_per_image,
            "peak_rss_mb": self.peak_rss_mb,
            "seconds_to_first_batch": self.seconds_to_first_batch,
            "foreign_cpu": asdict(self.foreign_cpu),
            "disturbed_rounds": self.disturbed_rounds,
            "rounds": [turn.images_per_second for turn in self.rounds],
        }


@dataclass(frozen=True)
class Ratio:
    """How fast one cell is relative to another, measured in the same rounds.

    Attributes:
        of_medians: median rate over median rate.
        min, max: smallest and largest ratio of the two rates within one round.
    """

    of_medians: float
    min: float
    max: float

    @classmethod
    def between(cls, cell: Measurement, other: Measurement) -> Ratio:
        pairs = zip(cell.rounds, other.rounds, strict=True)
        by_round = [mine.images_per_second / theirs.images_per_second for mine, theirs in pairs]
        of_medians = cell.images_per_second.median / other.images_per_second.median
        return cls(of_medians, min(by_round), max(by_round))


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write records as a JSON list; the file is replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(records, indent=2) + "\n")


class CellError(RuntimeError):
    """A cell raised an exception, or its process died."""


def measure(
    cells: Sequence[Cell], *, rounds: int, seconds: float, warm_up: float = 1.0, progress: tqdm[Any] | None = None
) -> list[Measurement]:
    """Measure cells in turns.

    Args:
        cells: what to measure; all are open at the same time.
        rounds: turns of each cell.
        seconds: length of a turn, without its lead-in.
        warm_up: how long each cell runs before the first round, in seconds.
        progress: a bar to move on by one for each turn, ``turns`` in all; None draws a bar of its own.

    Returns:
        One Measurement for each cell, in their order.

    Raises:
        CellError: a cell failed; the message holds its traceback.
    """
    done: list[list[Round]] = [[] for _ in cells]
    first_batches: list[float] = []
    with ExitStack() as stack:
        hosts = [stack.enter_context(_Host(cell)) for cell in cells]
        if progress is None:
            progress = stack.enter_context(progress_bar(turns(len(cells), rounds)))
        for host in hosts:
            progress.set_postfix_str(f"opening {host.cell.name}")
            first_batches.append(host.ask(warm_up))
            progress.update()
        for number in range(rounds):
            for host, of_cell in zip(hosts, done, strict=True):
                progress.set_postfix_str(f"round {number + 1}/{rounds}: {host.cell.name}")
                of_cell.append(host.ask(seconds))
                progress.update()
    return [Measurement(first, tuple(of_cell)) for first, of_cell in zip(first_batches, done, strict=True)]


def turns(cells: int, rounds: int) -> int:
    """Return how many turns ``measure`` takes for so many cells, the opening of each counted as one."""
    return cells * (rounds + 1)


def progress_bar(total: int) -> tqdm[Any]:
    """Return a progress bar over turns on stderr; none is drawn where that is not a terminal."""
    return tqdm(total=total, unit="turn", disable=None, leave=False, dynamic_ncols=True)


class _Host:
    """A cell in a process of its own.

    The process is spawned, not forked: nothing of it is shared with other cells, and what it starts is its descendant.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(cell, theirs, multiprocessing.get_start_method()))
        self._process.start()
        theirs.close()

    def ask(self, seconds: float) -> Any:
        """Give the cell a turn and return what it reports: the seconds to the first batch, then a Round each time."""
        try:
            self._connection.send(seconds)
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(timeout=5)
            raise CellError(f"{self.cell.name}: its process ended with code {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise CellError(f"{self.cell.name} failed:\n{answer}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()  # the process sees the end of the pipe and closes its cell
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _serve(cell: Cell, connection: Connection, start_method: str) -> None:
    """Run in the cell's process: take turns until the other side closes the pipe."""
    multiprocessing.set_start_method(start_method, force=True)  # a spawned process would hand on "spawn"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the measuring process, which then closes the pipe
    try:
        warm_up = connection.recv()
        start = time.perf_counter()
        with closing(cell.open()) as batches:
            next(batches)
            first_batch = time.perf_counter() - start
            _deliver(batches, warm_up)
            _wait_until_quiet()
            connection.send(first_batch)
            while True:
                connection.send(_take_turn(cell, batches, connection.recv()))
    except (EOFError, BrokenPipeError):
        return
    except BadSampleError as error:
        connection.send(str(error))
    except Exception:
        connection.send(traceback.format_exc())


def _take_turn(cell: Cell, batches: Batches, seconds: float) -> Round:
    _lead_in(cell, batches, seconds)
    watch = CoresWatch()
    done, elapsed = _deliver(batches, seconds, cell.together)
    usage = watch.usage()
    _wait_until_quiet()
    waited, trained = done.wait_seconds, done.trainer_cpu_seconds
    return Round(done.images, elapsed, usage.own, usage.foreign, tree_peak_mb(), waited, trained)


def _lead_in(cell: Cell, batches: Batches, seconds: float) -> None:
    """Bring the queues from full, as they are between turns, to what they hold when the cell runs for long.

    A model takes little more than is made, so that queues would stay full for many steps: they are emptied without
    training. If the loader is the faster one they then fill up, which takes it as many steps of the model as they hold
    where it is twice as fast; these steps do not count either.
    """
    for _ in range(cell.held):
        batches.send(True)
    _deliver(batches, LEAD_IN_SECONDS, untrained=True)
    start = time.perf_counter()
    for _ in range(cell.held):
        next(batches)
        if time.perf_counter() - start >= seconds:
            break


def _deliver(batches: Batches, seconds: float, together: int = 1, untrained: bool = False) -> tuple[Step, float]:
    """Take batches for so many seconds; return the sum of what was taken and the time until the last of them.

    Args:
        batches: to take.
        seconds: after which no more are begun,
        together: but for what is missing to a multiple of so many.
        untrained: a model is not trained on them.
    """
    _synchronize()
    start = time.perf_counter()
    done, number, elapsed = Step(0), 0, 0.0
    while elapsed < seconds or number % together:
        batch = batches.send(untrained or None)
        done += batch if isinstance(batch, Step) else Step(batch)
        number += 1
        elapsed = time.perf_counter() - start
    _synchronize()
    return done, time.perf_counter() - start


def _synchronize() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _wait_until_quiet() -> None:
    """Wait until this process and its children use no CPU time, because their queues are full."""
    deadline = time.perf_counter() + QUIET_TIMEOUT_SECONDS
    spent = tree_cpu_seconds()
    while time.perf_counter() < deadline:
        time.sleep(QUIET_INTERVAL_SECONDS)
        before, spent = spent, tree_cpu_seconds()
        if spent - before < QUIET_CPU_SECONDS:
            return
    raise RuntimeError(f"still busy {QUIET_TIMEOUT_SECONDS:g} s after its turn: it would disturb the other cells")
