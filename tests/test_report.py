from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.charts import Band, Series, line_chart, number, ticks
from engine.curves import find_stages
from engine.metrics import EvaluationResult, write_class_counts_csv, write_confusion_csv, write_per_class_csv
from engine.report import ReportError, duration, write_report
from engine.samples import choose_samples

CONFIG = """
[data]
data = "/photos/<birds> & fish"
[loader]
loader = "torch"
num_workers = 2
[resolution]
resolutions = [96, 128]
[model]
model = "resnet10t"
[optimizer]
epochs = 6
[run]
device = "cpu"
"""


def epoch_record(number: int, **changes: Any) -> dict[str, Any]:
    large = number >= 3
    progress = (number + 1) / 6
    wait = 3.0 if not large else 0.4
    train = 30.0 if not large else 48.0
    return {
        "kind": "epoch", "epoch": number, "stage": int(large), "resolution": 128 if large else 96, "batch_size": 64,
        "lr": 0.2 * (1 - progress), "train_loss": 2.2 - 1.4 * progress, "train_top1": 25 + 60 * progress,
        "val_loss": 2.0 - 1.1 * progress, "top1": 30 + 58 * progress, "top5": 75 + 23 * progress,
        "images_per_second": 3600 / train, "seconds": train + 6, "train_seconds": train, "val_seconds": 4.5,
        "data_wait_seconds": wait, "data_wait_fraction": wait / train, "switch_seconds": 1.0 if number == 3 else 0.0,
        "samples_seen": 3600 * (number + 1), "steps": 57 * (number + 1), "bad_samples": 0, "cpu_ms_per_image": 9.0,
    } | changes  # fmt: skip


def make_run(folder: Path, epochs: int = 6, num_classes: int = 10, photos: list[Path] | None = None) -> Path:
    """Write what a run leaves, with made-up numbers."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(CONFIG)
    (folder / "env.json").write_text(
        json.dumps({"cpu": "A processor", "usable_cores": 2.0, "packages": {"torch": "2.9"}, "argv": ["train", "x"]})
    )
    lines: list[dict[str, Any]] = []
    for index in range(epochs):
        for step in range(1, 11):
            seen = 3600 * index + 360 * step
            loss = 2.3 - 1.4 * seen / 21600 + random.normal(0, 0.08)
            lr = 0.2 * min(seen / 4000, (21600 - seen) / 17600)
            lines.append({"kind": "step", "step": 57 * index + 5 * step, "epoch": index, "loss": loss, "lr": lr})
        lines.append(epoch_record(index))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "st')
    classes = [f"class {index}" if index else "<script>alert(1)</script>" for index in range(num_classes)]
    confusion = random.integers(0, 4, (num_classes, num_classes)) * (random.random((num_classes, num_classes)) < 0.3)
    confusion += np.diag(random.integers(25, 40, num_classes))
    result = EvaluationResult(0.9, 88.0, 98.0, int(confusion.sum()), confusion)
    write_confusion_csv(folder / "confusion.csv", result, classes)
    write_per_class_csv(folder / "per_class.csv", result, classes)
    counts = random.integers(200, 400, num_classes)
    write_class_counts_csv(folder / "class_counts.csv", classes, counts, confusion.sum(axis=1))
    (folder / "resolutions.json").write_text(json.dumps([{"resolution": 128, "top1": 88.0, "top5": 98.0, "loss": 0.9}]))
    (folder / "bad_samples.csv").write_text("split,index,path,reason\nx/train,3,/photos/a.jpg,the file is empty\n")
    samples = [
        {"path": str(path), "label": classes[i % 3], "predicted": classes[i % 2], "probability": 0.5}
        for i, path in enumerate(photos or [])
    ]
    (folder / "predictions.json").write_text(json.dumps(samples))
    return folder


class Page(HTMLParser):
    """Checks that elements are nested rightly, and collects text and what is referred to."""

    VOID = frozenset({"meta", "img", "br", "link"})
    SELF_CLOSED = frozenset({"rect", "line", "polyline", "polygon", "circle"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.SELF_CLOSED

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += " " + " ".join(data.split())


def test_the_report_holds_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    photos = []
    for index in range(6):
        photos.append(tmp_path / f"{index}.jpg")
        Image.new("RGB", (40, 30), (40 * index, 80, 120)).save(photos[-1])
    photos[5].unlink()
    path = write_report(make_run(tmp_path / "run", photos=photos))
    page = Page(path)
    assert path.stat().st_size < 2_000_000
    assert all(reference.startswith("data:image/jpeg;base64,") for reference in page.references)
    assert len(page.references) == 5
    assert "no longer there" in page.words
    for expected in (
        "resnet10t on <birds> & fish", "The model is the limit", "88.00 %", "96 px", "128 px", "4 min 30 s",
        "What is taken for what", "class 7", "the file is empty", "num_workers", "A processor, 2 cores",
    ):  # fmt: skip
        assert expected in page.words, expected
    assert "<script>alert" not in path.read_text()
    assert "http" not in path.read_text()


@pytest.mark.parametrize(("num_classes", "cells"), [(2, 4), (30, 900), (1000, 400)])
def test_any_number_of_classes_stays_readable_and_small(tmp_path: Path, num_classes: int, cells: int) -> None:
    path = write_report(make_run(tmp_path / "run", num_classes=num_classes))
    text = path.read_text()
    assert len(re.findall(r'<rect class="(?:right|wrong|none)"', text)) == cells
    assert path.stat().st_size < 2_000_000
    Page(path)


def test_the_classes_shown_of_many_are_those_with_most_errors(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    confusion = np.diag(np.full(50, 10))
    confusion[41, 7] = 5
    classes = [f"species {index}" for index in range(50)]
    write_confusion_csv(run / "confusion.csv", EvaluationResult(1.0, 1.0, 1.0, 505, confusion), classes)
    text = write_report(run).read_text()
    assert "species 41 taken for species 7: 5 (33.3 %)" in text
    assert "The 20 of 50 classes" in text


def test_every_part_may_be_missing(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole")
    for name in [p.name for p in whole.iterdir() if p.name != "metrics.jsonl"]:
        kept = (whole / name).read_bytes()
        (whole / name).unlink()
        Page(write_report(whole))
        (whole / name).write_bytes(kept)
    for name in [p.name for p in whole.iterdir() if p.name != "metrics.jsonl"]:
        (whole / name).unlink()
    assert "Training on images" in Page(write_report(whole)).words


def test_an_interrupted_first_epoch_gives_a_short_report(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run", epochs=0)))
    assert "No epoch was finished" in page.words


def test_one_epoch_without_validation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs=1)
    record = epoch_record(0, val_loss=None, top1=None, top5=None, val_seconds=0.0)
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (run / "result.json").write_text('{"finished": false, "reason": "SIGTERM was received"}')
    words = Page(write_report(run)).words
    assert "no validation" in words
    assert "1 of 6 epochs: SIGTERM was received" in words
    assert "Top-1 accuracy" not in words


def test_gpu_figures_appear_where_they_were_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "Energy" not in Page(write_report(run)).words
    lines = [epoch_record(n, gpu_utilization=96.0, power_w=300.0, joules=36_000.0) for n in range(6)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = Page(write_report(run)).words
    assert "60 Wh" in words
    assert "mean 300 W" in words
    assert "GPU power" in words


def test_steps_are_drawn_between_the_epochs_they_belong_to(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "run")).read_text()
    rates = text.split("Learning rate</h3>")[1].split("</svg>")[0]
    assert len(re.search(r'<polyline class="line fine" points="([^"]+)"', rates)[1].split()) == 60  # type: ignore[index]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="neither metrics"):
        write_report(tmp_path)


def test_stages_are_cut_where_size_or_batch_changes() -> None:
    stages = find_stages([epoch_record(n) for n in range(6)] + [epoch_record(6, batch_size=32)])
    assert [(s.resolution, s.batch_size, s.start, len(s.epochs)) for s in stages] == [
        (96, 64, 0, 3), (128, 64, 3, 3), (128, 32, 6, 1)
    ]  # fmt: skip


def test_samples_are_confident_errors_and_right_ones_of_all_classes() -> None:
    labels = np.repeat(np.arange(4), 25)
    predicted = labels.copy()
    predicted[:20] = 1
    probabilities = np.linspace(0.9, 0.1, 100)
    chosen = choose_samples(labels, predicted, probabilities, count=12)
    assert chosen[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(set(labels[chosen[6:]])) == [0, 1, 2, 3]
    assert (predicted == labels)[chosen[6:]].all()
    assert len(choose_samples(labels, labels, probabilities)) == 24
    assert len(choose_samples(labels[:0], labels[:0], probabilities[:0])) == 0
    assert len(choose_samples(labels[:5], labels[:5] + 1, probabilities[:5])) == 5


def test_charts_leave_out_what_was_not_measured() -> None:
    assert line_chart([Series("a", [1, 2], [None, float("nan")], "train")], title="x") == ""
    chart = line_chart(
        [Series("a", [1, 2, 3], [1.0, None, 3.0], "train"), Series("b", [1, 2, 3], [1.0, 2.0, 3.0], "val")],
        [Band(0, 2, "64 px"), Band(2, 3, "96 px")],
        title="x",
    )
    assert chart.count("<circle") == 5
    assert "64 px" in chart
    assert "nan" not in chart
    heights = [float(y) for y in re.findall(r'class="label" x="[\d.]+" y="([\d.]+)"', chart)]
    assert heights[1] - heights[0] >= 12.9  # equal values, yet no label covers the other


@pytest.mark.parametrize("span", [(0, 1), (0, 0), (5, 5), (-3, 12), (0.001, 0.0013), (0, 123456), (88.1, 99.7)])
def test_ticks_are_few_round_and_span_the_values(span: tuple[float, float]) -> None:
    found = ticks(*span)
    assert 2 <= len(found) <= 7
    assert found == sorted(found)
    assert found[0] <= span[0]
    assert found[-1] >= span[1]


def test_numbers_and_times_are_written_for_people() -> None:
    assert [number(v) for v in (0, 0.00025, 0.123456, 12.34, 1234.5)] == ["0", "2.5e-4", "0.123", "12.3", "1,234"]
    assert number(88, "%") == "88 %"
    assert [duration(s) for s in (3.21, 42, 61, 3720)] == ["3.2 s", "42 s", "1 min 01 s", "1 h 02 min"]


def test_tables_survive_names_with_commas_and_line_breaks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "bad_samples.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["x/val", 1, 'a,"b"\nc.jpg', "truncated"])
    assert "2 in all" in Page(write_report(run)).words
