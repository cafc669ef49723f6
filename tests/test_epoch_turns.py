"""Training processes that take turns: whose epoch comes when, and how they end."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import epoch_turns
from bench.epoch_turns import TrainingProcess
from bench.training_runs import MEASURED, Outcome, Run, RunError, Runner
from engine.config import Config
from engine.rundir import RunDirectory
from engine.stopping import EXIT_INTERRUPTED
from tests.folders import image_folder

# Runs of a group


def epochs_of(folder: Path) -> int:
    """Return how many epochs the runs in a folder have recorded."""
    lines = [line for path in folder.glob("*/metrics.jsonl") for line in path.read_text().splitlines()]
    return sum(json.loads(line)["kind"] == "epoch" for line in lines)


def test_runs_of_a_group_take_turns_after_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = image_folder(tmp_path / "colors", train=16, val=6)
    options = (
        str(data), "--model", "cifar_resnet10", "--batch-size", "8", "--resolutions", "32", "--num-workers", "0",
        "--threads", "1", "--loader", "synthetic", "--epochs", "2",
    )  # fmt: skip
    runs = [Run(name, options, 2, group="both") for name in ("first", "second")]
    runner = Runner(tmp_path / "runs", "here")
    seen: list[list[int]] = []
    go_on = TrainingProcess.go_on

    def watched(process: TrainingProcess, watch: Callable[[], bool]) -> bool:
        more = go_on(process, watch)
        seen.append([epochs_of(runner.folder(run)) for run in runs])
        return more

    monkeypatch.setattr(TrainingProcess, "go_on", watched)
    made = runner.make("runs", [runs], lambda outcomes: None)
    assert seen == [[1, 0], [1, 1], [2, 1], [2, 2], [2, 2], [2, 2]]
    assert [len(outcome.epochs) for outcome in made.values()] == [2, 2]
    assert all(outcome.cpu_seconds > 0 for outcome in made.values())

    seen.clear()
    assert runner.make("runs", [runs], lambda outcomes: None) == made
    assert seen == [], "what is finished is not repeated"


@pytest.mark.parametrize(("first", "epochs"), [("slow", [4, 4]), ("short", [2, 4])])
def test_runs_of_a_group_are_ended_when_all_have_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, epochs: list[int]
) -> None:
    program = tmp_path / "program"
    program.write_text(
        f"""#!{sys.executable}
import json, pathlib, shutil, signal, socket, sys
ended = []
signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
turns, folder = socket.socket(fileno=int(sys.argv[3])), pathlib.Path(sys.argv[-1])
(folder / "run").mkdir()
shutil.copy({str(tmp_path / "config.toml")!r}, folder / "run")
seconds, epoch = 3.0 if "slow" in folder.name else 1.0, 0
while not ended:
    if "short" in folder.name and epoch == 2:
        sys.exit(0)
    with (folder / "run" / "metrics.jsonl").open("a") as file:
        record = dict(kind="epoch", epoch=epoch, train_seconds=seconds, images_per_second=1.0)
        file.write(json.dumps(record) + chr(10))
    epoch += 1
    turns.send(b".")
    turns.recv(1)
sys.exit({EXIT_INTERRUPTED} if len(ended) == 1 else 1)
"""
    )
    program.chmod(0o755)
    (tmp_path / "config.toml").write_text(Config().to_toml())
    monkeypatch.setattr(sys, "executable", str(program))
    runs = [Run(name, (), 0, seconds=3.0, at_most=9.0, group="both") for name in (first, "fast")]
    made = Runner(tmp_path / "runs", "here").make("runs", [runs], lambda outcomes: None)
    assert [len(outcome.epochs) for outcome in made.values()] == epochs, (
        "of the fast one the first and three that count"
    )


def test_of_a_group_all_are_made_again_where_one_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def train(runner: Runner, together: list[Run], progress: object) -> dict[Run, Outcome]:
        asked.append([run.name for run in together])
        return {}

    alone, *both = [Run("alone", (), 1), *(Run(name, (), 1, group="both") for name in ("first", "second"))]
    runner = Runner(tmp_path, "here")
    finished = {alone: Outcome(tmp_path, None, (), 1.0, 0.0), both[0]: Outcome(tmp_path, None, (), 1.0, 0.0)}  # type: ignore[arg-type]
    monkeypatch.setattr(Runner, "_train", train)
    monkeypatch.setattr(Runner, "find", lambda runner, run: finished.get(run))
    runner.make("runs", [[alone, *both], [*both, alone]], lambda outcomes: None)
    assert asked == [["first", "second"]] * 2
    assert len({runner.folder(Run("a", (), 1, group=group)) for group in ("", "b", "c")}) == 3


def test_one_that_dies_while_it_waits_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # First an epoch, then: the one is gone, the other would wait for ever.
    program = tmp_path / "program"
    program.write_text(
        f"""#!{sys.executable}
import os, pathlib, socket, sys, time
turns, folder = socket.socket(fileno=int(sys.argv[3])), pathlib.Path(sys.argv[-1])
(folder / "pid").write_text(str(os.getpid()))
turns.send(b".")
if "short" in folder.name:
    print("killed")
    sys.exit(9)
time.sleep(600)
"""
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(epoch_turns, "_POLL_SECONDS", 0.05)
    runner, runs = Runner(tmp_path / "runs", "here"), [Run(name, (), 2, group="both") for name in ("long", "short")]
    with pytest.raises(RunError, match=r"^short ended with code 9:\nkilled\nall of it is in"):
        runner.make("runs", [runs[::-1]], lambda outcomes: None)
    pid = int((runner.folder(runs[0]) / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
    assert not any((runner.folder(run) / MEASURED).exists() for run in runs)


# A process


def process(tmp_path: Path, code: str, in_turns: bool = True) -> TrainingProcess:
    """Return a process that runs some code as a module of its own."""
    (tmp_path / "module_to_run.py").write_text(code)
    return TrainingProcess(["module_to_run"], tmp_path / "log.txt", in_turns=in_turns)


def test_one_that_waits_is_ended_with_time_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = """
import pathlib, signal
from engine.rundir import RunDirectory
signals = []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
run = RunDirectory(pathlib.Path(__file__).parent / "run")
while not signals:
    run.record_epoch({"top1": 1.0}, 1)
print("saved", signals)
"""
    training = process(tmp_path, code)
    assert training.go_on(lambda: False)
    assert training.go_on(lambda: False), "the next epoch"
    assert training.returncode is None
    training.close()
    assert training.returncode == 0
    assert (tmp_path / "log.txt").read_text() == f"saved [{int(signal.SIGTERM)}]\n"
    assert training.usage.own > 0
    assert training.usage.busy > 0


def test_one_that_ignores_the_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(epoch_turns, "_STOP_SECONDS", 0.2)
    monkeypatch.setattr(epoch_turns, "_POLL_SECONDS", 0.05)
    ready = tmp_path / "ready"
    code = f"import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen({str(ready)!r}, 'w')\n"
    training = process(tmp_path, code + "time.sleep(600)", in_turns=False)

    def interrupt() -> bool:
        if ready.exists():
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        training.go_on(interrupt)
    training.close()
    assert training.returncode == -signal.SIGKILL


def test_nobody_waits_for_one_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunDirectory, "record_epoch", RunDirectory.record_epoch)  # as it is, to be put back
    ours, theirs = socket.socketpair()
    epoch_turns.wait_after_epochs(theirs)
    run = RunDirectory(tmp_path / "run")
    ours.send(b".")
    run.record_epoch({"top1": 1.0}, 1)
    assert ours.recv(1) == b"."
    ours.close()
    run.record_epoch({"top1": 2.0}, 2)
    assert [record["top1"] for record in run.epochs()] == [1.0, 2.0]
    run.close()
    theirs.close()
