"""Runs the sections of the GPU benchmark, each in a process of its own that ends at its deadline at the latest.

A section reports while it works, so that what it has found is safe when it crashes, hangs or is stopped; all processes
that it has started end with it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:  # a section that does nothing heavy starts at once
    from bench.measure import Spread

Value: TypeAlias = "str | int | float | Spread"
Status = Literal["running", "done", "failed", "stopped at its deadline", "interrupted", "left out"]

_TICK_SECONDS = 0.5
_ENDING_SECONDS = 5.0
_MARGIN = 0.12  # of a section's time, kept for ending by itself before it is stopped
_OPTIONAL = frozenset(
    ["ffcv", "numba", "nvidia", "pyarrow", "tensorboard", "timm", "torchvision", "triton", "tyro"]
)  # packages whose absence leaves something out


class UnavailableError(Exception):
    """Something cannot be measured on this machine or with these data; the message says why."""


@dataclass(frozen=True)
class Job:
    """What a section is told.

    Attributes:
        device: ``cuda``, or ``cpu`` for the shadow: the same code at sizes that only show that it runs.
        data: the images, as ``open_data`` takes them.
        batch_size: images of a batch.
        num_workers: worker processes or threads of each loader.
        seconds: how long the section may take.
        cifar, imagenette: folders of these data sets; None leaves out what needs them.
        folder: for files that the section writes; it is removed when the section has ended, however it does.
    """

    device: str
    data: str
    batch_size: int
    num_workers: int
    seconds: float
    cifar: Path | None = None
    imagenette: Path | None = None
    folder: Path = Path()

    @property
    def is_shadow(self) -> bool:
        """Whether only the code is tried, on a CPU."""
        return self.device == "cpu"


@dataclass(frozen=True)
class Check:
    """A claim that was put to the test."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Row:
    """Figures for one row of a table; the keys name the columns."""

    table: str
    values: dict[str, Value]


@dataclass(frozen=True)
class Update:
    """A row that takes the place of the earlier one of its table whose first value is the same, where there is one."""

    row: Row


@dataclass(frozen=True)
class LeftOut:
    """What was not measured, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Failure:
    """A part of a section that raised an exception."""

    what: str
    error: str


Entry = Check | Row | LeftOut | Failure


@dataclass
class SectionResult:
    """What a section has reported so far.

    Attributes:
        name: of the section.
        limit_seconds: how long it may take.
        seconds: how long it took.
        status: how it ended.
        entries: in the order reported.
        changes: how often something was added or replaced.
    """

    name: str
    limit_seconds: float
    seconds: float = 0.0
    status: Status = "running"
    entries: list[Entry] = field(default_factory=list)
    changes: int = 0

    def add(self, entry: Entry | Update) -> None:
        """Take what the section has reported."""
        self.changes += 1
        if not isinstance(entry, Update):
            self.entries.append(entry)
            return
        row = entry.row
        for position, earlier in enumerate(self.entries):
            if isinstance(earlier, Row) and earlier.table == row.table and _first(earlier) == _first(row):
                self.entries[position] = row
                return
        self.entries.append(row)

    @property
    def is_good(self) -> bool:
        """Whether it came to its end, nothing in it failed, and every check passed."""
        bad = any(
            isinstance(entry, Failure) or (isinstance(entry, Check) and not entry.passed) for entry in self.entries
        )
        return self.status in ("done", "left out") and not bad


def _first(row: Row) -> Value | None:
    return next(iter(row.values.values()), None)


def why_left_out(error: BaseException) -> str | None:
    """Return why an exception leaves something out; None where it is a failure.

    What is left out cannot be measured here, or needs an optional package that is not installed. A name that a module
    does not have, or a module of the project that is not there, is a failure.
    """
    missing = error
    if isinstance(error, ImportError) and isinstance(error.__cause__, ModuleNotFoundError):
        missing = error.__cause__  # the message of the other one says what to do
    is_optional = isinstance(missing, ModuleNotFoundError) and (missing.name or "").partition(".")[0] in _OPTIONAL
    return " ".join(str(error).split()) if is_optional or isinstance(error, UnavailableError) else None


class Reporter:
    """What a section reports through.

    Args:
        send: takes an entry.
        end: when the section is to have ended by itself, in seconds of ``time.monotonic``, which all processes share.
    """

    def __init__(self, send: Callable[[Entry | Update], None], end: float) -> None:
        self._send = send
        self._end = end

    @property
    def remaining(self) -> float:
        """Seconds left; the section decides by them what it still begins."""
        return self._end - time.monotonic()

    def check(self, name: str, passed: bool, detail: str) -> None:
        """Report whether a claim holds, and by which figures."""
        self._send(Check(name, passed, detail))

    def row(self, table: str, **values: Value) -> None:
        """Report a row of a table."""
        self._send(Row(table, values))

    def update(self, table: str, **values: Value) -> None:
        """Report a row that takes the place of an earlier one of the same table and first value."""
        self._send(Update(Row(table, values)))

    def left_out(self, what: str, why: str) -> None:
        """Report what is not measured."""
        self._send(LeftOut(what, why))

    def attempt(self, what: str, part: Callable[[], None], needs: float = 0.0) -> bool:
        """Do a part of the section, so that it costs nothing but itself when it fails.

        Args:
            what: it is.
            part: does it; an exception is a failure, or leaves it out: see `why_left_out`.
            needs: seconds without which it is not begun.

        Returns:
            Whether it was done.
        """
        if self.remaining < needs:
            self.left_out(what, "no time was left")
            return False
        try:
            part()
        except Exception as error:
            why = why_left_out(error)
            if why is None:
                self._send(Failure(what, traceback.format_exc()))
            else:
                self.left_out(what, why)
        else:
            return True
        return False


Section = Callable[[Job, Reporter], None]


def run_module(module: str, job: Job, report: Reporter) -> None:
    """Run the section that a module holds as ``run``; it is imported here, so that its imports are its own risk."""
    importlib.import_module(module).run(job, report)


def run_section(
    name: str, section: Section, job: Job, notify: Callable[[SectionResult], None] = lambda result: None
) -> SectionResult:
    """Run a section in a new process.

    Args:
        name: of the section.
        section: can be pickled.
        job: what it is told; the process is killed, with all its descendants, ``job.seconds`` from now. It is given a
            folder of its own.
        notify: called with what is known so far after each entry, and every half second.

    Returns:
        What it has reported, whatever became of it. The entries of a section that was stopped are those it had sent.
    """
    result = SectionResult(name, job.seconds)
    begin = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="headrace-gpu-", ignore_cleanup_errors=True) as folder:
        job = replace(job, folder=Path(folder))
        ours, theirs = context.Pipe()
        with _environment(job):
            end = begin + job.seconds * (1 - _MARGIN)
            process = context.Process(target=_serve, args=(section, job, theirs, end))
            process.start()
        theirs.close()
        try:
            result.status = _listen(result, ours, process, begin, notify)
            if result.status in ("done", "failed"):
                process.join(_ENDING_SECONDS)  # lets it put away what it has opened
        except BaseException:
            result.status = "interrupted"
            raise
        finally:
            _end_group(process)
            ours.close()
            result.seconds = time.monotonic() - begin
    if result.status == "running":  # it said nothing of its end
        result.status = "failed"
        result.add(Failure(name, f"its process ended with code {process.exitcode}"))
    process.close()
    notify(result)
    return result


def _listen(
    result: SectionResult,
    connection: Connection,
    process: BaseProcess,
    begin: float,
    notify: Callable[[SectionResult], None],
) -> Status:
    """Take entries until the section ends; return its status, ``running`` if its process ended without a word."""
    while (left := begin + result.limit_seconds - time.monotonic()) > 0:
        result.seconds = time.monotonic() - begin
        # Not the end of the pipe alone: what the process has started may hold that open.
        ready = wait([connection, process.sentinel], min(left, _TICK_SECONDS))
        if connection in ready:
            try:
                entry = connection.recv()
            except (EOFError, ConnectionError):
                return "running"
            if isinstance(entry, str):
                return "done" if entry == "done" else "failed"
            result.add(entry)
        elif ready:
            return "running"
        notify(result)
    return "stopped at its deadline"


@contextmanager
def _environment(job: Job) -> Iterator[None]:
    """Have Triton interpret its kernels where there is no GPU: it reads the variable when it is imported."""
    before = os.environ.copy()
    if job.is_shadow:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(section: Section, job: Job, connection: Connection, end: float) -> None:
    """Run in the section's process; ``end`` was set before it began to import."""
    os.setsid()  # what it starts belongs to it, and ends with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for it
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    report = Reporter(connection.send, end)
    try:
        section(job, report)
    except Exception as error:
        why = why_left_out(error)
        if why is None:
            connection.send(Failure("the section", traceback.format_exc()))
            connection.send("failed")
            return
        report.left_out("the section", why)
    connection.send("done")


def _end_with_parent(connection: Connection) -> None:
    """Wait until the other side closes the pipe, which is when this process is no longer wanted, and end it."""
    with suppress(EOFError, OSError):
        connection.recv()
    os.killpg(0, signal.SIGKILL)


def _end_group(process: BaseProcess) -> None:
    """Kill a process and all it has started."""
    pid: Any = process.pid
    with suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:  # it has its own group by now
            os.killpg(pid, signal.SIGKILL)
    process.kill()
    process.join()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # those that its group still has
