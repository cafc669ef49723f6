"""A run over its epochs: its stages, and the curves of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from engine.charts import Band, Series, line_chart
from engine.time_spent import Record, TimeSpent, time_spent


@dataclass(frozen=True)
class Stage:
    """Consecutive epochs of one size."""

    resolution: int | None
    batch_size: int | None
    start: int  # epochs done before it
    epochs: list[Record]

    @property
    def spent(self) -> TimeSpent:
        return time_spent(self.epochs)

    @property
    def best_top1(self) -> float | None:
        return max((e["top1"] for e in self.epochs if e.get("top1") is not None), default=None)

    @property
    def images_per_second(self) -> float | None:
        return training_rate(self.epochs)


def find_stages(epochs: Sequence[Record]) -> list[Stage]:
    """Cut the epochs where the stage, the resolution or the batch size changes."""
    stages: list[Stage] = []
    previous: tuple[Any, ...] | None = None
    for position, record in enumerate(epochs):
        key = (record.get("stage"), record.get("resolution"), record.get("batch_size"))
        if key != previous:
            stages.append(Stage(record.get("resolution"), record.get("batch_size"), position, []))
            previous = key
        stages[-1].epochs.append(record)
    return stages


def training_rate(epochs: Sequence[Record]) -> float | None:
    """Images per second over the training time of several epochs."""
    pairs = [
        (e["images_per_second"], e["train_seconds"])
        for e in epochs
        if e.get("images_per_second") and e.get("train_seconds")
    ]
    seconds = sum(pair[1] for pair in pairs)
    return sum(rate * time for rate, time in pairs) / seconds if seconds else None


def curves(
    records: Sequence[Record], epochs: Sequence[Record], stages: Sequence[Stage]
) -> list[list[tuple[str, Markup]]]:
    """Return the charts over time, caption and SVG: the large ones, and the small ones."""
    done = [float(position) for position in range(1, len(epochs) + 1)]
    bands = [Band(s.start, s.start + len(s.epochs), f"{s.resolution} px") for s in stages if s.resolution]

    def series(key: str, name: str, color: str, factor: float = 1.0, **options: Any) -> Series:
        y = [None if e.get(key) is None else factor * float(e[key]) for e in epochs]
        return Series(name, done, y, color, **options)

    step_x, steps = _steps(records, epochs)
    losses = [series("train_loss", "training", "train"), series("val_loss", "validation", "val")]
    if steps:
        losses.insert(0, Series("step", step_x, [s.get("loss") for s in steps], "step", labeled=False, marks=False))
    rates = series("lr", "learning rate", "train", labeled=False)
    if steps:
        rates = Series("learning rate", step_x, [s.get("lr") for s in steps], "train", labeled=False, marks=False)
    accuracies = [
        series("train_top1", "training", "train"),
        series("top5", "top-5", "faint"),
        series("top1", "top-1", "val"),
    ]
    if all((e.get("top5") or 0) >= 99.995 for e in epochs):
        accuracies.pop(1)
    single: dict[str, Any] = {"labeled": False, "bars": True}
    percent: dict[str, Any] = {"unit": "%", "top": 100.0}
    small: dict[str, Any] = {"from_zero": True, "width": 350, "height": 190}
    waiting = series("data_wait_fraction", "waiting", "wait", 100.0, **single)
    rows: list[list[tuple[str, list[Series], dict[str, Any]]]] = [
        [
            ("Loss", losses, {}),
            ("Accuracy", accuracies, percent),
        ],
        [
            ("Learning rate", [rates], small),
            ("Throughput in images/s", [series("images_per_second", "images/s", "train", **single)], small),
            ("Waiting for data, of the training time", [waiting], small | percent),
            ("GPU utilization", [series("gpu_utilization", "busy", "train", **single)], small | percent),
            ("GPU power", [series("power_w", "power", "evaluation", **single)], small | {"unit": "W"}),
        ],
    ]
    drawn = [[(name, line_chart(lines, bands, title=name, **options)) for name, lines, options in row] for row in rows]
    return [[(name, chart) for name, chart in row if chart] for row in drawn]


def _steps(records: Sequence[Record], epochs: Sequence[Record]) -> tuple[list[float], list[Record]]:
    """Return the step records, and where they lie on an axis of epochs; nothing where that is not known."""
    if not epochs or any(e.get("steps") is None for e in epochs):
        return [], []
    ends = [int(e["steps"]) for e in epochs]
    by_step = {r["step"]: r for r in records if r.get("kind") == "step" and r["step"] <= ends[-1]}
    steps = [by_step[step] for step in sorted(by_step)]
    x = np.interp([step["step"] for step in steps], [0, *ends], np.arange(len(ends) + 1))
    return x.tolist(), steps
