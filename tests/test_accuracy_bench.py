"""Accuracy by loader: what is made of the outcomes of runs, and which runs are made."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import accuracy
from bench.accuracy import Result, report, results
from bench.training_curves import Statistics
from bench.training_runs import Outcome, Run, Runner
from engine.config import Config, LoaderConfig, RunConfig


def outcome(top1: float, seed: int = 0) -> Outcome:
    epoch = {"kind": "epoch", "time": 1.0, "top1": top1, "train_loss": 1.0}
    return Outcome(Path("run"), Config(run=RunConfig(seed=seed)), (epoch,), 1.0, 0.0)


def of(loader: str, values: Sequence[float], first: Statistics | None = None) -> Result:
    return Result(loader, [outcome(value, seed) for seed, value in enumerate(values)], first)


def test_the_difference_has_the_standard_error_of_two_samples() -> None:
    torch = of("torch", [66.98, 69.40, 67.24])
    roi = of("roi", [67.59, 67.16, 67.67], torch.accuracy)
    assert torch.difference is None
    assert roi.difference is not None
    difference, error = roi.difference
    assert difference == pytest.approx(-0.4, abs=0.01)
    assert error == pytest.approx(math.sqrt((1.3286**2 + 0.2743**2) / 3), abs=0.001)
    found = report([torch, roi], "here")
    (sheet,) = found.sheets
    assert sheet.rows[0][:5] == ["torch", "66.98, 69.40, 67.24", "67.87", "1.33", ""]
    assert sheet.rows[1][2:5] == ["67.47", "0.27", "-0.40 ± 0.78"]
    assert len(found.section.charts) == 1
    assert [record["seeds"] for record in found.records] == [[0, 1, 2]] * 2


def test_one_seed_has_no_standard_error_and_no_chart() -> None:
    found = report([of("torch", [70.0]), of("dali", [71.0], Statistics.of([70.0]))], "here")
    assert found.sheets[0].rows[1][:5] == ["dali", "71.00", "71.00", "", "+1.00"]
    assert not found.section.charts


def test_seeds_that_a_loader_has_not_done_are_left_out() -> None:
    runs = {name: [Run(f"{name}, seed {seed}", (), 1) for seed in range(2)] for name in ("torch", "roi")}
    done = {runs["torch"][0]: outcome(60), runs["torch"][1]: outcome(61), runs["roi"][0]: outcome(62)}
    assert [result.values for result in results(runs, done)] == [[60], [62]]
    assert results(runs, {}) == []


def test_the_command_makes_each_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Run] = []

    def train(runner: Runner, together: Sequence[Run], progress: Any) -> dict[Run, Outcome]:
        (run,) = together
        made.append(run)
        given = dict(zip(run.options[1::2], run.options[2::2], strict=True))
        found = outcome(80 + int(given["--seed"]) - len(given["--loader"]), int(given["--seed"]))
        return {run: replace(found, config=replace(found.config, loader=LoaderConfig(loader="torch")))}

    monkeypatch.setattr(Runner, "_train", train)
    options = ["--data", "demo", "--loaders", "torch,dali", "--seeds", "0,1", "--epochs", "1", "--resolutions", "32,48"]
    options += ["--output", str(tmp_path / "runs"), "--json", str(tmp_path / "out.json"), "--model", "resnet10t"]
    assert accuracy.main([*options, "--html", str(tmp_path / "out.html")]) == 0
    assert [run.name for run in made] == ["torch, seed 0", "dali, seed 0", "torch, seed 1", "dali, seed 1"]
    assert "+1.00 ± 0.71" in capsys.readouterr().out
    records = json.loads((tmp_path / "out.json").read_text())
    assert [record["difference"] for record in records] == [None, 1.0]
    assert (tmp_path / "out.html").read_text().count("<svg") == 1


def test_what_the_engine_refuses_is_refused_before_any_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(["--loaders", "torch", "--resolutions", "48,32", "--model", "resnet10t"]) == 1
    assert "--resolutions must rise" in capsys.readouterr().err
