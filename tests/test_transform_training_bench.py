"""The benchmark of training with two orders of one transform list: what it runs, and how it counts."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import transform_training
from bench.training_runs import MEASURED, Outcome, Run, Runner
from bench.transform_training import BADLY, WELL, in_turns, plan, results
from engine.config import AugmentConfig, Config
from engine.transforms import read_transforms
from loaders.transforms import Program
from tests.folders import image_folder
from tests.transform_costs import PixelCosts

RATES = {"well": 100.0, "badly": 80.0}


def write_run(runner: Runner, run: Run) -> Outcome:
    """Leave behind what a run would."""
    order = "badly" if BADLY in run.name else "well"
    path = runner.folder(run) / "the-run"
    path.mkdir(parents=True)
    epoch = {"kind": "epoch", "time": 1.0, "train_seconds": 1.0, "data_wait_seconds": 0.25}
    rates = [1.0, RATES[order] + 10 * ("round 2" in run.name)]
    lines = [{**epoch, "epoch": number, "images_per_second": rate} for number, rate in enumerate(rates)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "config.toml").write_text(Config().to_toml())
    measured = {"run": path.name, "cpu_seconds": 4.0 if order == "badly" else 2.0, "foreign_cpu": 0.2}
    (runner.folder(run) / MEASURED).write_text(json.dumps(measured))
    found = runner.find(run)
    assert found is not None
    return found


def test_both_lists_hold_the_same_transforms(tmp_path: Path) -> None:
    programs: list[Program] = []
    for name in (WELL, BADLY):
        read = read_transforms(AugmentConfig(transforms=transform_training.write_list(tmp_path, name, 48)))
        assert read is not None
        programs.append(read.program)
    well, badly = (program.operations for program in programs)
    assert [operation.name for operation in badly] == ["ToFloat", "Normalize", "HorizontalFlip", "RandomResizedCrop"]
    assert [operation.name for operation in well] == ["RandomResizedCrop", "HorizontalFlip", "ToFloat", "Normalize"]
    assert set(well) == set(badly)


def test_the_orders_take_turns_and_the_first_of_them_changes(tmp_path: Path) -> None:
    cells = plan(["data"], tmp_path, ["torch", "roi"], [48], rounds=2, epochs=2)
    first, second = in_turns(cells)
    assert [run.name for run in first] == [
        f"{loader}, 48 px, {order}, round 1" for loader in ("torch", "roi") for order in (WELL, BADLY)
    ]
    assert [run.name[:-1] for run in second] == [run.name[:-1] for run in reversed(first)]
    assert results(cells, {}) == []


def test_the_command_writes_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def train(runner: Runner, together: Sequence[Run], progress: object) -> dict[Run, Outcome]:
        assert {order for run in together for order in (WELL, BADLY) if order in run.name} == {WELL, BADLY}
        return {run: write_run(runner, run) for run in together}

    monkeypatch.setattr(Runner, "_train", train)
    monkeypatch.setattr(transform_training, "machine_costs", PixelCosts)
    data = image_folder(tmp_path / "colors", train=6, val=3)
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "html")}
    options = [
        "--data", str(data), "--loaders", "torch", "--resolutions", "32,48", "--rounds", "2", "--epochs", "2",
        "--model", "resnet10t", "--output", str(tmp_path / "runs"),
        *(word for kind, file in files.items() for word in (f"--{kind}", str(file))),
    ]  # fmt: skip
    assert transform_training.main(options) == 0
    shown = capsys.readouterr().out
    assert "Training with a list of transforms in two orders, 48 px" in shown
    assert "the badly ordered list trains at 0.81 times" in " ".join(shown.split())
    records = json.loads(files["json"].read_text())
    assert [record["resolution"] for record in records] == [32, 48]
    assert records[0]["ratio"] == pytest.approx({"median": (0.8 + 9 / 11) / 2, "min": 0.8, "max": 9 / 11})
    assert records[0]["cpu_ratio"]["median"] == 2.0
    assert records[0]["data_wait_fraction"]["median"] == 0.25
    assert records[0]["disturbed_rounds"] == 4
    assert records[0]["cpu_ms_alone"].keys() == {WELL, BADLY}
    assert "for an image at 48 px" in " ".join(shown.split())
    with files["csv"].open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert files["html"].read_text().count("<svg") == 1


def test_options_that_the_engine_refuses_end_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = image_folder(tmp_path / "colors", train=6, val=3)
    options = [
        "--data",
        str(data),
        "--loaders",
        "torch",
        "--model",
        "resnet10t",
        "--options",
        "--hflip 0",
        "--output",
        str(tmp_path),
    ]
    assert transform_training.main(options) == 1
    assert "--hflip and --transforms both say how images vary" in capsys.readouterr().err
