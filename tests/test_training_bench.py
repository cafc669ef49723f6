"""Whole training runs as a benchmark: what is read off their curves, and that finished ones are not repeated."""

from __future__ import annotations

import csv
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import epoch_turns, training, training_loop, training_stall
from bench.measure import Measurement, Ratio, Round
from bench.training_charts import Line, time_chart
from bench.training_curves import Cost, Point, Statistics, equal_time_epochs, mean_curve, seconds_to
from bench.training_runs import MEASURED, Outcome, Run, RunError, Runner, oldest, runs_folder
from bench.training_schedules import Result, sentences
from engine.config import Config, LoaderConfig, OptimizerConfig, ResolutionConfig, RunConfig
from engine.progressive import ProgressiveSchedule
from engine.values import Target
from tests.folders import image_folder


def curve(*epochs: tuple[float, float, int]) -> list[dict[str, Any]]:
    """Return records of epochs that end at a time with a top-1 accuracy, at a resolution."""
    return [
        {"kind": "epoch", "time": time, "top1": top1, "top5": 100.0, "resolution": resolution}
        for time, top1, resolution in epochs
    ]


def outcome(epochs: Sequence[dict[str, Any]] = (), foreign_cpu: float = 0.0) -> Outcome:
    return Outcome(Path("run"), Config(), tuple(epochs), 1.0, foreign_cpu)


# Curves


def test_statistics_are_those_of_a_sample() -> None:
    assert Statistics.of([1.0, 3.0]) == Statistics(2.0, 2**0.5, 1.0, 3.0)
    assert Statistics.of([5.0]) == Statistics(5.0, 0.0, 5.0, 5.0)


def test_the_time_to_a_target_is_that_of_the_first_epoch_that_reaches_it() -> None:
    epochs = curve((10, 50, 64), (20, 80, 64), (35, 70, 96), (50, 90, 96))
    assert seconds_to(epochs, Target("top1", 80)) == 20
    assert seconds_to(epochs, Target("top1", 81)) == 50
    assert seconds_to(epochs, Target("top1", 91)) is None
    assert seconds_to(epochs, Target("top5", 99)) == 10


def test_a_mean_curve_goes_epoch_by_epoch_as_far_as_the_shortest() -> None:
    points = mean_curve([curve((10, 40, 64), (30, 60, 96)), curve((14, 50, 64), (30, 64, 96), (50, 70, 96))], "top1")
    assert [(point.seconds, point.metric.mean, point.resolution) for point in points] == [(12, 45, 64), (30, 62, 96)]
    assert [(point.metric.min, point.metric.max) for point in points] == [(40, 50), (60, 64)]


def test_the_cost_of_a_schedule_adds_up_to_its_runs() -> None:
    one = curve((14, 0, 64), (24, 0, 64), (34, 0, 64), (54, 0, 96), (74, 0, 96))
    cost = Cost.of([one, one])
    assert cost == Cost(4, {64: 10, 96: 20})
    assert cost.seconds([64, 64, 64, 96, 96]) == 74


@given(
    st.floats(-1, 50), st.floats(0.1, 20), st.floats(0.1, 20), st.floats(1, 200), st.floats(0.1, 0.9)
)  # fmt: skip
def test_equal_time_is_used_up_and_not_exceeded(
    start: float, small: float, large: float, seconds: float, share: float
) -> None:
    cost = Cost(start, {64: small, 96: large})

    def resolutions(epochs: int) -> list[int]:
        return [64 if epoch < share * (epochs - 1) else 96 for epoch in range(epochs)]

    epochs = equal_time_epochs(cost, resolutions, seconds)
    assert epochs == 1 or cost.seconds(resolutions(epochs)) <= seconds * 1.0001
    assert all(cost.seconds(resolutions(more)) > seconds for more in range(epochs + 1, epochs + 4))


def test_a_schedule_alone_has_the_epochs_that_it_was_measured_with() -> None:
    one = curve((14, 0, 64), (24, 0, 64), (44, 0, 96))
    cost = Cost.of([one])
    assert equal_time_epochs(cost, lambda epochs: [64] * (epochs - epochs // 3) + [96] * (epochs // 3), 44) == 3


# Stall


def rates(*epochs: tuple[float, float]) -> Outcome:
    """Return a run whose epochs of 100 images train for so many seconds and wait for so many of them."""
    return outcome(
        [
            {"images_per_second": 100 / seconds, "train_seconds": seconds, "data_wait_seconds": wait, "time": 0.0}
            for seconds, wait in epochs
        ]
    )


def test_the_stall_is_taken_within_rounds_and_without_the_first_epoch() -> None:
    cells = training_stall.plan(["data"], ["torch", "synthetic"], [64], rounds=3, epochs=3)
    assert list(cells) == [(64, "synthetic"), (64, "torch")]
    turns = training_stall.in_turns(cells)
    assert len(turns) == 3
    assert len({run for turn in turns for run in turn}) == 6
    done = {
        turns[0][0]: rates((9, 9), (1, 0), (1, 0)), turns[0][1]: rates((9, 9), (2, 1), (2, 1)),
        turns[1][0]: rates((9, 9), (2, 0), (2, 0)), turns[1][1]: rates((9, 9), (2, 0), (2, 0)),
        turns[2][0]: rates((9, 9), (5, 0), (5, 0)),
    }  # fmt: skip
    synthetic, torch = training_stall.results(cells, done)
    assert torch.stall.min == pytest.approx(0.0)
    assert torch.stall.max == pytest.approx(0.5)
    assert torch.data_wait_fraction.max == pytest.approx(0.5)
    assert synthetic.images_per_second.max == pytest.approx(100), "the round that torch has not done is left out"
    assert synthetic.stall.max == 0
    assert training_stall.results(cells, {}) == []
    assert "torch" in training_stall.sentences([synthetic, torch])[0]


# Schedules


def test_the_speed_up_is_taken_seed_by_seed_where_all_reach_the_target() -> None:
    baseline = [outcome(curve((40, 80, 96), (80, 92, 96))), outcome(curve((50, 93, 96))), outcome(curve((9, 99, 96)))]
    mine = [outcome(curve((20, 91, 64), (50, 94, 96))), outcome(curve((25, 90, 64))), outcome(curve((9, 80, 64)))]
    first = Result("epochs", (96,), baseline[:2], None, Target("top1", 90))
    reaching = Result("epochs", (64, 96), mine[:2], baseline[:2], Target("top1", 90))
    assert first.speed_up is None
    assert reaching.speed_up is not None
    assert (reaching.speed_up.min, reaching.speed_up.median, reaching.speed_up.max) == (2, 3, 4)
    missing = Result("epochs", (64, 96), mine, baseline, Target("top1", 90))
    assert missing.seconds_to_target == [20, 25, None]
    assert missing.speed_up is None
    assert missing.record("here")["target_reached"] == 2
    assert "3.00 (2.00-4.00) times as fast as 96 px, and" in sentences([first, reaching])[0]
    assert "with 2 of 3 seeds" in sentences([first, missing])[0]


def test_a_difference_that_the_seeds_do_not_carry_is_not_stated() -> None:
    def finished(*seeds: tuple[float, float]) -> list[Outcome]:
        return [outcome(curve((seconds, 60.0, 96), (99, top1, 96))) for seconds, top1 in seeds]

    first = Result("epochs", (96,), finished((9, 65), (10, 62), (12, 59)), None, Target("top1", 50))

    def said(*seeds: tuple[float, float]) -> str:
        return sentences([first, Result("epochs", (64, 96), finished(*seeds), first.outcomes, first.target)])[0]

    assert said((10, 60), (9, 66.7), (6, 81)) == (
        "At equal epochs, 64,96 px reaches a top-1 of 50.0 % 1.11 (0.90-2.00) times as fast as 96 px (no difference "
        "can be told), and ends 7.2 ± 6.4 points higher (no difference can be told)."
    )
    assert said((3, 55), (5, 52), (4, 49)).endswith(
        "3.00 (2.00-3.00) times as fast as 96 px, and ends 10.0 ± 2.4 points lower."
    )


# Runs


def write_run(runner: Runner, run: Run) -> Outcome:
    """Leave behind what a run would: epochs of half a second at 32 px and of a second at 48 px."""
    folder = runner.folder(run)
    given = dict(zip(run.options[1::2], run.options[2::2], strict=True))
    resolutions = tuple(int(size) for size in given["--resolutions"].split(","))
    config = Config(
        resolution=ResolutionConfig(resolutions=resolutions),
        loader=LoaderConfig(loader="synthetic" if given["--loader"] == "synthetic" else "torch"),
        optimizer=OptimizerConfig(epochs=run.epochs),
        run=RunConfig(seed=int(given["--seed"])),
    )
    schedule = ProgressiveSchedule.from_config(config)
    path = folder / "the-run"
    path.mkdir(parents=True)
    lines, elapsed = [], 0.1
    rate = 100.0 if config.loader.loader == "synthetic" else 80.0
    for epoch in range(config.optimizer.epochs):
        size = schedule.stage_at(epoch / config.optimizer.epochs).resolution
        elapsed += size / 48 if size == 48 else 0.5
        top1 = min(99.0, 40.0 + 10 * epoch + size / 10 + config.run.seed)
        lines.append(
            {
                "kind": "epoch", "epoch": epoch, "resolution": size, "top1": top1, "top5": 100.0, "time": elapsed,
                "images_per_second": rate, "train_seconds": 0.4, "data_wait_seconds": 0.1,
            }
        )  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "config.toml").write_text(config.to_toml())
    (folder / MEASURED).write_text(json.dumps({"run": path.name, "cpu_seconds": 1.0, "foreign_cpu": 0.2}))
    found = runner.find(run)
    assert found is not None
    return found


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Let no process be started: runs appear as soon as they are asked for, and are listed."""
    runs: list[Run] = []

    def train(runner: Runner, together: Sequence[Run], progress: object) -> dict[Run, Outcome]:
        runs.extend(together)
        return {run: write_run(runner, run) for run in together}

    monkeypatch.setattr(Runner, "_train", train)
    return runs


def arguments(tmp_path: Path, *more: str) -> list[str]:
    return [
        "--experiment", "stall,schedules", "--data", "demo", "--model", "resnet10t", "--loaders", "torch",
        "--resolutions", "32", "--rounds", "2", "--schedules", "48", "32,48", "--epochs", "4", "--seeds", "0,1",
        "--output", str(tmp_path / "runs"), *more,
    ]  # fmt: skip


def test_the_command_writes_what_it_promises_and_repeats_nothing(
    tmp_path: Path, made: list[Run], capsys: pytest.CaptureFixture
) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "html")}
    options = arguments(tmp_path, *(word for kind, file in files.items() for word in (f"--{kind}", str(file))))
    assert training.main(options) == 0
    assert len(made) == 4 + 4 + 2, "the stall, the schedules at equal epochs, one of them at equal time"
    assert [run.name for run in made[:3]] == [
        "synthetic, 32 px, round 1", "torch, 32 px, round 1", "synthetic, 32 px, round 2",
    ]  # fmt: skip
    assert [run.name.partition(",")[0] for run in made[4:6]] == ["48 px", "32"], "schedules take turns"
    shown = capsys.readouterr().out
    assert "Data stall, 32 px" in shown
    assert "20.0%" in shown
    assert "Size schedules at equal time" in shown
    records = json.loads(files["json"].read_text())
    stall = [record for record in records if record["experiment"] == "stall"]
    assert [record["loader"] for record in stall] == ["synthetic", "torch"]
    assert stall[1]["stall"]["median"] == pytest.approx(0.2)
    schedules = {(r["equal"], r["schedule"]): r for r in records if r["experiment"] == "schedules"}
    assert list(schedules) == [("epochs", "48"), ("epochs", "32,48"), ("time", "48"), ("time", "32,48")]
    assert schedules["epochs", "48"]["target"] == "top1=74.8", "what every seed of the first schedule ends with"
    assert schedules["epochs", "32,48"]["seconds"]["mean"] == pytest.approx(3.1)
    assert schedules["time", "32,48"]["epochs"] == 5, "2 epochs at 32 px and 3 at 48 px take as long as 4 at 48 px"
    assert schedules["time", "32,48"]["seconds"]["mean"] <= schedules["time", "48"]["seconds"]["mean"] == 4.1
    with files["csv"].open() as file:
        assert len(list(csv.DictReader(file))) == len(records)
    page = files["html"].read_text()
    assert page.count("<svg") == 4
    assert not re.search(r"https?://|src=", page), "the page needs nothing else"

    made.clear()
    assert training.main(options) == 0
    assert not made
    assert json.loads(files["json"].read_text()) == records

    assert training.main([*options, "--seeds", "0,1,2"]) == 0
    assert {run.name[-6:] for run in made} == {"seed 2"}


def test_the_loop_is_that_of_its_own_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def compare(work: training_loop.Work, rounds: int, seconds: float) -> list[training_loop.Result]:
        bare, engine = (
            Measurement(0.1, tuple(Round(images, seconds, 1.0, 0.0, 1.0) for _ in range(rounds)))
            for images in (200, 190)
        )
        ratio = Ratio.between(engine, bare)
        return [training_loop.Result("bare", work, bare, None), training_loop.Result("engine", work, engine, ratio)]

    monkeypatch.setattr(training_loop, "compare", compare)
    file = tmp_path / "out.json"
    options = ["--experiment", "loop", "--resolutions", "32,48", "--rounds", "2", "--seconds", "1"]
    assert training.main([*options, "--json", str(file), "--html", str(tmp_path / "out.html")]) == 0
    assert "0.950" in capsys.readouterr().out
    records = json.loads(file.read_text())
    assert [(record["experiment"], record["loop"], record["resolution"]) for record in records] == [
        ("loop", "bare", 32), ("loop", "engine", 32), ("loop", "bare", 48), ("loop", "engine", 48),
    ]  # fmt: skip


def test_options_that_the_engine_refuses_are_refused_before_any_run(
    tmp_path: Path, made: list[Run], capsys: pytest.CaptureFixture
) -> None:
    assert training.main(arguments(tmp_path, "--schedules", "48", "48,32")) == 1
    assert "--resolutions must rise; write 32,48" in capsys.readouterr().err
    assert not made


def test_a_failed_run_shows_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho the disk is full >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    runner, run = Runner(tmp_path / "runs", "here"), Run("a run", ("data",), 1)
    with pytest.raises(RunError, match=r"a run ended with code 3:\nthe disk is full\nall of it is in .*log\.txt"):
        runner.make("runs", [[run]], lambda outcomes: None)
    assert runner.find(run) is None


def test_the_log_of_a_failed_run_is_there_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho the disk is full >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    words = arguments(tmp_path)
    assert training.main(words[: words.index("--output")]) == 1
    named = re.search(r"all of it is in (.*)$", capsys.readouterr().err, re.MULTILINE)
    assert named and Path(named[1]).read_text() == "the disk is full\n"


@pytest.mark.parametrize("is_named", [True, False])
def test_runs_are_kept_where_a_folder_is_named_and_else_go_with_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_named: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    named = tmp_path / "runs"
    named.mkdir()
    with pytest.raises(KeyboardInterrupt), runs_folder(named if is_named else None, "name") as root:
        (root / "a").touch()
        raise KeyboardInterrupt
    assert (root / "a").exists() is is_named
    assert (capsys.readouterr().err == f"finished runs are kept in {named}\n") is is_named


def test_a_run_is_made_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = image_folder(tmp_path / "colors", train=16, val=6)
    options = (
        str(data), "--model", "cifar_resnet10", "--batch-size", "8", "--resolutions", "32", "--num-workers", "0",
        "--threads", "1", "--loader", "synthetic", "--epochs", "2",
    )  # fmt: skip
    run = Run("synthetic, 32 px", options, 2)
    runner = Runner(tmp_path / "runs", "here")
    seen: list[int] = []
    first = runner.make("runs", [[run]], lambda outcomes: seen.append(len(outcomes)))[run]
    assert len(first.epochs) == 2
    assert first.images_per_second > 0
    assert 0 <= first.data_wait_fraction <= 1
    assert first.cpu_seconds > 0
    assert first.config.loader.loader == "synthetic"

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a finished run is not repeated")

    monkeypatch.setattr(epoch_turns.subprocess, "Popen", refuse)
    assert first.day == date.today()
    file = runner.folder(run) / MEASURED
    measured = json.loads(file.read_text())
    file.write_text(json.dumps({**measured, "day": "2020-02-03"}))
    earlier = runner.find(run)
    assert earlier is not None
    assert oldest([first, earlier, outcome()]) == date(2020, 2, 3)
    assert oldest([outcome()]) is None
    file.write_text(json.dumps(measured))
    again = runner.make("runs", [[run], [run]], lambda outcomes: seen.append(len(outcomes)))[run]
    assert again == first
    assert seen == [1, 1, 1]
    assert Runner(tmp_path / "runs", "elsewhere").find(run) is None
    assert runner.find(Run(run.name, (*options, "--lr", "0.1"), 2)) is None


# The chart


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_the_chart_keeps_within_its_bounds_and_its_labels_apart(scale: float) -> None:
    def points(length: int, top: float) -> list[Point]:
        return mean_curve(
            [curve(*((scale * 20 * k, top - 30 / k + seed, 64 if k < 3 else 96) for k in range(1, length)))
             for seed in range(3)],
            "top1",
        )  # fmt: skip

    lines = [Line(f"{n} px", points(8 - n, 90 + n / 10), n) for n in range(4)]
    svg = time_chart([*lines, Line("empty", [], 4)], title="Top-1", target=80.0)
    root = ElementTree.fromstring(str(svg))
    width, height = numbers(root.attrib["viewBox"])[2:]
    for polyline in root.iter("polyline"):
        flat = numbers(polyline.attrib["points"])
        assert all(0 <= x <= width for x in flat[::2])
        assert all(0 <= y <= height for y in flat[1::2])
        assert flat[1] > flat[-1], "accuracy rises to the top"
    assert len(list(root.iter("polyline"))) == len(list(root.iter("polygon"))) == 4
    rings = [circle for circle in root.iter("circle") if circle.attrib["class"].startswith("ring")]
    assert len(rings) == 4, "where the size changes"
    labels = sorted(float(t.attrib["y"]) for t in root.iter("text") if t.attrib["class"].startswith("label"))
    assert len(labels) == 4
    assert all(below - above >= 12 for above, below in pairwise(labels))
    texts = [text.text or "" for text in root.iter("text")]
    assert "target 80.0 %" in texts
    assert f"time of the run, {'s' if scale == 1 else 'min'}" in texts
    assert not time_chart([], title="nothing")
