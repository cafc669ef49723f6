"""The benchmark of transform orders on a few images. No test looks at a time."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench import transform_check, transform_dali, transform_order
from bench.measure import Spread
from bench.transform_cases import CASES
from bench.transform_measure import Timing
from bench.transform_report import Result, report
from loaders.transforms.geometry import HorizontalFlip
from loaders.transforms.legality import Swap
from loaders.transforms.planner import ordered
from loaders.transforms.values import Contrast
from tests.folders import image_folder
from tests.images import photo
from tests.transform_costs import PixelCosts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("photos"), side=60)


@pytest.fixture(autouse=True)
def no_measured_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform_order, "machine_costs", PixelCosts)


def options_for(folder: Path, *arguments: str) -> list[str]:
    return ["--data", str(folder), "--images", "2", "--rounds", "1", "--json", str(folder / "out.json"), *arguments]


def test_orders_are_measured_and_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = folder / "page.html"
    arguments = ["--case", "default,geometry", "--backends", "torchvision,kernels", "--html", str(page)]
    assert transform_order.main(options_for(folder, *arguments)) == 0
    shown = capsys.readouterr().out
    assert "crop+resize → flip → to float → normalize" in shown
    records = json.loads((folder / "out.json").read_text())
    for backend in ("torchvision", "kernels"):
        chosen = [r for r in records if (r["case"], r["backend"]) == ("default", backend)]
        assert len(chosen) == 12  # two of the four keep their order
        assert chosen[0]["class"] == "as written"
        assert chosen[0]["max_difference"] == 0
        assert sum(record["planned"] for record in chosen) == 1
        assert all(record["max_difference"] <= record["tolerance"] for record in chosen)
        illegal = [r for r in records if (r["backend"], r["class"]) == (backend, "illegal")]
        assert len(illegal) == 3
        assert min(record["max_difference"] for record in illegal) > 10
    text = page.read_text()
    assert text.count("<svg viewBox") == 2  # a chart for each case
    assert "data:image/png;base64," in text
    assert "http" not in text  # nothing from outside


def test_dali_does_the_same(folder: Path) -> None:
    if reason := transform_dali.why_left_out((HorizontalFlip(),)):
        pytest.skip(reason)
    for case in ("default", "blur-resize"):
        program = CASES[case].program
        photos = [np.array(photo(90, 70, seed)) for seed in range(2)]
        results, left_out = transform_order.measure_case(case, ["torchvision", "dali"], photos, PixelCosts(), 1, 4)
        assert not left_out
        samples = {one.backend: one.sample for one in results if one.plan.numbers == tuple(range(len(program)))}
        inner = np.s_[4:-4, 4:-4]  # DALI's resize looks beyond its window
        assert np.abs(samples["torchvision"][inner] - samples["dali"][inner]).mean() < 1
        assert all(one.difference[0] < 3 for one in results if one.plan.swap <= Swap.EXACT and one.difference)


def test_what_dali_cannot_do_is_said() -> None:
    reason = transform_dali.why_left_out((HorizontalFlip(), Contrast((0.5, 1.0))))
    assert reason is not None
    assert "Contrast" in reason or "not installed" in reason


def test_many_orders_are_thinned_out(folder: Path) -> None:
    case = CASES["jitter"]
    plans = transform_order.orders_of(case, PixelCosts(), (375, 500), "torchvision", 5)
    assert [plan.swap for plan, _ in plans].count(Swap.NO) == len(case.illegal)
    assert len(plans) == 5 + len(case.illegal)
    assert sum(chosen for _, chosen in plans) == 1


def test_the_planner_is_checked(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [np.array(photo(110, 90, seed)) for seed in range(2)]
    monkeypatch.setattr(transform_order, "read_photos", lambda dataset, count: small)
    page = folder / "check.html"
    assert transform_order.main(options_for(folder, "--check", "6", "--html", str(page))) == 0
    shown = capsys.readouterr().out
    assert "outside class" in shown and "largest difference" in shown
    assert page.read_text().count("<svg") == 1
    records = json.loads((folder / "out.json").read_text())
    assert [record["backend"] for record in records] == 2 * ["pillow", "torchvision", "kernels"]
    assert all(record["stays_in_class"] and record["ratio_to_best"] >= 1 for record in records)
    monkeypatch.setattr(transform_check, "difference", lambda *_: (99.0, 1.0))
    assert transform_order.main(options_for(folder, "--check", "1")) == 1


def test_no_photos_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert transform_order.main(["--data", str(tmp_path / "missing")]) == 1
    assert "error:" in capsys.readouterr().err


def test_bars_show_class_and_prediction() -> None:
    program = CASES["default"].program
    written, swapped = (
        ordered(program, order, PixelCosts(), (90, 70), "pillow") for order in ((0, 1, 2, 3), (3, 0, 1, 2))
    )
    sample = np.zeros((4, 4, 3), np.float32)
    timings = [Timing(Spread(cost, cost - 0.1, cost + 0.1), Spread(1, 1, 1)) for cost in (1.0, 2.0)]
    results = [
        Result("default", backend, plan, backend == "pillow", timing, (0.0, 0.0), sample)
        for backend, plan, timing in (("pillow", written, timings[0]), ("dali", swapped, timings[1]))
    ]
    found = report("default", results, ["why something is left out"], "here")
    ((_, chart),) = found.section.charts
    drawn = ElementTree.fromstring(chart)
    widths = [float(one.attrib["width"]) for one in drawn.iter("rect") if float(one.attrib["height"]) > 10]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
    shown = {text.text for text in drawn.iter("text")}
    assert {"pillow", "dali", "predicted", "1 (0.9–1.1)  as written"} <= shown
    limits = [path for path in drawn.iter("path") if path.attrib["class"] == "limit"]
    assert len(limits) == 2, "one in the key, one of ours; DALI has no prediction"
    assert found.section.sentences == ["why something is left out"]
    assert [row[1] for row in found.sheets[0].rows] == ["pillow", "dali"]
