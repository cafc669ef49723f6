"""Several processes: every sample once, and the loss curve of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine import train
from engine.rundir import read_records
from tests.folders import image_folder

MODEL = ["--model", "convnext_atto", "--opt", "adamw", "--lr", "0.002", "--amp", "off"]
COMMON = ["--resolutions", "32", "--num-workers", "1", "--threads", "1", "--log-every", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 37 images in batches of 12: the last batch has one sample, and one of the two ranks none.
    return image_folder(tmp_path_factory.mktemp("data") / "colors", train=37, val=11)


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Train by two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*command, "-m", "engine.train", *arguments], capture_output=True, text=True, timeout=280)


def records(output: Path, kind: str) -> list[dict]:
    (run,) = (path for path in output.iterdir() if path.is_dir())
    return [record for record in read_records(run / "metrics.jsonl") if record["kind"] == kind]


@pytest.mark.parametrize(
    "options", [["--batch-size", "12"], ["--batch-size", "12", "--grad-accum-steps", "2", "--clip-grad", "1"]]
)
def test_two_processes_train_as_one(folder: Path, tmp_path: Path, options: list[str]) -> None:
    """Without batch norm, dropout and mixing, an uneven last batch included, the loss curves are the same."""
    arguments = [str(folder), *MODEL, *COMMON, *options, "--epochs", "2", "--augment", "standard", "--output"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train.main([*arguments, str(one)]) == 0
    result = launch(*arguments, str(two))
    assert result.returncode == 0, result.stderr
    (one_steps, one_epochs), (two_steps, two_epochs) = (
        (records(output, "step"), records(output, "epoch")) for output in (one, two)
    )
    assert [s["loss"] for s in two_steps] == pytest.approx([s["loss"] for s in one_steps], rel=1e-4)
    for name in ("train_loss", "train_top1", "val_loss", "top1"):
        assert [e[name] for e in two_epochs] == pytest.approx([e[name] for e in one_epochs], rel=1e-3), name
    assert [e["samples_seen"] for e in two_epochs] == [37, 74]


def test_batch_norm_and_resume_over_two_processes(folder: Path, tmp_path: Path) -> None:
    arguments = [
        str(folder), "--model", "resnet10t", *COMMON, "--batch-size", "12", "--epochs", "2", "--output", str(tmp_path),
    ]  # fmt: skip
    stopped = launch(*arguments, "--time-limit", "0.001s")
    assert stopped.returncode == 0, stopped.stderr
    (run,) = tmp_path.iterdir()
    assert not json.loads((run / "result.json").read_text())["finished"]
    resumed = launch(*arguments, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert len(list(tmp_path.iterdir())) == 1
    assert [e["samples_seen"] for e in records(tmp_path, "epoch")] == [37, 74]


def test_one_rank_speaks_for_all(folder: Path, tmp_path: Path) -> None:
    result = launch(str(folder), *COMMON, "--model", "resnet8000", "--output", str(tmp_path))
    assert result.returncode != 0
    assert "resnet8000" in result.stderr
