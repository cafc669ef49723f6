"""Whole training runs, each in a process of its own. Those that are finished are found again and not repeated."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.epoch_turns import TrainingProcess
from bench.measure import FOREIGN_CPU_LIMIT
from engine.config import Config
from engine.curves import training_rate
from engine.rundir import read_records
from engine.stopping import EXIT_INTERRUPTED
from engine.time_spent import Record
from engine.toml import read_toml
from engine.values import ConfigError
from loaders.files import atomic_file

MEASURED = "measured.json"  # written last: without it a run is not finished
LOG = "log.txt"
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
        at_most: seconds of training after which it is ended though fewer of them were settled.
        cores: it may use so many of those that this process may use; 0 for all of them.
        group: runs of one group are made at the same time and take turns, epoch by epoch (see bench/epoch_turns.py);
            those that are ended after some seconds are ended when all of them have had theirs. Without a name a run is
            made by itself.
    """

    name: str
    options: tuple[str, ...]
    epochs: int
    seconds: float = 0.0
    at_most: float = 0.0
    cores: int = 0
    group: str = ""

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
        return min(self.seconds, _train_seconds(settled(epochs)))

    def has_enough(self, epochs: Sequence[Record]) -> bool:
        """Whether these epochs are all that it is made for."""
        if self.epochs:
            return len(epochs) >= self.epochs
        return len(epochs) > 1 and (self.progress(epochs) >= self.seconds or _train_seconds(epochs) >= self.at_most)


@dataclass(frozen=True)
class Outcome:
    """What a finished run has left.

    Attributes:
        folder: of the run.
        config: its options, every ``auto`` as it was resolved.
        epochs: its records, in order.
        cpu_seconds: CPU time of its process and all that this one started.
        foreign_cpu: share of the CPU time of the cores it may use that went to other processes, 0 to 1.
        day: on which it ended; None where that does not matter.
    """

    folder: Path
    config: Config
    epochs: tuple[Record, ...]
    cpu_seconds: float
    foreign_cpu: float
    day: date | None = None

    @property
    def seconds(self) -> float:
        """From the first warm-up to the end of the last epoch, evaluations and checkpoints included."""
        return float(self.epochs[-1]["time"])

    @property
    def is_disturbed(self) -> bool:
        """Whether other processes took more of these cores than FOREIGN_CPU_LIMIT."""
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
        launcher: the module that Python is to run, with all before the options of engine.train.
    """

    root: Path
    machine: str
    launcher: tuple[str, ...] = ("engine.train",)

    def folder(self, run: Run) -> Path:
        """Return where a run is kept: its name, and a digest of all that may change its outcome."""
        more = [run.seconds, run.at_most, run.cores, *([run.group] if run.group else [])]
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
            ended = date.fromtimestamp((folder / MEASURED).stat().st_mtime)
            outcome = _read(folder / measured["run"], {"day": ended.isoformat(), **measured})
        except ConfigError:  # it is gone, or another version of the engine made it, with other options
            return None
        return outcome if outcome.epochs else None

    def make(
        self, title: str, rounds: Sequence[Sequence[Run]], report: Callable[[dict[Run, Outcome]], None]
    ) -> dict[Run, Outcome]:
        """Make runs one after the other, or a group of them in turns, round by round.

        Args:
            title: before the progress bar.
            rounds: runs, those of a group side by side; one that occurs twice is made once. Of a group of which one is
                missing all are made again.
            report: called after each round with the outcomes so far.

        Returns:
            The outcome of each run.

        Raises:
            RunError: a run failed; those before it are kept.
        """
        runs = list(dict.fromkeys(run for turn in rounds for run in turn))
        parts = [[list(part) for _, part in groupby(turn, key=_together)] for turn in rounds]
        missing = {run for turn in parts for part in turn if self._find_all(part) is None for run in part}
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
            for turn in parts:
                for part in turn:
                    name = part[0].group or part[0].name
                    progress.set_postfix_str(f"{name}, run {runs.index(part[0]) + 1}/{len(runs)}")
                    outcomes |= self._find_all(part) or self._train(part, progress)
                report(outcomes)
        return outcomes

    def _find_all(self, runs: Sequence[Run]) -> dict[Run, Outcome] | None:
        """Return what these runs have left; None if one of them is not finished."""
        outcomes = {run: outcome for run in runs if (outcome := self.find(run))}
        return outcomes if len(outcomes) == len(runs) else None

    def _train(self, runs: Sequence[Run], progress: tqdm[Any]) -> dict[Run, Outcome]:
        """Make these runs, in turns where there are several."""
        with ExitStack() as stack:
            trainings = [stack.enter_context(closing(_Training(self, run, progress, len(runs) > 1))) for run in runs]
            waiting = deque(trainings)
            while waiting:
                training = waiting.popleft()
                if training.go_on(lambda: all(other.has_enough for other in trainings)):
                    waiting.append(training)
        return {run: training.keep() for run, training in zip(runs, trainings, strict=True)}


class _Training:
    """A run under way.

    Args:
        runner: whose run it is.
        in_turns: it waits after every epoch.

    Attributes:
        has_enough: it has trained the epochs or the seconds that it is made for, or has ended.
    """

    def __init__(self, runner: Runner, run: Run, progress: tqdm[Any], in_turns: bool) -> None:
        self._run, self._progress, self._machine = run, progress, runner.machine
        self._folder = runner.folder(run)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._earlier = set(self._folder.iterdir())  # what is left of attempts that were stopped
        command = (*runner.launcher, *run.arguments, "--output", str(self._folder))
        self._process = TrainingProcess(command, self._folder / LOG, run.cores, in_turns)
        self._shown, self._is_ended = 0.0, False
        self.has_enough = False

    def go_on(self, have_all_enough: Callable[[], bool]) -> bool:
        """Train until the turn or the run is over.

        Args:
            have_all_enough: whether a run that does not end by itself is to be ended.

        Returns:
            Whether there is more to come.

        Raises:
            RunError: it failed.
        """
        if self._process.go_on(partial(self._watch, have_all_enough)):
            self._look()
            return True
        self.has_enough = True  # more does not come, so that nobody waits for it
        self._progress.update(self._run.length - self._shown)
        failed = self._process.returncode not in (0, EXIT_INTERRUPTED if self._is_ended else 0)
        if failed or not _epochs(self._written()):
            log = self._folder / LOG
            lines = log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
            what = f"ended with code {self._process.returncode}" if failed else "has trained no epoch"
            raise RunError("\n".join([f"{self._run.name} {what}:", *lines, f"all of it is in {log}"]))
        return False

    def keep(self) -> Outcome:
        """Write down what was measured, which finishes the run; return its outcome."""
        run, process, written = self._run, self._process, self._written()
        assert written is not None
        measured = {
            "name": run.name,
            "options": run.arguments,
            "cores": run.cores,
            "machine": self._machine,
            "day": date.today().isoformat(),
            "run": written.name,
            "cpu_seconds": process.usage.own,
            "foreign_cpu": process.usage.foreign,
        }
        with atomic_file(self._folder / MEASURED) as temporary:
            temporary.write_text(json.dumps(measured, indent=2) + "\n")
        return _read(written, measured)

    def close(self) -> None:
        """End it if it still runs."""
        self._process.close()

    def _watch(self, have_all_enough: Callable[[], bool]) -> bool:
        """Look how far it has come; return whether it is to be ended."""
        self._look()
        self._is_ended = self._is_ended or (not self._run.epochs and have_all_enough())
        return self._is_ended

    def _look(self) -> None:
        """Find out how far it has come, and show it."""
        epochs = _epochs(self._written())
        before, self._shown = self._shown, self._run.progress(epochs)
        self._progress.update(self._shown - before)
        self.has_enough = self._run.has_enough(epochs)

    def _written(self) -> Path | None:
        """Return the folder that engine.train has made; None where there is none yet."""
        return next((path for path in self._folder.iterdir() if path.is_dir() and path not in self._earlier), None)


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


def _together(run: Run) -> object:
    """Return what tells a run's group, or the run where it has none, from others."""
    return run.group or run


def settled(epochs: Sequence[Record]) -> list[Record]:
    """Return the epochs that began with the workers that stay: not the first one, nor those in which a tuner tries."""
    return [epoch for before, epoch in pairwise(epochs) if before.get("workers_settled", True)]


def _train_seconds(epochs: Sequence[Record]) -> float:
    return sum(float(epoch["train_seconds"]) for epoch in epochs)


def _epochs(path: Path | None) -> tuple[Record, ...]:
    """Return the epochs that a run's folder holds so far; none where there is no folder yet."""
    records = read_records(path / "metrics.jsonl") if path else []
    return tuple(record for record in records if record["kind"] == "epoch")


def _read(path: Path, measured: Mapping[str, Any]) -> Outcome:
    config = read_toml(path / "config.toml", Config())
    day = date.fromisoformat(measured["day"])
    return Outcome(path, config, _epochs(path), measured["cpu_seconds"], measured["foreign_cpu"], day)


def oldest(outcomes: Iterable[Outcome]) -> date | None:
    """Return the day on which the first of these runs ended; None where none is known."""
    return min((outcome.day for outcome in outcomes if outcome.day), default=None)
