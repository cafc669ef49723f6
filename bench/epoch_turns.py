"""Processes that train: one alone, or several that take turns, of which each waits for the others after every epoch.

    python -m bench.epoch_turns FD engine.train demo --epochs 2

Between epochs of two runs that take turns lie seconds, not minutes, so that what else a machine does, and how fast its
cores are for the moment, falls on both alike. bench/training_runs.py starts the processes; FD is the number of the
socket over which they are told to go on.
"""

from __future__ import annotations

import os
import runpy
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.resources import CoresUsage, CoresWatch
from engine.rundir import RunDirectory

_ROOT = Path(__file__).resolve().parents[1]
_TURN = b"."  # to a process: go on; from it: an epoch is over
_POLL_SECONDS = 0.5
_STOP_SECONDS = 60.0


class TrainingProcess:
    """A process that trains.

    Args:
        command: the module that Python is to run, and its arguments.
        log: file of what it prints; written anew.
        cores: it may use so many of those that this process may use; 0 for all of them.
        in_turns: it waits after every epoch.

    Attributes:
        usage: CPU time on the cores that it may use, without the time that it has waited for its turn; what is not its
            own, or of processes that it has started, is that of others.
    """

    def __init__(self, command: Sequence[str], log: Path, cores: int = 0, in_turns: bool = False) -> None:
        self._command, self._log, self._cores, self._in_turns = command, log, cores, in_turns
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._is_asked = False
        self.usage = CoresUsage()

    @property
    def returncode(self) -> int | None:
        """Its exit status; None while it runs or has not begun."""
        return self._process.returncode if self._process else None

    def go_on(self, watch: Callable[[], bool]) -> bool:
        """Start it, or tell it to go on, and wait until it has ended or its turn is over.

        Args:
            watch: called before it goes on and twice a second; when it returns True the process is asked to save and
                end.

        Returns:
            Whether there is more to come.
        """
        cores = CoresWatch(_some(self._cores))
        if self._process is None:
            self._process = self._start()
        else:
            self._ask(self._process, watch)
            self._tell()
        while not self._waited(self._process):
            self._ask(self._process, watch)
        self.usage += cores.usage()
        return self._process.returncode is None

    def close(self) -> None:
        """End it if it still runs, with time to save and to end its workers."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            self._tell()  # one that waits for its turn looks for signals when it has gone on
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._socket is not None:
            self._socket.close()

    def _start(self) -> subprocess.Popen[bytes]:
        modules = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": modules, "TQDM_MININTERVAL": "30"}  # few lines in the log
        with ExitStack() as stack:
            launcher, passed = ["-m"], list[int]()
            if self._in_turns:
                self._socket, theirs = socket.socketpair()
                passed = [stack.enter_context(theirs).fileno()]
                launcher += ["bench.epoch_turns", str(passed[0])]
            log = stack.enter_context(self._log.open("w"))
            stack.enter_context(_confined(self._cores))
            return subprocess.Popen(
                [sys.executable, *launcher, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=passed,
            )

    def _ask(self, process: subprocess.Popen[bytes], watch: Callable[[], bool]) -> None:
        """Ask it to save and end where ``watch`` returns True, once: a second time would not let it save."""
        if watch() and not self._is_asked:
            self._is_asked = True
            process.terminate()

    def _tell(self) -> None:
        """Let it go on if it waits; one that has died meanwhile is found by its exit status."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.send(_TURN)

    def _waited(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait a moment for the end of the turn or of the process; return whether one of them has come."""
        if self._socket is not None:
            if not select.select([self._socket], [], [], _POLL_SECONDS)[0]:
                return process.poll() is not None
            with suppress(OSError):
                if self._socket.recv(1):
                    return True
        try:
            process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True


def _some(cores: int) -> list[int]:
    """Return so many of the cores that this thread may use; with 0 all of them."""
    return sorted(os.sched_getaffinity(0))[: cores or None]


@contextmanager
def _confined(cores: int) -> Iterator[None]:
    """Let what this thread starts use so many of the cores that it may use itself; with 0 all of them."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _some(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def wait_after_epochs(turns: socket.socket) -> None:
    """Let every run of this process, after it has recorded an epoch, say so and wait until it is told to go on.

    Evaluation is over by then. It does not wait any more once the other end is closed.
    """
    record_epoch = RunDirectory.record_epoch

    def record_and_wait(run: RunDirectory, values: dict[str, Any], step: int) -> None:
        record_epoch(run, values, step)
        with suppress(OSError):
            turns.send(_TURN)
            turns.recv(1)

    RunDirectory.record_epoch = record_and_wait  # type: ignore[assignment]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a module as ``python -m`` does, in turns."""
    number, module, *arguments = sys.argv[1:] if argv is None else argv
    turns = socket.socket(fileno=int(number))
    turns.set_inheritable(False)
    wait_after_epochs(turns)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
