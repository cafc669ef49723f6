"""Whole training runs, each in a process of its own. Those that are finished are found again and not repeated."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from bench.measure import FOREIGN_CPU_LIMIT
from bench.resources import machine_cpu_seconds, tree_cpu_seconds
from engine.config import Config
from engine.curves import training_rate
from engine.rundir import read_records
from engine.stopping import EXIT_INTERRUPTED
from engine.toml import read_toml
from engine.values import ConfigError
from engine.verdict import Record
from loaders.files import atomic_file

MEASURED = "measured.json"  # written last: without it a run is not finished
LOG = "log.txt"
_ROOT = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.5
_STOP_SECONDS = 60.0
_SHOWN_LINES = 15
_ENDLESS = 100_000  # epochs


class RunError(RuntimeError):
    """A training run failed; the message holds the end of its log."""


@dataclass(frozen=True)
class Run:
    """A training run to make.

    Attributes:
        name: what to call it; part of what tells it from others.
        options: of ``python -m engine.train``, without ``--output``.
        epochs: how many it has; 0 where it is ended after some seconds.
        seconds: of training in settled epochs, after which it is ended.
        at_most: seconds after which it is ended though fewer of them were settled.
        cores: it may use so many of those that this process may use; 0 for all of them.
    """

    name: str
    options: tuple[str, ...]
    epochs: int
    seconds: float = 0.0
    at_most: float = 0.0
    cores: int = 0

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options, with the number of epochs where they do not say it."""
        return self.options if self.epochs else (*self.options, "--epochs", str(_ENDLESS))

    @property
    def length(self) -> float:
        """What its progress goes up to, in epochs or seconds."""
        return self.epochs or self.seconds

    def progress(self, epochs: Sequence[Record]) -> float:
        """Return how far it has come with these epochs."""
        if self.epochs:
            return len(epochs)
        return min(self.seconds, sum(float(epoch["train_seconds"]) for epoch in settled(epochs)))

    def is_over(self, epochs: Sequence[Record]) -> bool:
        """Whether it is to be ended; one that has a number of epochs ends by itself."""
        if self.epochs or len(epochs) < 2:
            return False
        return self.progress(epochs) >= self.seconds or float(epochs[-1]["time"]) >= self.at_most


@dataclass(frozen=True)
class Outcome:
    """What a finished run has left.

    Attributes:
        folder: of the run.
        config: its options, every ``auto`` as it was resolved.
        epochs: its records, in order.
        cpu_seconds: CPU time of its process and all that this one started.
        foreign_cpu: share of the machine's CPU time that went to other processes, 0 to 1.
    """

    folder: Path
    config: Config
    epochs: tuple[Record, ...]
    cpu_seconds: float
    foreign_cpu: float

    @property
    def seconds(self) -> float:
        """From the first warm-up to the end of the last epoch, evaluations and checkpoints included."""
        return float(self.epochs[-1]["time"])

    @property
    def is_disturbed(self) -> bool:
        """Whether other processes took more of the machine than FOREIGN_CPU_LIMIT."""
        return self.foreign_cpu > FOREIGN_CPU_LIMIT

    @property
    def steady(self) -> tuple[Record, ...]:
        """The epochs without the first, in which caches and workers warm up, if there are others."""
        return self.epochs[1:] or self.epochs

    @property
    def images_per_second(self) -> float:
        """Rate of training, over the time in training steps of the steady epochs."""
        return training_rate(self.steady) or 0.0

    @property
    def data_wait_fraction(self) -> float:
        """Share of that time in which training waited for data, 0 to 1."""
        waited = sum(float(epoch["data_wait_seconds"]) for epoch in self.steady)
        return waited / sum(float(epoch["train_seconds"]) for epoch in self.steady)


@dataclass(frozen=True)
class Runner:
    """Makes runs.

    Attributes:
        root: folder of all runs.
        machine: what they are measured on; those measured on another one are not taken for finished.
        launcher: what Python is to run, before the options of engine.train.
    """

    root: Path
    machine: str
    launcher: tuple[str, ...] = ("-m", "engine.train")

    def folder(self, run: Run) -> Path:
        """Return where a run is kept: its name, and a digest of all that may change its outcome."""
        more = [run.seconds, run.at_most, run.cores]
        text = json.dumps([run.name, run.arguments, self.machine, *(more if any(more) else [])])
        name = re.sub(r"\W+", "-", run.name).strip("-")
        return self.root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def find(self, run: Run) -> Outcome | None:
        """Return what a run has left; None if it is not finished."""
        folder = self.folder(run)
        try:
            measured = json.loads((folder / MEASURED).read_text())
        except FileNotFoundError:
            return None
        try:
            outcome = _read(folder / measured["run"], measured)
        except ConfigError:  # it is gone, or another version of the engine made it, with other options
            return None
        return outcome if outcome.epochs else None

    def make(
        self, title: str, rounds: Sequence[Sequence[Run]], report: Callable[[dict[Run, Outcome]], None]
    ) -> dict[Run, Outcome]:
        """Make runs one after the other, round by round.

        Args:
            title: before the progress bar.
            rounds: runs; one that occurs twice is made once.
            report: called after each round with the outcomes so far.

        Returns:
            The outcome of each run.

        Raises:
            RunError: a run failed; those before it are kept.
        """
        runs = list(dict.fromkeys(run for turn in rounds for run in turn))
        missing = [run for run in runs if self.find(run) is None]
        if len(missing) < len(runs):
            print(f"{title}: {len(runs) - len(missing)} of {len(runs)} runs are in {self.root}", file=sys.stderr)
        outcomes: dict[Run, Outcome] = {}
        with tqdm(
            desc=title,
            total=sum(run.length for run in missing),
            unit="epoch" if all(run.epochs for run in runs) else "s",
            smoothing=0.0,  # epochs come in bursts: the mean rate tells best what is left
            mininterval=1.0,
            miniters=0,
            disable=None,
            leave=False,
            dynamic_ncols=True,
        ) as progress:
            for turn in rounds:
                for run in turn:
                    progress.set_postfix_str(f"{run.name}, run {runs.index(run) + 1}/{len(runs)}")
                    outcomes[run] = self.find(run) or self._train(run, progress)
                report(outcomes)
        return outcomes

    def _train(self, run: Run, progress: tqdm[Any]) -> Outcome:
        folder = self.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        earlier = set(folder.iterdir())  # what is left of attempts that were stopped
        command = [sys.executable, *self.launcher, *run.arguments, "--output", str(folder)]
        modules = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": modules, "TQDM_MININTERVAL": "30"}  # few lines in the log

        def written() -> Path | None:
            return next((path for path in folder.iterdir() if path.is_dir() and path not in earlier), None)

        cpu, busy, started = tree_cpu_seconds(), machine_cpu_seconds(), time.monotonic()
        shown, is_ended = 0.0, False
        with (folder / LOG).open("w") as log, _confined(run.cores):
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            try:
                while process.poll() is None:
                    _wait(process, _POLL_SECONDS)
                    epochs = _epochs(written())
                    before, shown = shown, run.progress(epochs)
                    progress.update(shown - before)
                    if not is_ended and run.is_over(epochs):
                        is_ended = True
                        process.terminate()
            finally:
                _stop(process)
        progress.update(run.length - shown)
        elapsed = time.monotonic() - started
        cpu, busy = tree_cpu_seconds() - cpu, machine_cpu_seconds() - busy
        path = written()
        failed = process.returncode not in (0, EXIT_INTERRUPTED if is_ended else 0)
        if failed or path is None or not _epochs(path):
            lines = (folder / LOG).read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
            what = f"ended with code {process.returncode}" if failed else "has trained no epoch"
            raise RunError("\n".join([f"{run.name} {what}:", *lines, f"all of it is in {folder / LOG}"]))
        measured = {
            "name": run.name,
            "options": run.arguments,
            "cores": run.cores,
            "machine": self.machine,
            "run": path.name,
            "cpu_seconds": cpu,
            "foreign_cpu": max(0.0, busy - cpu) / (elapsed * (psutil.cpu_count() or 1)),
        }
        with atomic_file(folder / MEASURED) as temporary:
            temporary.write_text(json.dumps(measured, indent=2) + "\n")
        return _read(path, measured)


@contextmanager
def runs_folder(named: Path | None, program: str) -> Iterator[Path]:
    """Yield the folder of a benchmark's runs.

    Args:
        named: a folder, in which finished runs are kept; None for a temporary one, which goes with the benchmark, but
            stays after a RunError, as the log is in it.
        program: name of the benchmark.
    """
    if named:
        folder = named.expanduser().resolve()
        try:
            yield folder
        except KeyboardInterrupt:
            print(f"finished runs are kept in {folder}", file=sys.stderr)
            raise
        return
    folder = Path(tempfile.mkdtemp(prefix=f"headrace-{program}-")).resolve()
    has_failed = False
    try:
        yield folder
    except RunError:
        has_failed = True
        raise
    finally:
        if not has_failed:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _confined(cores: int) -> Iterator[None]:
    """Let what this thread starts use so many of the cores that it may use itself; with 0 all of them."""
    if not cores:
        yield
        return
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usable)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def settled(epochs: Sequence[Record]) -> list[Record]:
    """Return the epochs that began with the workers that stay: not the first one, nor those in which a tuner tries."""
    return [epoch for before, epoch in pairwise(epochs) if before.get("workers_settled", True)]


def _epochs(path: Path | None) -> tuple[Record, ...]:
    """Return the epochs that a run's folder holds so far; none where there is no folder yet."""
    records = read_records(path / "metrics.jsonl") if path else []
    return tuple(record for record in records if record["kind"] == "epoch")


def _read(path: Path, measured: Mapping[str, Any]) -> Outcome:
    config = read_toml(path / "config.toml", Config())
    return Outcome(path, config, _epochs(path), measured["cpu_seconds"], measured["foreign_cpu"])


def _wait(process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Wait for a process to end; return whether it has."""
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that is still running, with time to save and to end its workers."""
    if process.poll() is None:
        process.terminate()
        if not _wait(process, _STOP_SECONDS):
            process.kill()
            process.wait()
