"""The folder of a run: where its settings, measurements, checkpoints and report lie."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from loaders.files import atomic_file

SUMMARY_COLUMNS = (
    "epoch",
    "resolution",
    "batch_size",
    "lr",
    "train_loss",
    "train_top1",
    "val_loss",
    "top1",
    "top5",
    "images_per_second",
    "data_wait_fraction",
    "seconds",
)


LOCK = ".running"  # held while a process writes to the folder


def is_running(path: Path) -> bool:
    """Say whether a living process writes to a run's folder."""
    try:
        with (path / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class RunDirectory:
    """Writes what a run leaves behind. Only the main process has one.

    ``metrics.jsonl`` and ``summary.csv`` grow by a line at a time; everything else is replaced whole.

    Args:
        path: the folder; made if it is not there.
        keep_epochs: on resume, drop records of epochs from this one on, which will be trained again.
    """

    def __init__(self, path: Path, keep_epochs: int | None = None, keep_steps: int | None = None) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.register_at_fork(after_in_child=self._lock.close)  # a worker that outlives this process must not hold it
        if keep_epochs is not None:
            self._tidy(keep_epochs, keep_steps or 0)
        self._metrics = (path / "metrics.jsonl").open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(path), purge_step=keep_steps)

    def file(self, name: str) -> Path:
        return self.path / name

    def write_text(self, name: str, text: str) -> None:
        with atomic_file(self.file(name)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, default=str) + "\n")

    def record(self, kind: str, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; numbers that are not finite become null, as JSON wants it."""
        line = {"kind": kind, **{key: _plain(value) for key, value in values.items()}}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()

    def record_epoch(self, values: dict[str, Any], step: int) -> None:
        """Record an epoch in metrics.jsonl, summary.csv and TensorBoard."""
        self.record("epoch", values)
        self._append_summary(values)
        for key, value in values.items():
            if isinstance(value, int | float) and key not in ("epoch", "stage"):
                self._tensorboard.add_scalar(f"epoch/{key}", value, step)
        self._tensorboard.flush()

    def record_step(self, values: dict[str, Any], step: int) -> None:
        """Record a log step in metrics.jsonl and TensorBoard."""
        self.record("step", values)
        for key in ("loss", "lr", "images_per_second"):
            self._tensorboard.add_scalar(f"train/{key}", values[key], step)

    def epochs(self) -> list[dict[str, Any]]:
        """Return the epoch records written so far."""
        return [line for line in read_records(self.file("metrics.jsonl")) if line["kind"] == "epoch"]

    def close(self) -> None:
        self._metrics.close()
        self._tensorboard.close()
        self._lock.close()
        self.file(LOCK).unlink(missing_ok=True)

    def _append_summary(self, values: dict[str, Any]) -> None:
        path = self.file("summary.csv")
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, SUMMARY_COLUMNS, restval="", extrasaction="ignore")
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})

    def _tidy(self, epochs: int, steps: int) -> None:
        """Remove what belongs to the time after the checkpoint, and what a kill left half written."""
        for leftover in self.path.glob(".*"):
            if leftover.name != LOCK:
                leftover.unlink()
        self.file("result.json").unlink(missing_ok=True)
        self.file("bad_samples.csv").unlink(missing_ok=True)
        kept = [
            line
            for line in read_records(self.file("metrics.jsonl"))
            if (line["epoch"] < epochs if line["kind"] == "epoch" else line["step"] <= steps)
        ]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        self.file("summary.csv").unlink(missing_ok=True)
        for line in kept:
            if line["kind"] == "epoch":
                self._append_summary({key: value for key, value in line.items() if value is not None})


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def new_run_path(output: Path, model: str, loader: str, name: str) -> Path:
    """Return a folder for a new run that does not exist yet: ``<output>/<time>-<model>-<loader>[-name]``."""
    parts = [time.strftime("%Y%m%d-%H%M%S"), model, loader, *([name] if name else [])]
    base = output / re.sub(r"[^\w.+-]+", "_", "-".join(parts))
    candidate, number = base, 1
    while candidate.exists():
        number += 1
        candidate = base.with_name(f"{base.name}.{number}")
    return candidate


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
