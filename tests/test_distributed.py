"""Several processes: every sample once, and the loss curve of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import train
from engine.distributed import process
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


WAITING = """
import time
from datetime import timedelta
from engine import distributed
from engine.train import _first_before_others

distributed._LIMIT = timedelta(seconds=10)  # in which both have to start
with distributed.process("cpu") as this:
    def work(first):
        time.sleep(14 if first else 0)
        return time.time()
    times = this.gather(_first_before_others(this, work))
    assert times[0] < times[1], times
"""


def test_the_first_process_may_work_longer_than_an_exchange_may_take(tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr


def test_a_group_knows_the_gpu_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise NCCL guesses one for its first barrier."""
    groups: list[tuple[str, torch.device | None]] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr(
        "torch.distributed.init_process_group",
        lambda backend, device_id, **_: groups.append((backend, device_id)),
    )
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    for device in ("cuda", "cpu"):
        with process(device):
            pass
    assert groups == [("nccl", torch.device("cuda", 3)), ("gloo", None)]


def test_one_rank_speaks_for_all(folder: Path, tmp_path: Path) -> None:
    result = launch(str(folder), *COMMON, "--model", "resnet8000", "--output", str(tmp_path))
    assert result.returncode != 0
    assert "resnet8000" in result.stderr
