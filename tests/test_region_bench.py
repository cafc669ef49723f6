"""The region loader's benchmarks: rows against bars, steps of the path. No test looks at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bench import region_profile, region_speed, region_targets
from bench.measure import Measurement, Round, Spread
from bench.peers import Work
from bench.region_profile_results import STEPS, TOTALS
from bench.region_targets import TARGETS, Row, Side, Target
from bench.throughput import Result
from bench.variants import why_missing
from kernels.regions import Status
from loaders.opening import open_data
from tests.folders import image_folder

RATIO = Target("224", "mine / theirs", Side("roi", 224, 1), Side("torch", 224, 1), 2.0, 4.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := why_missing("roi"):
        pytest.skip(reason)
    return image_folder(tmp_path_factory.mktemp("photos"))


def row(figure: Spread | None, aim: float | None = 4.0, at_most: bool = False) -> Row:
    return Row("a row", "uint8", 2.0, aim, at_most, figure, None if figure else "there is no such thing")


def test_rows_are_held_against_bar_and_aim() -> None:
    assert [row(Spread(figure, 1.0, 5.0)).verdict() for figure in (1.9, 2.0, 3.9, 4.0)] == ["no", "bar", "bar", "aim"]
    assert row(Spread(9.0, 9.0, 9.0), aim=None).verdict() == "bar"
    assert [row(Spread(figure, 0, 5), 1.0, True).verdict() for figure in (2.1, 2.0, 1.0)] == ["no", "bar", "aim"]
    assert row(None).verdict() == "-"
    assert row(Spread(3.14159, 3.0, 3.5)).cells() == ["a row", "3.14 (3.00-3.50)", "", "2.00", "4.00", "bar"]
    assert row(None, aim=None).cells() == ["a row", "", "", "2.00", "", "-"]
    assert [row(figure).record("here")["met"] for figure in (Spread(3, 2, 4), Spread(1, 1, 1), None)] == [
        True,
        False,
        None,
    ]


def test_ratios_are_those_of_the_medians_with_the_spread_of_the_rounds(folder: Path) -> None:
    work = Work(open_data(str(folder), show_progress=False).train, 224, 8, 1, "uint8", "cpu")

    def result(name: str, *rates: int) -> Result:
        return Result(name, work, Measurement(0.1, tuple(Round(rate, 1.0, 1.0, 0.0, 1.0) for rate in rates)), {})

    made = Row.comparison(RATIO, "uint8", (result("roi", 300, 600, 400), result("torch", 100, 150, 200)))
    assert made.figure == Spread(400 / 150, 2.0, 4.0)
    assert made.cpu_ratio == pytest.approx(400 / 150)  # each round took one second of CPU time
    assert [cell["loader"] for cell in made.record("here")["cells"]] == ["roi", "torch"]
    assert made.cells()[0] == "mine / theirs"
    loud = Measurement(0.1, (Round(100, 1.0, 1.0, 0.5, 1.0),) * 3)
    other = Result("torch", work, loud, {})
    assert Row.comparison(RATIO, "uint8", (made.results[0], other)).cells()[0] == "mine / theirs*"
    assert region_speed.rate_cells(made.results[1])[:4] == ["torch", "224", "1", "150 (100-200)"]


def test_every_side_is_measured_once_a_run() -> None:
    of_run = [target for target in TARGETS if target.run == "224" and not target.why_missing]
    sides = region_speed.sides_of(of_run)
    assert len(set(sides)) == len(sides)
    assert {side for target in of_run for side in (target.side, target.other)} == set(sides)


def options_for(folder: Path, *arguments: str) -> list[str]:
    return ["--data", str(folder), "--batch-size", "8", "--json", str(folder / "out.json"), *arguments]


def test_speed_and_memory_are_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--runs", "threads,memory", "--output", "uint8", "--seconds", "0.2", "--rounds", "1", "--device", "cpu"]
    assert region_speed.main(options_for(folder, *run)) == 0
    shown = capsys.readouterr().out
    assert "two threads / one" in shown and "private memory" in shown
    threads, memory = json.loads((folder / "out.json").read_text())
    if threads["why_missing"] is None:
        assert [cell["num_workers"] for cell in threads["cells"]] == [2, 1]
        assert 0 < threads["figure"]["min"] <= threads["figure"]["max"]
    assert (memory["unit"], memory["figure"]["median"] > 0) == ("MB", True)


def test_what_cannot_be_measured_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(region_targets, "why_missing", lambda name: "no peers here" if "peer" in name else None)
    assert region_speed.main(options_for(folder, "--runs", "160", "--output", "uint8")) == 0
    assert "Not measured: no peers here." in capsys.readouterr().out
    (record,) = json.loads((folder / "out.json").read_text())
    assert (record["figure"], record["met"], record["cells"]) == (None, None, [])


def test_a_packed_set_cannot_be_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = open_data(str(folder), show_progress=False)
    packed = region_speed.prepare("roi", data, data.train)
    assert region_speed.main(["--data", str(packed)]) == 1
    assert "reads image files" in capsys.readouterr().err


def test_steps_add_up_to_the_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--loaders", "roi,roi:plain", "--resolutions", "16,32", "--repetitions", "1"]
    assert region_profile.main(options_for(folder, *run)) == 0
    assert "roi:plain: 24 images" in capsys.readouterr().out
    records = json.loads((folder / "out.json").read_text())
    assert len(records) == 2 * 2 * len(STEPS + TOTALS)
    for loader in ("roi", "roi:plain"):
        for resolution in (16, 32):
            chosen = [r for r in records if (r["loader"], r["resolution"]) == (loader, resolution)]
            times = {record["step"]: record["cpu_ms_per_image"]["min"] for record in chosen}
            assert times["sum"] == pytest.approx(sum(times[step] for step in STEPS))
            assert times["whole"] == pytest.approx(times["sum"] + times["rest"])
            assert times["whole"] > 0 < times["decode"]


def test_images_for_pillow_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if reason := why_missing("roi"):
        pytest.skip(reason)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("CMYK" if number else "RGB", (40, 40), 99).save(tmp_path / "train" / name / f"{number}.jpg")
    options = ["--loaders", "roi:plain", "--resolutions", "16", "--repetitions", "1"]
    assert region_profile.main(options_for(tmp_path, *options)) == 0
    assert "left out" in capsys.readouterr().out


def test_a_step_that_does_not_end_where_it_should_is_an_error(folder: Path) -> None:
    path = region_profile.SamplePath(open_data(str(folder), show_progress=False).train, 32, 8)
    assert not len(path.unreadable())
    with pytest.raises(RuntimeError, match="ended with OK in place of BAD"):
        path.load(True, path.out, path.worker.scratch, Status.BAD)
