"""Whole training runs by the engine's command: time to 94 % on CIFAR-10, and five epochs of Imagenette."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu_process import Job, Reporter, UnavailableError

_ROOT = Path(__file__).resolve().parents[1]
_TARGET = 94.0  # percent, as the CIFAR-10 speed runs have it
_MIN_SECONDS = 30.0
_ENDING_SECONDS = 10.0  # what a run takes beyond its time limit: the last evaluation and the report
_SHADOW = ["--limit-train", "64", "--limit-val", "32", "--epochs", "1", "--batch-size", "32", "--num-workers", "1"]

_CIFAR = [
    *["--model", "cifar_resnet18", "--resolutions", "32", "--epochs", "20", "--batch-size", "512"],
    *["--crop", "padded", "--hflip", "0.5", "--target", f"top1={_TARGET:g}"],
]
_IMAGENETTE = [
    *["--model", "resnet18", "--resolutions", "128", "--epochs", "5", "--batch-size", "64"],
    *["--val-resolution", "160"],
]


def run(job: Job, report: Reporter) -> None:
    """Train what there are data for."""
    missing = [name for name in ("tyro", "timm", "tensorboard") if find_spec(name) is None]
    if missing:
        raise UnavailableError(f"engine.train needs {', '.join(missing)}")
    tasks: list[tuple[str, Path | None, list[str]]] = [
        (f"CIFAR-10 to {_TARGET:g} %", job.cifar, _CIFAR),
        ("Imagenette, 5 epochs", job.imagenette, _IMAGENETTE),
    ]
    given = [(name, data, arguments) for name, data, arguments in tasks if data is not None]
    for name, data, _ in tasks:
        if data is None:
            report.left_out(name, "no folder of it was given")
    for number, (name, data, arguments) in enumerate(given):
        seconds = report.remaining / (len(given) - number)
        report.attempt(
            name, partial(_train, name, data, arguments, seconds, job, report), 0 if job.is_shadow else _MIN_SECONDS
        )


def _train(name: str, data: Path, arguments: list[str], seconds: float, job: Job, report: Reporter) -> None:
    """Run the command within so many seconds and report how it ended.

    Raises:
        RuntimeError: it failed; the message holds the end of what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-gpu-") as folder:
        limit = max(5, int(seconds - _ENDING_SECONDS))
        command = [sys.executable, "-m", "engine.train", str(data), *arguments, "--device", job.device]
        command += ["--time-limit", f"{limit}s", "--output", folder, *(_SHADOW if job.is_shadow else [])]
        ended = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        results = list(Path(folder).glob("*/result.json"))
        if not results:
            raise RuntimeError(f"{' '.join(command)} ended with code {ended.returncode}:\n{ended.stderr[-3000:]}")
        result = json.loads(results[0].read_text())
        report.row("Whole runs", run=name, **_figures(result, results[0].parent))
        report.row("What limited them", run=name, verdict=str(result["verdict"]))


def _figures(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what to show of a run."""
    with (folder / "summary.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    return {
        "top1_percent": float(result["top1"] or 0.0),
        "epochs": int(result["epochs"]),
        "seconds": float(result["seconds"]),
        "last_epoch_seconds": float(epochs[-1]["seconds"]) if epochs else 0.0,
        "end": str(result["reason"]),
    }
