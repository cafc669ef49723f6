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
from bench.transform_report import Bar, Chart, bar_chart
from loaders.transforms.geometry import HorizontalFlip
from loaders.transforms.legality import Swap
from loaders.transforms.program import Program
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
    assert text.count("<svg viewBox") == 4
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
    assert transform_order.main(options_for(folder, "--check", "6")) == 0
    assert "outside class" in capsys.readouterr().out
    records = json.loads((folder / "out.json").read_text())
    assert [record["backend"] for record in records] == 2 * ["pillow", "torchvision", "kernels"]
    assert all(record["stays_in_class"] and record["ratio_to_best"] >= 1 for record in records)
    monkeypatch.setattr(transform_check, "difference", lambda *_: (99.0, 1.0))
    assert transform_order.main(options_for(folder, "--check", "1")) == 1


def test_no_photos_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert transform_order.main(["--data", str(tmp_path / "missing")]) == 1
    assert "error:" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        transform_order.parse(["--check", "3", "--html", "page.html"])


def test_charts_are_well_formed() -> None:
    bars = [
        Bar("crop+resize → flip", "as written", False, Spread(1.0, 0.9, 1.2), 0.8, (0.0, 0.0)),
        Bar("flip <&> crop", "illegal", False, Spread(2.0, 1.9, 2.2), None, None),
    ]
    drawn = ElementTree.fromstring(bar_chart(Chart("default", "A & B", "pillow", bars), 2.2))
    widths = [float(one.get("width", 0)) for one in drawn.iter("rect")]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
    assert Program((HorizontalFlip(),)).normalization is None
