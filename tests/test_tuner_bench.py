"""The benchmark of the tuner: what counts of its runs, what it says of them, and that they stay on their cores."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import epoch_turns, tuner
from bench.measure import Spread
from bench.training_runs import LOG, MEASURED, Outcome, Run, RunError, Runner
from bench.tuner_choices import AUTO, Case, Result, decisions, in_turns, plan, results, sentences, settled_rates
from engine.config import Config, LoaderConfig, ResolutionConfig, RunConfig

LOADING = Case("loading", "test_byobnet", 32, "torch", 2, (1, 2, 3))
SLOW = Case("model", "resnet18", 64, "torch", 2, (1, 2))


def epochs(*rates: float, settled: Sequence[bool] = (), workers: int = 1) -> tuple[dict[str, Any], ...]:
    """Return records of epochs of a second each."""
    return tuple(
        {
            "kind": "epoch", "epoch": number, "images_per_second": rate, "train_seconds": 1.0, "time": 1.0 + number,
            "num_workers": workers, "workers_settled": settled[number] if settled else True,
        }
        for number, rate in enumerate(rates)
    )  # fmt: skip


def outcome(*rates: float, settled: Sequence[bool] = (), workers: int = 1, foreign_cpu: float = 0.0) -> Outcome:
    config = Config(resolution=ResolutionConfig(resolutions=(64,)))
    return Outcome(Path("run"), config, epochs(*rates, settled=settled, workers=workers), 1.0, foreign_cpu)


def result(case: Case, rates: Mapping[int, Sequence[float]], chosen: Sequence[int]) -> Result:
    """Return what a case has brought, with the rates of each setting's rounds."""
    return Result(
        case,
        {
            setting: [
                outcome(1.0, rate, workers=chosen[number] if setting == AUTO else setting)
                for number, rate in enumerate(of_setting)
            ]
            for setting, of_setting in rates.items()
        },
    )


# What counts


def test_the_epochs_count_that_begin_when_the_tuner_has_settled() -> None:
    settled = (False, False, True, True, True)
    rates = settled_rates(
        {
            AUTO: outcome(10, 50, 70, 100, 120, settled=settled),
            1: outcome(11, 40, 60, 90, 100, 1000),
            2: outcome(12, 500, 500, 80, 82, 1000),
        }
    )
    assert rates == {AUTO: 110, 1: 95, 2: 81}, "of fixed numbers those between them, not before or after"


def test_the_first_epoch_counts_only_where_there_is_no_other() -> None:
    assert settled_rates({AUTO: outcome(10, 100, 300), 1: outcome(11, 100, 200)}) == {AUTO: 200, 1: 150}
    never = outcome(10, 50, 70, settled=(False, False, False))
    assert settled_rates({AUTO: never, 1: outcome(10, 60, 80)}) == {AUTO: 70, 1: 80}, "as good as it is known"
    assert settled_rates({AUTO: outcome(10), 1: outcome(9)}) == {AUTO: 10, 1: 9}


def test_runs_of_a_case_take_turns_on_so_many_cores() -> None:
    one_core = Case("loading", "test_byobnet", 32, "roi", 1, (1,))
    turns = in_turns(plan([LOADING, one_core], ["data"], 6.0, 60.0, rounds=2))
    assert [len(turn) for turn in turns] == [6, 6]
    assert [run.cores for run in turns[0]] == [2, 2, 2, 2, 1, 1]
    assert [run.name for run in turns[1][2:5]] == [
        "loading, torch, 2 cores, round 2, 3 workers",
        "loading, torch, 2 cores, round 2, auto",
        "loading, roi, 1 core, round 2, 1 worker",
    ]
    groups = [run.group for turn in turns for run in turn]
    assert [groups.count(group) for group in dict.fromkeys(groups)] == [4, 2, 4, 2]
    auto = turns[1][3]
    given = dict(zip(auto.arguments[1::2], auto.arguments[2::2], strict=True))
    assert given == {
        "--model": "test_byobnet", "--resolutions": "32", "--loader": "torch", "--num-workers": "auto", "--seed": "1",
        "--epochs": "100000",
    }  # fmt: skip


def test_a_run_has_enough_when_enough_of_it_is_settled() -> None:
    run = Run("a", ("data",), 0, seconds=2.0, at_most=9.0)
    tries = epochs(*[1.0] * 10, settled=(False, False, True) + (True,) * 7)
    assert [run.has_enough(tries[:count]) for count in range(6)] == [False] * 5 + [True]
    assert [run.progress(tries[:count]) for count in range(7)] == [0, 0, 0, 0, 1, 2, 2]
    never = epochs(*[1.0] * 10, settled=(False,) * 10)
    assert [run.has_enough(never[:count]) for count in (8, 9)] == [False, True]
    assert [Run("a", ("data",), 3).has_enough(tries[:count]) for count in (2, 3)] == [False, True]
    assert not Run("a", ("data",), 0, seconds=0.1, at_most=0.1).has_enough(tries[:1]), "the first epoch never counts"


# What is said


def test_the_ratio_is_taken_within_rounds_to_the_number_with_the_highest_median() -> None:
    found = result(LOADING, {1: (100, 50), 2: (200, 100), 3: (204, 90), AUTO: (190, 97)}, chosen=(2, 2))
    assert found.best == 2
    assert (found.ratio.min, found.ratio.max) == (0.95, 0.97)
    assert (found.verdict, found.is_met) == ("within 5%", True)
    assert found.chosen_ratio == Spread(1, 1, 1)
    fewer = result(LOADING, {1: (150, 90), 2: (200, 100), 3: (100, 90), AUTO: (150, 95)}, chosen=(1, 2))
    assert fewer.chosen_ratio == Spread.of([0.75, 1.0])
    assert result(SLOW, {1: (150,), 2: (200,), AUTO: (150,)}, chosen=(3,)).chosen_ratio is None


def test_a_choice_that_is_slower_than_chance_is_named() -> None:
    found = result(LOADING, {1: (100, 101), 2: (200, 202), 3: (201, 203), AUTO: (101, 102)}, chosen=(1, 1))
    assert (found.verdict, found.is_met) == ("slower", False)
    assert sentences([found]) == [
        "Loading is the limit: the tuner's choice is within 5%, or within the spread, of the best number in 0 of 1 "
        "case; not torch, 2 cores: 0.502 of 3 workers, chosen 1, enough 2."
    ]
    within = result(LOADING, {1: (100, 80), 2: (200, 150), 3: (100, 150), AUTO: (160, 150)}, chosen=(1, 2))
    assert (within.verdict, within.is_met) == ("within the spread", True)
    never_as_fast = result(LOADING, {1: (100, 80), 2: (200, 150), 3: (100, 150), AUTO: (165, 149)}, chosen=(1, 2))
    assert never_as_fast.verdict == "slower"


def test_one_odd_round_does_not_decide() -> None:
    slow = result(
        LOADING, {1: (90, 90, 90), 2: (100, 100, 100), 3: (90, 90, 90), AUTO: (60, 70, 100)}, chosen=(1, 1, 2)
    )
    assert slow.ratio == Spread(0.7, 0.6, 1.0)
    assert (slow.verdict, slow.is_met) == ("slower", False)
    disturbed = {
        1: [outcome(1.0, 100), outcome(1.0, 10, foreign_cpu=0.5), outcome(1.0, 104)],
        2: [outcome(1.0, 80), outcome(1.0, 100), outcome(1.0, 80)],
        AUTO: [outcome(1.0, 99), outcome(1.0, 20, workers=3), outcome(1.0, 103)],
    }
    found = Result(SLOW, disturbed)
    assert found.counted == [0, 2]
    assert (found.best, found.rates[1], found.chosen) == (1, Spread(102, 100, 104), [1, 3, 1])
    assert found.ratio == Spread.of([0.99, 103 / 104])
    assert found.chosen_ratio == Spread(1, 1, 1)
    loud = {workers: [outcome(1.0, 100, foreign_cpu=0.5)] for workers in (1, 2, AUTO)}
    assert Result(SLOW, loud).counted == [0], "there are no others"


def test_numbers_to_compare_with_are_those_that_a_loader_uses() -> None:
    def numbers(*arguments: str) -> dict[str, tuple[int, ...]]:
        given = ["--loaders", "torch,roi", "--cores", "1", "--situations", "loading", *arguments]
        return {case.loader: case.numbers for case in tuner.cases(tuner.parse(given))}

    assert numbers() == {"torch": (1, 2), "roi": (1,)}
    assert numbers("--num-workers", "1,3") == {"torch": (1, 3), "roi": (1,)}


def test_a_slow_model_is_to_take_no_more_workers_than_needed() -> None:
    rates = {1: (100, 101), 2: (101, 102), AUTO: (101, 101)}
    assert result(SLOW, rates, chosen=(1, 1)).is_met
    more = result(SLOW, rates, chosen=(1, 2))
    assert (more.enough, more.verdict, more.is_met) == (1, "within 5%", False)
    assert "chosen 1, 2, enough 1" in sentences([more])[0]
    assert result(LOADING, {**rates, 3: (90, 90)}, chosen=(2, 2)).is_met, "as fast is all that is asked for"


def test_runs_that_have_not_settled_are_said_to_be_too_short() -> None:
    runs = {1: [outcome(1, 100)], 2: [outcome(1, 101)], AUTO: [outcome(1, 100, settled=(False, False))]}
    assert "1 run ended before the tuner had settled (longer: --settling)" in sentences([Result(SLOW, runs)])[0]


def test_rounds_that_are_not_done_are_left_out() -> None:
    cells = plan([SLOW], ["data"], 6.0, 60.0, rounds=2)
    first, second = in_turns(cells)
    assert results(cells, {}) == []
    [found] = results(cells, {run: outcome(1, 100) for run in (*first, second[0])})
    assert {len(runs) for runs in found.outcomes.values()} == {1}


def test_decisions_are_read_from_the_log(tmp_path: Path) -> None:
    log = "epoch 1/9:  7%|#   | 1/15\rWorkers: 1 -> 2 at 64 px: 40% waited\n\nWorkers: stays at 2 at 64 px: faster\nend"
    (tmp_path / LOG).write_text(log)
    run = Outcome(tmp_path / "the-run", Config(), epochs(1), 1.0, 0.0)
    assert decisions(run) == ["1 -> 2 at 64 px: 40% waited", "stays at 2 at 64 px: faster"]


# Runs


def test_cores_and_time_tell_runs_apart(tmp_path: Path) -> None:
    runner = Runner(tmp_path, "here")
    runs = [Run("a", ("data",), 1), Run("a", ("data",), 1, cores=1), Run("a", ("data",), 0, 9.0, 20.0)]
    assert len({runner.folder(run) for run in (*runs, Run("a", ("data",), 0, 12.0, 20.0))}) == 4


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_a_run_stays_on_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\ngrep Cpus_allowed_list /proc/self/status\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    usable = os.sched_getaffinity(0)
    with pytest.raises(RunError, match=rf"Cpus_allowed_list:\s+{min(usable)}\n"):
        Runner(tmp_path / "runs", "here").make("runs", [[Run("a", ("data",), 1, cores=1)]], lambda outcomes: None)
    assert os.sched_getaffinity(0) == usable


def test_a_run_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in epochs(1, 100, 100, 100))
    (tmp_path / "metrics").write_text(lines)
    (tmp_path / "config").write_text(Config().to_toml())
    program = tmp_path / "program"
    program.write_text(
        f"""#!/bin/sh
        for folder; do true; done
        trap 'exit 75' TERM
        mkdir "$folder/run"
        cp {tmp_path}/config "$folder/run/config.toml"
        cp {tmp_path}/metrics "$folder/run/metrics.jsonl"
        while true; do sleep 0.05; done
        """.replace("\n        ", "\n")
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(epoch_turns, "_POLL_SECONDS", 0.05)
    run = Run("a", ("data",), 0, seconds=2.0, at_most=9.0)
    runner = Runner(tmp_path / "runs", "here")
    made = runner.make("runs", [[run]], lambda outcomes: None)
    assert len(made[run].epochs) == 4
    assert runner.find(run) == made[run]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Let no process be started: runs appear as soon as they are asked for, and are listed."""
    runs: list[Run] = []

    def train(runner: Runner, together: Sequence[Run], progress: object) -> dict[Run, Outcome]:
        runs.extend(together)
        return {run: finished(runner, run) for run in together}

    def finished(runner: Runner, run: Run) -> Outcome:
        given = dict(zip(run.options[1::2], run.options[2::2], strict=True))
        path = runner.folder(run) / "the-run"
        path.mkdir(parents=True)
        config = Config(
            resolution=ResolutionConfig(resolutions=(64,)),
            loader=LoaderConfig(loader="torch"),
            run=RunConfig(seed=int(given["--seed"])),
        )
        (path / "config.toml").write_text(config.to_toml())
        workers = 1 if given["--num-workers"] == "auto" else int(given["--num-workers"])
        records = epochs(1, 100.0 + workers, 100.0 + workers, workers=workers)
        (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (path.parent / LOG).write_text("Workers: stays at 1 at 64 px: it waits for nothing\n")
        (path.parent / MEASURED).write_text(json.dumps({"run": path.name, "cpu_seconds": 1.0, "foreign_cpu": 0.2}))
        found = runner.find(run)
        assert found is not None
        return found

    monkeypatch.setattr(Runner, "_train", train)
    monkeypatch.setattr(tuner, "usable_cores", lambda: 2.0)
    return runs


def test_the_command_writes_what_it_promises_and_repeats_nothing(
    tmp_path: Path, made: list[Run], capsys: pytest.CaptureFixture
) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "html")}
    options = [
        "--data", "demo", "--loaders", "torch,roi", "--rounds", "2", "--output", str(tmp_path / "runs"),
        *(word for kind, file in files.items() for word in (f"--{kind}", str(file))),
    ]  # fmt: skip
    assert tuner.main(options) == 0
    assert len(made) == 2 * (4 + 3 + 3 + 2 + 3 + 3), "on two cores, on one, and with the slow model"
    shown = capsys.readouterr().out
    assert "Loading is the limit: test_byobnet, 32 px" in shown
    assert "The model is the limit: resnet18, 64 px" in shown
    assert "in 4 of 4 cases" in shown
    assert "20%*" in shown
    records = json.loads(files["json"].read_text())
    assert [(r["situation"], r["loader"], r["cores"], r["numbers"]) for r in records] == [
        ("loading", "torch", 2, [1, 2, 3]), ("loading", "roi", 2, [1, 2]), ("loading", "torch", 1, [1, 2]),
        ("loading", "roi", 1, [1]), ("model", "torch", 2, [1, 2]), ("model", "roi", 2, [1, 2]),
    ]  # fmt: skip
    assert records[0]["images_per_second"]["3 workers"]["median"] == 103
    rates = {"1 worker": 101, "2 workers": 102, "3 workers": 103, "auto": 101}
    assert records[0]["rounds"] == {setting: [rate, rate] for setting, rate in rates.items()}
    assert records[0]["decisions"] == [["stays at 1 at 64 px: it waits for nothing"]] * 2
    with files["csv"].open() as file:
        assert len(list(csv.DictReader(file))) == len(records)
    page = files["html"].read_text()
    assert page.count("<svg") == 2
    for part in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>")

    made.clear()
    assert tuner.main(options) == 0
    assert not made


def test_more_cores_than_there_are_are_refused(made: list[Run], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        tuner.main(["--cores", "3,1"])
    assert "there are 2 cores to use, not 3: lower --cores" in capsys.readouterr().err


def test_options_that_the_engine_refuses_are_refused_before_any_run(
    made: list[Run], capsys: pytest.CaptureFixture
) -> None:
    assert tuner.main(["--data", "demo", "--loaders", "roi", "--fast-resolution", "4"]) == 1
    assert "--resolutions" in capsys.readouterr().err
    assert not made
