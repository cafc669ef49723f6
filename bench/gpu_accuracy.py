"""Whole training runs by the engine's command: time to 94 % on CIFAR-10, and five epochs of Imagenette."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu_process import Job, Reporter, UnavailableError

_ROOT = Path(__file__).resolve().parents[1]
_TARGET = 94.0  # percent, as the CIFAR-10 speed runs have it
_MIN_SECONDS = 30.0
_STARTING_SECONDS = 15.0  # what a run takes before its time limit begins: imports, listing and packing the images
_ENDING_SECONDS = 10.0  # and beyond it: the last evaluation and the report
_LEAST_LIMIT_SECONDS = 5
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
        seconds = max(report.remaining / (len(given) - number), min(_MIN_SECONDS, report.remaining))
        report.attempt(
            name, partial(_train, name, data, arguments, seconds, job, report), 0 if job.is_shadow else _MIN_SECONDS
        )


def _train(name: str, data: Path, arguments: list[str], seconds: float, job: Job, report: Reporter) -> None:
    """Run the command within so many seconds and report how it ended.

    Its own time limit counts from the first step. Where too much time has passed before that, it is asked to end, and
    then killed; what it has recorded up to then is reported all the same.

    Raises:
        RuntimeError: it failed; the message holds the end of what it printed.
        UnavailableError: it was stopped before its first epoch had ended.
    """
    end = time.monotonic() + seconds
    output = Path(tempfile.mkdtemp(dir=job.folder))
    limit = max(_LEAST_LIMIT_SECONDS, int(seconds - _STARTING_SECONDS - _ENDING_SECONDS))
    command = [sys.executable, "-m", "engine.train", str(data), *arguments, "--device", job.device]
    command += ["--time-limit", f"{limit}s", "--output", str(output), *(_SHADOW if job.is_shadow else [])]
    with (output / "printed.txt").open("w") as printed:  # what it has started may hold a pipe open
        process = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=printed
        )
        code = _ended(process, end)
    results = list(output.glob("*/result.json"))
    if results:
        result = json.loads(results[0].read_text())
        report.row("Whole runs", run=name, **_figures(result, _epochs(output)))
        report.row("What limited them", run=name, verdict=str(result["verdict"]))
    elif code is not None:
        message = (output / "printed.txt").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(command)} ended with code {code}:\n{message}")
    elif epochs := _epochs(output):
        report.row("Whole runs", run=name, **_figures_so_far(epochs))
    else:
        raise UnavailableError(f"it was stopped after {seconds:.0f} s, before its first epoch had ended")


def _ended(process: subprocess.Popen[bytes], end: float) -> int | None:
    """Wait for a run, ask it to end shortly before ``end``, and kill it then.

    Returns:
        Its exit code; None where it did not end by itself.
    """
    try:
        return process.wait(max(0.0, end - _ENDING_SECONDS - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, end - time.monotonic()))
    process.kill()
    process.wait()
    return None


def _epochs(output: Path) -> list[dict[str, str]]:
    """Return the lines of a run's summary, one for each epoch."""
    for path in output.glob("*/summary.csv"):
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return []


def _figures(result: dict[str, Any], epochs: list[dict[str, str]]) -> dict[str, Any]:
    """Return what to show of a run that came to an end."""
    return {
        "top1_percent": float(result["top1"] or 0.0),
        "epochs": int(result["epochs"]),
        "seconds": float(result["seconds"]),
        "last_epoch_seconds": float(epochs[-1]["seconds"]) if epochs else 0.0,
        "end": str(result["reason"]),
    }


def _figures_so_far(epochs: list[dict[str, str]]) -> dict[str, Any]:
    """Return what to show of a run that was killed."""
    return {
        "top1_percent": max(float(epoch["top1"] or 0.0) for epoch in epochs),
        "epochs": len(epochs),
        "seconds": sum(float(epoch["seconds"]) for epoch in epochs),
        "last_epoch_seconds": float(epochs[-1]["seconds"]),
        "end": "stopped when its time was over",
    }
