"""How many workers are enough: the knee of constructed curves, what is said of it, charts, and the cells."""

from __future__ import annotations

import csv
import itertools
import json
import pickle
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import num_workers, worker_cells
from bench.charts import Bar, Box, Line, bar_chart, count_chart, spread_out
from bench.measure import Cell, Measurement, Round, Spread, Step
from bench.worker_cells import Meter, Setting, cell, load, train
from bench.worker_knee import SPREAD_TOLERANCE, TOLERANCE, Point, explain, explain_depth, knee
from bench.worker_results import Result
from loaders import registry
from loaders.opening import open_data
from tests.folders import image_folder

LETTER, LINE = 6.4, 11.0  # a letter's width and a capital's height, pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("photos"))


# The knee


def flat(median: float) -> Spread:
    return Spread(median, median, median)


rates = st.floats(1, 1e5)
spreads = st.lists(rates, min_size=1, max_size=5).map(Spread.of)
rate_curves = st.dictionaries(st.integers(0, 16), spreads, min_size=1, max_size=6)


def test_the_knee_of_curves_that_people_would_agree_on() -> None:
    assert knee({0: flat(500), 1: flat(500), 2: flat(1000), 3: flat(1010)}) == 2
    assert knee({0: flat(500), 1: flat(500)}) == 0
    assert knee({1: flat(500), 2: flat(900), 3: flat(1000)}) == 3
    assert knee({1: flat(960), 2: flat(1000)}) == 1  # within 5 %
    assert knee({1: flat(900), 2: Spread(1000, 890, 1100)}) == 1  # within the spread of the best
    assert knee({1: flat(899), 2: Spread(1000, 590, 1100)}) == 2  # one slow round of the best is none for others
    assert knee({0: flat(600), 1: flat(620), 2: Spread(1200, 590, 1240)}) == 2
    assert knee({1: Spread(900, 700, 1100), 2: flat(1000)}) == 2  # its own spread is no excuse


@given(rate_curves)
def test_the_knee_is_the_smallest_count_that_is_good_enough(curve: dict[int, Spread]) -> None:
    chosen, best = knee(curve), max(curve.values(), key=lambda rate: rate.median)
    assert curve[chosen].median >= (1 - SPREAD_TOLERANCE) * best.median
    assert curve[chosen].median >= min(best.min, (1 - TOLERANCE) * best.median)
    assert all(curve[count].median < (1 - TOLERANCE) * best.median for count in curve if count < chosen)


@given(rate_curves, st.sampled_from([0.25, 4.0, 1024.0]))
def test_the_unit_does_not_move_the_knee(curve: dict[int, Spread], factor: float) -> None:
    scaled = {count: Spread(r.median * factor, r.min * factor, r.max * factor) for count, r in curve.items()}
    assert knee(scaled) == knee(curve)


@given(rate_curves)
def test_more_workers_that_bring_nothing_do_not_move_the_knee(curve: dict[int, Spread]) -> None:
    worst = min(rate.median for rate in curve.values())
    assert knee(curve | {17: flat(worst / 2)}) == knee(curve)


# In words


def test_a_knee_is_explained() -> None:
    full = {1: Point(flat(550), 0.5), 2: Point(flat(1075), 0.97), 3: Point(flat(1064), 0.96)}
    assert explain(full, 2.0) == (
        "2 workers: 1,075 images/s, 97 % of what 2 cores can do; with 3 it was 1,064 (-1 %): all cores are busy."
    )
    assert "no more were measured, and more might help" in explain({1: Point(flat(550), 0.5)}, 2.0)
    assert "with 1 it was 502 (0 %): cores were left" in explain(
        {0: Point(flat(500), 0.5), 1: Point(flat(502), 0.5)}, 2
    )
    for wait in (None, 0.0):  # whatever else the figures say
        assert "other processes took 70 % of the cores" in explain({1: Point(flat(550), 0.3, 0.7, wait)}, 2.0)


def test_a_knee_beside_training_is_explained() -> None:
    fed = {1: Point(flat(210), 0.98, wait=0.02, loading=0.35), 2: Point(flat(212), 0.98, wait=0.01, loading=0.36)}
    assert explain(fed, 1.0) == (
        "1 worker: 210 images/s, waiting for data 2 % of the time, 35 % of the CPU time for loading; "
        "with 2 it was 212 (+1 %): the model is the limit."
    )
    assert "all cores are busy" in explain({2: Point(flat(100), 0.99, wait=0.4, loading=0.8)}, 2.0)


def test_what_more_workers_did_is_said_by_what_was_measured_with_them() -> None:
    def said(busy: float, wait: float | None, others: float = 0.0, more: int = 1) -> str:
        chosen = Point(flat(158), 0.87, wait=None if wait is None else 0.26)
        return explain({0: chosen, more: Point(flat(157), busy, others, wait)}, 2.0).rpartition("(-1 %): ")[2]

    assert said(0.98, 0.03) == "the additional worker took its core from the model."
    assert said(0.98, 0.03, more=2) == "the additional workers took their cores from the model."
    assert said(0.98, None) == "all cores were busy then."
    assert said(0.87, 0.03) == "the model was the limit then."
    assert said(0.5, 0.26, others=0.4) == "other processes took 40 % of the cores then."
    assert said(0.87, 0.26) == "cores were left, but more workers did not use them."


def test_a_gain_within_the_spread_of_the_best_is_not_explained_away() -> None:
    best = Spread(156.0, 136.0, 175.0)
    fewer, more = Point(flat(141), 0.88, wait=0.22), Point(best, 0.98, wait=0.01)
    assert explain({0: fewer, 2: more}, 2.0).endswith("156 (+11 %): the rounds of the best differ by as much.")
    assert explain({0: Point(flat(149), 0.88, wait=0.22), 1: more}, 2.0).endswith("its core from the model.")


def test_disturbed_rounds_decide_nothing_where_there_are_others() -> None:
    quiet = [Round(rate, 1.0, 1.0, 0.02, 50.0) for rate in (200, 210)]
    loud = [Round(rate, 1.0, 9.0, 0.5, 50.0) for rate in (20, 30, 40)]
    found = Result(setting_of(""), Measurement(0.1, (*loud, *quiet)))
    assert found.rate == Spread(205, 200, 210)
    assert found.point().others == 0.02
    record = found.record("here", is_knee=False)
    assert (record["disturbed_rounds"], record["rounds"]) == (3, [20, 30, 40, 200, 210])
    assert Result(setting_of(""), Measurement(0.1, tuple(loud))).rate == Spread(30, 20, 40)


def test_a_prefetch_depth_is_explained() -> None:
    depths = {1: flat(800), 2: flat(990), 4: flat(1000)}
    assert explain_depth(depths) == "a prefetch depth of 2 is enough (images/s by depth: 1: 800, 2: 990, 4: 1,000)."


# Charts


def text_boxes(svg: ElementTree.Element) -> list[Box]:
    boxes = []
    for text in svg.iter("text"):
        x, y, length = float(text.attrib["x"]), float(text.attrib["y"]), LETTER * len(text.text or "")
        left = x - {"start": 0.0, "middle": length / 2, "end": length}[text.attrib["text-anchor"]]
        boxes.append(Box(left, y - LINE, left + length, y))
    return boxes


def check_geometry(markup: str) -> ElementTree.Element:
    """Everything lies within the drawing, and no text covers another."""
    svg = ElementTree.fromstring(markup)
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    boxes = text_boxes(svg)
    for rect in svg.iter("rect"):
        left, top = float(rect.attrib["x"]), float(rect.attrib["y"])
        boxes.append(Box(left, top, left + float(rect.attrib["width"]), top + float(rect.attrib["height"])))
    places = [tuple(map(float, (circle.attrib["cx"], circle.attrib["cy"]))) for circle in svg.iter("circle")]
    for shape in (*svg.iter("polyline"), *svg.iter("polygon")):
        places += [tuple(map(float, pair.split(","))) for pair in shape.attrib["points"].split()]
    boxes += [Box(x, y, x, y) for x, y in places]
    for box in boxes:
        assert 0 <= box.left <= box.right <= width
        assert 0 <= box.top <= box.bottom <= height
    texts = text_boxes(svg)
    assert not [(a, b) for number, a in enumerate(texts) for b in texts[:number] if a.overlaps(b)]
    return svg


names = st.text("abcdefghijklmnop:<&", min_size=1, max_size=18)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(names, spreads, st.sampled_from(["", "1 worker", "2 workers"])), min_size=1, max_size=12))
def test_bars_stay_within_the_drawing(rows: list[tuple[str, Spread, str]]) -> None:
    rows.sort(key=lambda row: row[2])
    svg = check_geometry(
        bar_chart(
            [Bar(name, value, n, group) for n, (name, value, group) in enumerate(rows)], title="t", unit="images/s"
        )
    )
    values = [value.median for _, value, _ in rows]
    widths = [float(rect.attrib["width"]) for rect in svg.iter("rect")]
    assert widths == pytest.approx([max(widths) * value / max(values) for value in values], abs=0.2)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(names, rate_curves), min_size=1, max_size=6))
def test_lines_stay_within_the_drawing(drawn: list[tuple[str, dict[int, Spread]]]) -> None:
    lines = [
        Line(name, sorted(curve.items(), key=lambda point: point[0]), number, knee(curve), f"{knee(curve)} workers")
        for number, (name, curve) in enumerate(drawn)
    ]
    svg = check_geometry(count_chart(lines, title="t", x_name="workers", unit="images/s"))
    assert len([c for c in svg.iter("circle") if "ring" in c.attrib["class"]]) == len(lines)
    assert len([text for text in svg.iter("text") if "label" in text.attrib["class"]]) == len(lines)


def test_a_lone_knee_is_labeled() -> None:
    line = Line("torch", [(0, flat(500)), (1, flat(500)), (2, flat(1000)), (3, flat(1000))], 0, 2, "2 workers")
    assert "2 workers" in count_chart([line], title="t", x_name="workers", unit="images/s")


@given(st.lists(st.floats(20, 220), min_size=1, max_size=12).map(sorted))
def test_labels_move_apart(heights: list[float]) -> None:
    moved = spread_out(heights, 20, 220)
    assert all(20 - 1e-6 <= height <= 220 + 1e-6 for height in moved)
    assert all(after - before >= 15 - 1e-6 for before, after in itertools.pairwise(moved))


def test_nothing_is_drawn_of_nothing() -> None:
    assert bar_chart([], title="t", unit="u") == count_chart([], title="t", x_name="x", unit="u") == ""


# Cells


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_what_the_loader_does_in_this_thread_is_not_training() -> None:
    meter = Meter()
    for _ in meter.watch(burn(0.2) or number for number in range(1)):  # type: ignore[arg-type, misc, func-returns-value]
        pass
    loading = meter.take_trainer_seconds()
    burn(0.2)
    assert meter.take_trainer_seconds() > loading


def test_a_thread_that_starts_later_is_not_training() -> None:
    meter = Meter()
    later = threading.Thread(target=burn, args=(0.2,))
    later.start()
    later.join()
    loading = meter.take_trainer_seconds()
    burn(0.2)
    assert meter.take_trainer_seconds() > loading


def setting_of(model: str) -> Setting:
    return Setting("torch", 0, 2, 32, 8, model, "cpu")


def test_a_loader_alone_and_beside_training(folder: Path) -> None:
    dataset = open_data(str(folder), show_progress=False).train
    alone = load(setting_of(""), dataset, None)
    assert [next(alone) for _ in range(5)] == [8] * 5  # 3 batches are an epoch
    alone.close()
    threads = torch.get_num_threads()
    steps = train(setting_of("cifar_resnet10"), dataset, None)
    for _ in range(5):
        step = next(steps)
        assert isinstance(step, Step)
        assert step.images == 8
        assert step.wait_seconds > 0
    steps.close()
    assert torch.get_num_threads() == threads
    assert Step(1, 2.0, 3.0) + Step(4, 5.0, 6.0) == Step(5, 7.0, 9.0)


def test_training_leaves_batches_that_only_empty_the_queues(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    step = worker_cells.Learner.step
    monkeypatch.setattr(
        worker_cells.Learner, "step", lambda *given, **named: trained.append(1) or step(*given, **named)
    )
    steps = train(setting_of("cifar_resnet10"), open_data(str(folder), show_progress=False).train, None)
    next(steps)
    before = len(trained)
    left, taken = steps.send(True), next(steps)
    steps.close()
    assert isinstance(left, Step) and isinstance(taken, Step)
    assert (left.images, taken.images) == (8, 8)
    assert len(trained) == before + 1


def test_a_cell_says_what_its_queues_hold(folder: Path) -> None:
    dataset = open_data(str(folder), show_progress=False).train

    def queues(loader: str, num_workers: int, prefetch: int, model: str = "resnet10t") -> tuple[int, int]:
        made = cell(Setting(loader, num_workers, prefetch, 32, 8, model, "cpu"), dataset, None)
        return made.held, made.together

    assert queues("torch", 3, 4) == (13, 3)
    assert queues("torch", 0, 4) == (5, 1)
    assert queues("roi", 3, 4) == (5, 1)
    assert queues("torch", 3, 4, model="") == (0, 3)


# The script


def pretend(cells: Sequence[Cell], *, rounds: int, **_: object) -> list[Measurement]:
    """Stand in for a measurement: rates that grow up to two workers, and nothing opened."""
    made = []
    for one in cells:
        setting = pickle.loads(pickle.dumps(one)).open.args[0]
        rate = 100 * min(max(setting.num_workers, 1), 2)
        trainer = (0.5, 0.25) if setting.model else (0.0, 0.0)
        made.append(Measurement(0.1, (Round(rate, 1.0, 1.0, 0.0, 50.0, *trainer),) * rounds))
    return made


def test_the_script_marks_knees(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "usable_cores", lambda: 4.0)
    monkeypatch.setattr(num_workers, "measure", pretend)
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "html")}
    options = ["--data", str(folder), "--loaders", "torch,roi:plain", "--num-workers", "2,0,1,3", "--prefetch", "2,1"]
    options += ["--train", "cifar_resnet10", "--resolutions", "32", "--batch-size", "8", "--rounds", "2"]
    for kind, path in files.items():
        options += [f"--{kind}", str(path)]
    assert num_workers.main([*options, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "torch, prefetch 1: 2 workers: 200 images/s" in printed
    assert "roi:plain: a prefetch depth of 1 is enough" in printed

    records = json.loads(files["json"].read_text())
    assert len(records) == 2 * 2 * (4 + 3)  # prefetch depths, alone and training, numbers of workers of both loaders
    assert {record["num_workers"] for record in records if record["knee"]} == {2}
    assert sum(record["knee"] for record in records) == 8
    for record in records:
        trains = record["model"] == "cifar_resnet10"
        assert record["wait_fraction"] == (0.5 if trains else None)
        assert record["loading_cpu_fraction"] == (0.75 if trains else None)
        assert (record["loader"], record["variant"]) in (("torch", ""), ("roi", "plain"))
        assert record["images_per_second"]["median"] in (100, 200)
        assert (record["peak_rss_mb"], record["seconds_to_first_batch"]) == (50.0, 0.1)
        assert record["roofline_fraction"] > 0
    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["images_per_second.median"] for row in rows] == [str(r["images_per_second"]["median"]) for r in records]

    page = files["html"].read_text()
    assert "while cifar_resnet10 trains" in page
    charts = [part.partition("</svg>")[0] for part in page.split("<svg")[1:]]
    assert len(charts) == 8  # rate and memory of two loaders, alone and training
    for chart in charts:
        check_geometry(f"<svg{chart}</svg>")


def test_numbers_that_a_loader_takes_for_others_are_measured_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "usable_cores", lambda: 2.0)
    monkeypatch.setattr(num_workers, "measure", pretend)
    arguments = ["--data", str(folder), "--loaders", "torch,roi:plain", "--num-workers", "0,3,1,2", "--train", "off"]
    groups = num_workers.settings(num_workers.parse(arguments))
    numbers = {group[0].loader: [setting.num_workers for setting in group] for group in groups}
    assert numbers == {"torch": [0, 1, 2, 3], "roi:plain": [1, 2]}
    assert num_workers.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("workers: as many as are used; of roi:plain 0 is 1, 3 is 2.") == 1
    assert num_workers.measured_as(num_workers.parse([*arguments, "--num-workers", "1,2"])) == ""


def test_a_model_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert num_workers.main(["--data", str(folder), "--train", "resnet0"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no model 'resnet0'")
