"""The bench of predictions: its slow disk, its photos, what it concludes, and one case from end to end."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.prediction_cases import CASES, Bench, Case, Predicted, make_photos
from bench.predictions import HEADINGS, Result, Round, measure, report, sheet
from bench.predictions import main as run_bench
from bench.slow_disk import SlowDisk
from bench.training_runs import Outcome, RunError
from engine.config import Config
from loaders.bad_samples import BadSamples
from loaders.plan import EpochPlan, View
from loaders.registry import create_loader
from tests.folders import image_folder, opened
from tests.images import dataset_of, photo


def test_a_read_takes_its_time_and_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(5000))
    disk = SlowDisk(50_000, tmp_path / "queue")
    read = disk.slowed(np.fromfile)
    begin = time.monotonic()
    assert read(file, np.uint8).tolist() == [0] * 5000
    assert len(read(file, np.uint8)) == 5000
    assert time.monotonic() - begin >= 0.2
    assert disk.bytes_served() == 10_000


def _read(queue: Path, count: int) -> None:
    disk = SlowDisk(100_000, queue)
    for _ in range(count):
        disk.serve(2000)


def test_processes_share_the_disk(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=_read, args=(tmp_path / "queue", 5)) for _ in range(3)]
    begin = time.monotonic()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert time.monotonic() - begin >= 3 * 5 * 2000 / 100_000  # as long as one after the other


def test_the_loader_s_reads_are_slowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(image_folder(tmp_path / "data", train=6, val=3), tmp_path)
    disk = SlowDisk(float(data.train.sizes.sum()) / 0.2, tmp_path / "queue")
    monkeypatch.setattr(np, "fromfile", disk.slowed(np.fromfile))
    with create_loader("torch", [data.train], 0, BadSamples()) as loader:
        assert len(list(loader.run(EpochPlan(data.train, 0, View(16, 3))))) == 2
    assert disk.bytes_served() == data.train.sizes.sum()


def test_what_it_does_not_slow_down_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.slow_disk", "--bytes-per-second", "1", "--queue", str(tmp_path / "q"), "os"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[1])
    assert done.returncode == 2
    assert "engine.train" in done.stderr


def test_photos_are_large_and_of_the_set_s_classes(tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        photo(40, 30, number).save(path)
        paths.append(path)
    make_photos(dataset_of(paths, [0, 0, 1, 1]), tmp_path / "photos", count=2, copies=3, side=120)
    made = sorted((tmp_path / "photos").rglob("*.jpg"))
    assert len(made) == 6
    assert len({path.parent for path in made}) == 2
    with Image.open(made[0]) as image:
        assert image.size == (120, 120)
        plain = photo(40, 30, 0).resize((120, 120), Image.Resampling.BICUBIC)
        assert 5 < np.abs(np.asarray(image, float) - np.asarray(plain, float)).mean() < 20


def result(case: Case, *rounds: tuple[float, float, str, str]) -> Result:
    made = [
        Round(Predicted(predicted, limit, 1, 2e-3), measured, 2.5e-3, cause, "So it is.", 0.02, False)
        for predicted, measured, limit, cause in rounds
    ]
    return Result(case, made)


@pytest.mark.parametrize(
    ("rounds", "rate", "limits"),
    [
        ([(100, 84, "disk", "disk")], True, True),
        ([(100, 82, "disk", "disk")], False, True),
        ([(100, 126, "disk", "disk")], False, True),
        ([(100, 100, "disk", "disk"), (100, 100, "disk", "cores")], True, False),
        ([(100, 100, "cores", "disk")], True, False),
        ([(100, 50, "disk", "disk"), (100, 100, "disk", "disk"), (100, 101, "disk", "disk")], True, True),
    ],
)
def test_what_counts_as_right(rounds: list[tuple[float, float, str, str]], rate: bool, limits: bool) -> None:
    found = result(CASES[0], *rounds)
    assert (found.rate_is_met, found.limits_agree) == (rate, limits)
    (row,) = sheet([found]).rows
    assert len(row) == len(HEADINGS)
    assert row[-1] == ("yes" if rate and limits else "no")


def test_every_case_has_a_limit_of_its_own() -> None:
    assert [case.limit for case in CASES] == ["disk", "augmentation", "model", "workers"]


def test_the_report_says_it_in_words() -> None:
    found = report([result(CASES[3], (100, 95, "workers", "workers"))], "a machine")
    (sentence,) = found.section.sentences
    assert "1.05 times the measured one, within 20%" in sentence
    assert "were right that the number of workers sets the limit" in sentence
    (record,) = found.records
    assert record["cpu_ratio"]["median"] == pytest.approx(0.8)
    assert json.loads(json.dumps(record)) == record


def bench(folder: Path, mean_bytes: float) -> Bench:
    return Bench(folder, str(folder / "data"), mean_bytes, threads=1, seconds=0.1, doctor_seconds=0.5, machine="here")


def test_the_doctor_foresees_a_slow_disk(tmp_path: Path) -> None:
    data = opened(image_folder(tmp_path / "data", train=12, val=3), tmp_path)
    found = bench(tmp_path, float(data.train.sizes.mean())).predict(CASES[0])
    assert (found.limit, found.num_workers) == ("disk", 2)
    assert 0 < found.rate <= 100.1  # what the slow disk allows
    assert found.cpu_seconds > 0


def test_cases_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "result.json").write_text('{"cause": "model", "verdict": "The model is the limit."}')
    turns: list[str] = []

    def predict(self: Bench, case: Case) -> Predicted:
        turns.append(f"predict {case.name}")
        return Predicted(100.0, "model", 1, 1e-3)

    def train(self: Bench, case: Case, predicted: Predicted, number: int) -> Outcome:
        turns.append(f"train {case.name} {number}")
        epoch = {"images_per_second": 90.0, "train_seconds": 10.0, "cpu_ms_per_image": 1.1}
        return Outcome(tmp_path, Config(), (epoch, epoch), 1.0, 0.3)

    monkeypatch.setattr(Bench, "predict", predict)
    monkeypatch.setattr(Bench, "train", train)
    seen: list[int] = []
    cases = (CASES[1], CASES[2])
    measure(bench(tmp_path, 1.0), cases, 2, lambda results: seen.append(len(results[0].rounds)))
    in_round = [f"{what} {case.name}{end}" for case in cases for what, end in (("predict", ""), ("train", " {}"))]
    assert turns == [text.format(number) for number in range(2) for text in in_round]
    assert seen == [1, 2]


def test_a_doctor_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 2, "", "error: no such model\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(RunError, match=r"the doctor failed on slow model:\nerror: no such model"):
        bench(tmp_path, 1.0).predict(CASES[2])


def test_no_data_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_bench(["--data", "/no/such/folder"]) == 1
    assert "does not exist" in capsys.readouterr().err
