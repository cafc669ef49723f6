"""Whole training runs: what they leave behind, how they end, and that they resume exactly."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine import train, tuner
from engine.checkpoint import load_checkpoint
from engine.learner import Learner
from engine.rundir import RunDirectory, read_records
from kernels.jpeg import JpegLibraryError, load_library
from loaders.transfer import DeviceBatch
from tests.folders import image_folder
from tests.images import DAMAGES, damaged

SMALL = ["--model", "resnet10t", "--batch-size", "8", "--resolutions", "32,48", "--num-workers", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "colors", train=42, val=9)


def require_libjpeg() -> None:
    try:
        load_library()
    except JpegLibraryError as error:
        pytest.skip(str(error))


def run_directory(output: Path) -> Path:
    (path,) = (p for p in output.iterdir() if p.is_dir())
    return path


def epochs_of(run: Path) -> list[dict]:
    return [record for record in read_records(run / "metrics.jsonl") if record["kind"] == "epoch"]


def command(folder: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "engine.train", str(folder), *SMALL, "--output", str(output), *options]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last.pt")[1]["model"]


def assert_equal_weights(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.mark.parametrize("loader", ["torch", "dali", "synthetic"])
def test_a_run_leaves_everything_behind(
    folder: Path, tmp_path: Path, loader: str, capsys: pytest.CaptureFixture
) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    options = [str(folder), *SMALL, "--epochs", "3", "--output", str(tmp_path), "--loader", loader, "--name", "it"]
    assert train.main(options) == 0
    run = run_directory(tmp_path)
    assert run.name.endswith(f"-resnet10t-{loader}-it")
    files = {path.name for path in run.iterdir()}
    assert {
        "config.toml", "env.json", "metrics.jsonl", "summary.csv", "last.pt", "best.pt", "model.safetensors",
        "report.html", "confusion.csv", "per_class.csv", "predictions.json", "result.json",
    } <= files  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert not any(name.startswith(".") for name in files), "no temporary file is left"
    config = tomllib.loads((run / "config.toml").read_text())
    assert "auto" not in json.dumps(config), "every auto is resolved"
    epochs = epochs_of(run)
    assert [e["resolution"] for e in epochs] == [32, 32, 48] or [e["resolution"] for e in epochs] == [32, 48, 48]
    assert [e["samples_seen"] for e in epochs] == [42, 84, 126]
    assert all("gpu_utilization" not in e for e in epochs), "no GPU fields without a GPU"
    assert 0 < epochs[0]["start_seconds"] <= epochs[0]["data_wait_seconds"]
    assert [e["start_seconds"] for e in epochs[1:]] == [0.0, 0.0], "the loader starts once"
    with (run / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["top1"]) for row in rows] == pytest.approx([e["top1"] for e in epochs], rel=1e-4)
    if loader != "synthetic":
        assert max(e["top1"] for e in epochs) > 60
    shown = capsys.readouterr().out
    assert "Verdict:" in shown
    assert "report.html" in shown
    position, _ = load_checkpoint(run / "last.pt")
    assert position.finished
    assert set(load_file(run / "model.safetensors")) == set(weights(run))


def test_stages_are_warmed_up_as_they_are_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the batch that needs the most memory is of a stage whose dropout is weakened."""
    warmed: list[tuple[int, float]] = []
    trained: list[tuple[int, float]] = []
    warm_up, step = Learner.warm_up, Learner.step

    def warm_up_noted(learner: Learner, count: int, resolution: int) -> None:
        warmed.append((resolution, learner.model.drop_rate))
        warm_up(learner, count, resolution)

    def step_noted(learner: Learner, batch: DeviceBatch, *arguments: Any, **options: Any) -> None:
        trained.append((batch.plan.resolution, learner.model.drop_rate))
        step(learner, batch, *arguments, **options)

    monkeypatch.setattr(Learner, "warm_up", warm_up_noted)
    monkeypatch.setattr(Learner, "step", step_noted)
    options = ["--batch-sizes", "24,4", "--dropout", "0.4", "--regularization", "adaptive", "--loader", "synthetic"]
    assert train.main([str(folder), *SMALL, *options, "--epochs", "2", "--output", str(tmp_path)]) == 0
    assert list(dict.fromkeys(trained)) == warmed
    assert [resolution for resolution, _ in warmed] == [32, 48]
    assert warmed[0][1] < warmed[1][1] == 0.4


def test_a_config_file_repeats_a_run(folder: Path, tmp_path: Path) -> None:
    train.main([str(folder), *SMALL, "--epochs", "1", "--output", str(tmp_path / "one")])
    first = run_directory(tmp_path / "one")
    train.main(["--config", str(first / "config.toml"), "--output", str(tmp_path / "two")])
    assert_equal_weights(first, run_directory(tmp_path / "two"))


def test_weights_do_not_depend_on_the_workers(folder: Path, tmp_path: Path) -> None:
    options = [str(folder), *SMALL, "--epochs", "1", "--augment", "strong", "--output"]
    for workers in ("0", "1", "2"):
        train.main([*options, str(tmp_path / workers), "--num-workers", workers])
    for workers in ("1", "2"):
        assert_equal_weights(run_directory(tmp_path / "0"), run_directory(tmp_path / workers))


def test_epochs_tell_how_long_workers_were_looked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_WINDOW_SECONDS": 0.0, "_WINDOW_BATCHES": 1, "_UNSTEADY_BATCHES": 1}.items():
        monkeypatch.setattr(tuner, name, value)
    options = ["--resolutions", "32", "--batch-size", "4", "--num-workers", "auto", "--epochs", "8"]
    assert train.main([str(folder), *SMALL, *options, "--output", str(tmp_path)]) == 0
    epochs = epochs_of(run_directory(tmp_path))
    searching = [e for e in epochs if not e["workers_settled"]]
    found, *settled = epochs[len(searching) :]
    assert all(e["search_seconds"] == e["train_seconds"] and e["search_samples"] == 42 for e in searching)
    assert 0 < found["search_seconds"] <= found["train_seconds"]
    assert found["search_wait_seconds"] <= found["data_wait_seconds"]
    assert 0 < found["search_samples"] <= 42
    assert found["search_samples"] % 4 == 0 or found["search_samples"] == 42
    assert settled
    assert all(e["search_seconds"] == e["search_samples"] == 0 for e in settled)
    assert [e["tuned"] for e in epochs] == [e["workers_settled"] for e in epochs]


@pytest.mark.parametrize("loader", ["torch", "dali", "roi"])
def test_kill_and_resume_is_exact(folder: Path, tmp_path: Path, loader: str, caplog: pytest.LogCaptureFixture) -> None:
    """A process killed in the middle of an epoch resumes to the very weights of an uninterrupted run."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    if loader == "roi":
        require_libjpeg()
    options = [
        "--epochs", "3", "--loader", loader, "--augment", "strong", "--model", "convnext_atto", "--drop-path", "0.1",
        "--ema", "--opt", "adamw", "--batch-size", "4",
    ]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train.main([str(folder), *SMALL, *options, "--output", str(whole)]) == 0
    saving = command(folder, cut, *options, "--save-every", "0.001s")
    killed = subprocess.Popen(saving, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        checkpoints = list(cut.glob("*/last.pt"))
        if checkpoints:
            position, _ = load_checkpoint(checkpoints[0])
            if position.epoch >= 1 and position.next_batch >= 3:
                break
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    position, _ = load_checkpoint(run_directory(cut) / "last.pt")
    assert position.next_batch > 0, "killed within an epoch"
    again = [str(folder), *SMALL, *options, "--output", str(cut), "--resume", "auto"]
    with caplog.at_level("INFO", "headrace"):
        assert train.main(again) == 0
    assert "resumed at epoch" in caplog.text
    assert_equal_weights(run_directory(whole), run_directory(cut))
    ours, theirs = epochs_of(run_directory(cut)), epochs_of(run_directory(whole))
    for name in ("epoch", "resolution", "train_loss", "train_top1", "top1", "samples_seen", "steps"):
        assert [e[name] for e in ours] == [e[name] for e in theirs], name


def test_an_epoch_that_is_resumed_counts_both_starts_of_the_loader(folder: Path, tmp_path: Path) -> None:
    options = [str(folder), *SMALL, "--epochs", "1", "--output", str(tmp_path)]
    train.main([*options, "--time-limit", "0.001s"])
    position, _ = load_checkpoint(run_directory(tmp_path) / "last.pt")
    assert position.next_batch > 0, "stopped within the epoch"
    assert train.main([*options, "--resume", "auto", "--time-limit", "10m"]) == 0
    (epoch,) = epochs_of(run_directory(tmp_path))
    assert 0 < position.start_seconds < epoch["start_seconds"] <= epoch["data_wait_seconds"]


def test_a_signal_saves_and_exits_with_its_own_code(folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(folder, tmp_path, "--epochs", "500"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("*/last.pt")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "SIGTERM was received" in out
    assert "--resume" in out
    run = run_directory(tmp_path)
    position, _ = load_checkpoint(run / "last.pt")
    assert not position.finished
    assert (run / "report.html").exists()


def test_resume_auto_passes_over_other_runs(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = [str(folder), *SMALL, "--output", str(tmp_path), "--epochs"]
    train.main([*base, "1", "--time-limit", "0.001s"])
    assert len(list(tmp_path.iterdir())) == 1
    train.main([*base, "1", "--resume", "auto", "--lr", "0.123"])
    assert len(list(tmp_path.iterdir())) == 2, "another learning rate is another run"
    train.main([*base, "1", "--resume", "auto"])
    assert len(list(tmp_path.iterdir())) == 2, "the first is gone on with"
    train.main([*base, "1", "--resume", "auto"])
    assert len(list(tmp_path.iterdir())) == 3, "both are finished now"


def test_resume_by_path_takes_the_runs_options(folder: Path, tmp_path: Path) -> None:
    train.main([str(folder), *SMALL, "--output", str(tmp_path), "--epochs", "2", "--time-limit", "0.001s"])
    run = run_directory(tmp_path)
    assert train.main(["--resume", str(run), "--time-limit", "1h"]) == 0
    assert load_checkpoint(run / "last.pt")[0].finished
    assert len(epochs_of(run)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "resnet8000"], "resnet8000"),
        (["--resolutions", "48,32"], "resolutions"),
        (["--weights", "missing.safetensors"], "missing.safetensors"),
        (["--resume", "nowhere"], "nowhere"),
        (["--device", "cuda"], "CUDA"),
        (["--sync-bn"], "CUDA"),
    ],
)
def test_errors_are_one_line_that_names_the_option(
    folder: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    if torch.cuda.is_available() and message == "CUDA":
        pytest.skip("there is a CUDA device")
    with pytest.raises(SystemExit) as ending:
        train.main([str(folder), *SMALL, "--output", str(tmp_path), *options])
    assert ending.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:")
    assert message in error


def test_nonfinite_loss_names_step_and_samples(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        train.main([str(folder), *SMALL, "--output", str(tmp_path), "--lr", "1e30", "--log-every", "3"])
    error = capsys.readouterr().err
    assert "is not finite" in error
    assert ".jpg" in error


def test_nonfinite_steps_can_be_skipped(folder: Path, tmp_path: Path) -> None:
    train.main(
        [str(folder), *SMALL, "--output", str(tmp_path), "--lr", "1e30", "--on-nonfinite", "skip", "--epochs", "1"]
    )
    run = run_directory(tmp_path)
    assert epochs_of(run)[0]["skipped_steps"] > 0


def test_targets_end_a_run(folder: Path, tmp_path: Path) -> None:
    train.main([str(folder), *SMALL, "--output", str(tmp_path), "--epochs", "50", "--target", "top1=30"])
    assert len(epochs_of(run_directory(tmp_path))) < 50


def test_plan_prints_the_stages_and_stops(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train.main([str(folder), *SMALL, "--output", str(tmp_path), "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "32" in shown
    assert "48" in shown
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A thousand images with a file of each kind of damage, and these files."""
    data = image_folder(tmp_path_factory.mktemp("data"), train=1000, val=30, side=24)
    victims = [damaged(data / "train" / "red", kind, f"damaged-{kind}") for kind in DAMAGES]
    return data, [*victims, damaged(data / "val" / "red", "early", "damaged-in-validation")]


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_bad_files_are_listed_or_end_the_run(
    damaged_folder: tuple[Path, list[Path]], tmp_path: Path, loader: str, capsys: pytest.CaptureFixture
) -> None:
    """Skipped and listed, or the first one named."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    data, victims = damaged_folder
    options = [
        str(data), *SMALL, "--epochs", "1", "--batch-size", "64", "--loader", loader,
        "--output", str(tmp_path / "runs"),
    ]  # fmt: skip
    assert train.main(options) == 0
    run = run_directory(tmp_path / "runs")
    with (run / "bad_samples.csv").open() as file:
        listed = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert set(listed) == {str(path) for path in victims}
    assert all(listed.values()), "each with a reason"
    assert epochs_of(run)[0]["samples_seen"] == 1000 + len(DAMAGES), "replaced, not left out"
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train.main([*options, "--on-bad-sample", "raise"])
    unreadable = sorted(str(path) for path in victims if path.stem.split("-")[1] in ("bomb", "empty", "text"))
    assert unreadable[0] in capsys.readouterr().err, "the first of those whose header tells"
    with pytest.raises(SystemExit):
        train.main([*options, "--max-bad-fraction", "0.001"])
    assert "--max-bad-fraction" in capsys.readouterr().err


def test_raise_names_a_file_whose_pixels_are_damaged(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = image_folder(tmp_path / "data", train=30)
    victim = damaged(data / "train" / "red", "early")
    with pytest.raises(SystemExit):
        train.main([str(data), *SMALL, "--on-bad-sample", "raise", "--output", str(tmp_path / "runs")])
    assert str(victim) in capsys.readouterr().err


def test_a_signal_to_the_whole_group_is_saved_on(folder: Path, tmp_path: Path) -> None:
    """As torchrun, SLURM and systemd send it: the worker processes get it too."""
    process = subprocess.Popen(
        command(folder, tmp_path, "--epochs", "500", "--num-workers", "2"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not list(tmp_path.glob("*/last.pt")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    position, _ = load_checkpoint(run_directory(tmp_path) / "last.pt")
    assert not position.finished


def test_a_kill_before_the_report_is_made_up_for(folder: Path, tmp_path: Path) -> None:
    options = [str(folder), *SMALL, "--output", str(tmp_path), "--epochs", "1"]
    train.main(options)
    run = run_directory(tmp_path)
    for name in ("result.json", "report.html", "confusion.csv"):
        (run / name).unlink()
    train.main([*options, "--resume", "auto"])
    assert run_directory(tmp_path) == run
    assert (run / "report.html").exists()
    assert (run / "confusion.csv").exists()


def test_a_running_run_is_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = [str(folder), *SMALL, "--output", str(tmp_path), "--epochs", "1"]
    train.main([*options, "--time-limit", "0.001s"])
    run = RunDirectory(run_directory(tmp_path))
    with pytest.raises(SystemExit):
        train.main(["--resume", str(run.path)])
    assert "another process" in capsys.readouterr().err
    train.main([*options, "--resume", "auto"])
    assert len(list(tmp_path.iterdir())) == 2
    run.close()
