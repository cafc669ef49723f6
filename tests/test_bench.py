"""The benchmarks run, account for what they measure, and release everything. No test looks at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from bench import memory, throughput, training_loop
from bench.measure import Batches, Cell, CellError, Measurement, Ratio, Round, measure
from bench.options import listed, positive
from bench.peers import MEAN, PEERS, STD, Output, Work
from bench.resources import tree_cpu_seconds, tree_resident_mb
from loaders.opening import open_data
from tests.folders import image_folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("photos"))


def work_on(folder: Path, output: Output, num_workers: int = 0) -> Work:
    return Work(open_data(str(folder), show_progress=False).train, 32, 8, num_workers, output, "cpu")


# Cells: run in processes of their own, so they stand at the top of the module


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _burn(stop: float) -> None:
    while time.monotonic() < stop:
        pass


def idle(marker: Path | None = None) -> Batches:
    try:
        while True:
            time.sleep(0.01)
            yield 4
    finally:
        if marker is not None:
            marker.write_text("closed")


def burning_child() -> Batches:
    """Deliver while a child process keeps a core busy during each batch."""
    while True:
        child = multiprocessing.Process(target=_burn, args=(time.monotonic() + 0.1,))
        child.start()
        child.join()
        yield 4


def reading_ahead(seconds: float, depth: int) -> Batches:
    """Deliver from a queue that a thread fills with a batch of one image at intervals."""
    ready: queue.Queue[int] = queue.Queue(depth)

    def produce() -> None:
        while True:
            time.sleep(seconds)
            ready.put(1)

    threading.Thread(target=produce, daemon=True).start()
    while True:
        yield ready.get()


def failing(after: int) -> Batches:
    for _ in range(after):
        yield 1
    raise ValueError("the reservoir is dry")


def dying() -> Batches:
    yield 1
    os._exit(7)


# Measuring


def test_cells_are_measured_in_turns_and_closed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    before = set(psutil.Process().children(recursive=True))
    cells = [Cell("idle", partial(idle, marker)), Cell("burning", burning_child)]
    resting, busy = measure(cells, rounds=2, seconds=0.2)

    assert marker.read_text() == "closed"
    assert set(psutil.Process().children(recursive=True)) <= before
    for measurement in (resting, busy):
        assert len(measurement.rounds) == 2
        assert all(turn.images > 0 and turn.images % 4 == 0 and turn.seconds >= 0.2 for turn in measurement.rounds)
        assert 0 <= measurement.foreign_cpu.min <= measurement.foreign_cpu.max
        assert measurement.peak_rss_mb > 1
        assert measurement.seconds_to_first_batch > 0
    # A child that ended within the turn counts; sleeping does not.
    assert busy.cpu_ms_per_image > resting.cpu_ms_per_image


def test_what_a_queue_held_ready_does_not_count() -> None:
    interval, depth = 0.05, 20
    (measured,) = measure([Cell("reading ahead", partial(reading_ahead, interval, depth))], rounds=2, seconds=0.3)
    # A full queue would add 20 images to the 6 that can be made in a turn.
    assert all(turn.images < turn.seconds / interval + depth / 2 for turn in measured.rounds)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell("early", partial(failing, 0)), "early failed:.*the reservoir is dry"),
        (Cell("late", partial(failing, 5)), "late failed:.*the reservoir is dry"),
        (Cell("dying", dying), "dying: its process ended with code 7"),
    ],
    ids=["before the first batch", "later", "by its process's death"],
)
def test_a_failing_cell_is_named_and_the_others_are_closed(cell: Cell, message: str, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    marker = tmp_path / "marker"
    with pytest.raises(CellError, match=f"(?s){message}"):
        measure([Cell("idle", partial(idle, marker)), cell], rounds=1, seconds=0.1, warm_up=0.1)
    assert marker.read_text() == "closed"
    assert set(psutil.Process().children(recursive=True)) <= before


def test_ratios_are_taken_round_by_round() -> None:
    def measurement(*rates: float) -> Measurement:
        return Measurement(0.0, tuple(Round(int(rate), 1.0, 0.5, 0.0, 1.0) for rate in rates))

    ratio = Ratio.between(measurement(100, 300, 200), measurement(100, 100, 100))
    assert (ratio.of_medians, ratio.min, ratio.max) == (2.0, 1.0, 3.0)


def test_disturbed_rounds_are_counted() -> None:
    quiet, loud = Round(8, 1.0, 0.5, 0.02, 1.0), Round(8, 1.0, 0.5, 0.4, 1.0)
    assert Measurement(0.0, (quiet, loud, loud)).disturbed_rounds == 2


def test_children_count_while_they_live_and_after() -> None:
    before, resident = tree_cpu_seconds(), tree_resident_mb()
    sleeper = multiprocessing.get_context("spawn").Process(target=_sleep, args=(60,))
    burner = multiprocessing.get_context("fork").Process(target=_burn, args=(time.monotonic() + 0.3,))
    sleeper.start()
    burner.start()
    burner.join()
    assert tree_cpu_seconds() > before
    assert tree_resident_mb() > resident
    sleeper.kill()
    sleeper.join()


# Options


def test_lists_name_what_is_wrong() -> None:
    assert listed(positive)("128, 224") == [128, 224]
    with pytest.raises(Exception, match="at least 1, got 0"):
        listed(positive)("64,0")
    with pytest.raises(Exception, match=r"no rom; choose from torch, dali"):
        listed(str, ["torch", "dali"])("torch,rom")
    with pytest.raises(Exception, match="empty"):
        listed(str)(",")


# Peers


def first_batches(name: str, work: Work, count: int = 2) -> Iterator[torch.Tensor]:
    if name == "peer:dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    batches = PEERS[name](work)
    for _ in range(count):
        yield next(batches).clone()
    batches.close()


@pytest.mark.parametrize("name", PEERS)
def test_peers_deliver_bytes(name: str, folder: Path) -> None:
    for images in first_batches(name, work_on(folder, "uint8")):
        assert images.dtype == torch.uint8
        assert sorted(images.shape) == [3, 8, 32, 32]
        assert images.float().std() > 10


@pytest.mark.parametrize("name", PEERS)
def test_peers_deliver_normalized_images(name: str, folder: Path) -> None:
    lowest = min(-mean / std for mean, std in zip(MEAN, STD, strict=True))
    highest = max((1 - mean) / std for mean, std in zip(MEAN, STD, strict=True))
    for images in first_batches(name, work_on(folder, "float32")):
        assert images.dtype == torch.float32
        assert images.shape == (8, 3, 32, 32)
        assert lowest - 1e-3 <= images.min() < 0 < images.max() <= highest + 1e-3


# The scripts


def test_throughput_writes_a_record_for_each_cell(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    command = [sys.executable, "bench/throughput.py", "--data", str(folder), "--loaders", "torch,peer:torchvision"]
    command += ["--num-workers", "0,1", "--resolutions", "32", "--batch-size", "8", "--output", "float32"]
    command += ["--seconds", "0.2", "--rounds", "2", "--json", str(target), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "float32, 32 px" in done.stdout

    records = json.loads(target.read_text())
    cells = {(record["loader"], record["num_workers"]) for record in records}
    assert cells == {(loader, workers) for loader in ("torch", "peer:torchvision") for workers in (0, 1)}
    for record in records:
        rate = record["images_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert (record["resolution"], record["batch_size"], record["output"]) == (32, 8, "float32")
        assert record["cpu_ms_per_image"] > 0
        assert record["peak_rss_mb"] > 10
        assert record["seconds_to_first_batch"] > 0
        assert record["foreign_cpu"]["median"] >= 0
        assert len(record["rounds"]) == 2
        if record["loader"] == "torch":
            assert record["ratio"]["to"] == "peer:torchvision"
            assert 0 < record["ratio"]["min"] <= record["ratio"]["max"]
        else:
            assert record["ratio"] is None


@pytest.mark.parametrize("output", throughput.OUTPUTS)
@pytest.mark.parametrize("name", ["torch", "dali", "synthetic"])
def test_own_loaders_deliver_without_end(name: str, output: Output, folder: Path) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    work = work_on(folder, output)
    batches = throughput.own_images(name, work)
    for _ in range(2 * len(work.dataset) // work.batch_size + 2):
        images = next(batches)
        assert images.dtype == getattr(torch, output)
        assert images.shape[1:] == (3, 32, 32)
    batches.close()


def test_small_sets_are_repeated(folder: Path) -> None:
    dataset = open_data(str(folder), show_progress=False).train
    repeated = throughput.long_epoch(dataset)
    assert len(repeated) >= throughput.MIN_EPOCH_IMAGES
    assert set(repeated.paths) == set(dataset.paths)


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert throughput.main(["--data", "/nonexistent/photos"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        throughput.main(["--loaders", "rom"])
    assert "choose from torch, dali" in capsys.readouterr().err


def test_training_loop_compares_both_loops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.json"
    options = ["--models", "cifar_resnet10", "--resolutions", "16", "--batch-size", "4", "--device", "cpu"]
    assert training_loop.main([*options, "--seconds", "0.2", "--rounds", "2", "--json", str(target)]) == 0
    assert "engine / bare" in capsys.readouterr().out
    bare, engine = json.loads(target.read_text())
    assert (bare["loop"], engine["loop"]) == ("bare", "engine")
    assert bare["ratio"] is None
    assert 0 < engine["ratio"]["min"] <= engine["ratio"]["max"]


def test_memory_is_reported_for_each_epoch(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    options = ["--data", str(folder), "--loaders", "torch", "--num-workers", "1", "--resolutions", "16,32"]
    assert memory.main([*options, "--epochs", "3", "--batch-size", "8", "--device", "cpu", "--json", str(target)]) == 0
    (record,) = json.loads(target.read_text())
    assert record["resolutions"] == [16, 32, 16]
    assert len(record["resident_mb"]) == 3
    assert all(megabytes > 10 for megabytes in record["resident_mb"])
    assert record["growth_mb"] == record["resident_mb"][2] - max(record["resident_mb"][:2])
