"""The benchmarks run and write what they promise. No test looks at a time."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import memory, throughput, training_loop, variants
from bench.bytes_read import bytes_per_image
from bench.measure import Cell, CellError, Measurement, Round, measure
from bench.options import listed, positive
from bench.peers import MEAN, PEERS, STD, Output, Work, is_installed
from bench.throughput_results import Result, lines
from bench.variants import OWN_LOADERS, prepare, split_name, why_missing
from loaders import registry
from loaders.cores import usable_cores
from loaders.opening import open_data
from loaders.packed import PackedDataset, open_packed
from tests.folders import image_folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("photos"))


def work_on(folder: Path, output: Output, num_workers: int = 0) -> Work:
    return Work(open_data(str(folder), show_progress=False).train, 32, 8, num_workers, output, "cpu")


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
    if not is_installed(name):
        pytest.skip(f"what {name} needs is not installed")
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


# Variants


def require(name: str) -> None:
    """Skip a test where a loader cannot run."""
    if reason := why_missing(name):
        pytest.skip(reason)


def test_a_variant_stands_behind_a_colon() -> None:
    assert split_name("roi") == ("roi", "")
    assert split_name("roi:renditions-256") == ("roi", "renditions-256")
    assert split_name("ffcv:raw256") == ("ffcv", "raw256")
    assert all(split_name(name) == (name, "") for name in PEERS)


def packed_by(name: str, folder: Path) -> PackedDataset:
    require(name)
    data = open_data(str(folder), show_progress=False)
    packed = prepare(name, data, data.train)
    assert packed is not None
    dataset = open_packed(packed).train
    assert isinstance(dataset, PackedDataset)
    return dataset


def test_variants_are_packed_as_they_say(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, train=3, val=3, side=510)  # to 1020 pixels
    assert packed_by("roi", folder).widths.max() <= 500
    assert packed_by("roi:256", folder).heights.max() <= 256
    assert [rendition.max_side for rendition in packed_by("roi:renditions", folder).renditions] == [320]
    assert [rendition.max_side for rendition in packed_by("roi:renditions-256", folder).renditions] == [256]
    kept, files = packed_by("roi:keep", folder), open_data(str(folder), show_progress=False).train
    assert sorted(kept.widths) == sorted(files.widths)
    assert prepare("roi:plain", open_data(str(folder), show_progress=False), files) is None


def test_bytes_read_are_those_of_the_form_and_of_the_crops(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, train=3, val=3, side=510)
    files, packed = open_data(str(folder), show_progress=False).train, packed_by("roi:renditions", folder)
    (rendition,), large = packed.renditions, packed.records
    smaller, larger = ((r.lengths + 4 * r.index_counts).mean() for r in (rendition, large))
    assert (
        bytes_per_image("roi:renditions", files, packed.shards.folder, 8) == smaller
    )  # of which every crop has enough
    assert bytes_per_image("roi:renditions", files, packed.shards.folder, 2000) == larger > smaller
    for name in ("torch", "dali", "roi:plain", "peer:torchvision"):
        assert bytes_per_image(name, files, None, 8) == np.mean([Path(path).stat().st_size for path in files.paths])
    assert bytes_per_image("synthetic", files, None, 8) == 0


def test_bytes_read_of_ffcv_files(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require("ffcv")
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    files = open_data(str(folder), show_progress=False).train
    raw = 3 * np.mean(files.widths.astype(float) * files.heights)
    assert (
        bytes_per_image("ffcv:raw256", files, None, 32) == bytes_per_image("peer:ffcv-raw256", files, None, 32) == raw
    )
    assert 0 < bytes_per_image("ffcv", files, None, 32) < raw


def test_ffcv_variants_are_written_beforehand(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require("ffcv")
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    data = open_data(str(folder), show_progress=False)
    for name in ("ffcv", "peer:ffcv", "ffcv:raw256", "peer:ffcv-raw256"):
        assert prepare(name, data, data.train) is None
    assert len(list(tmp_path.glob("ffcv/*.beton"))) == 2


def test_what_is_missing_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "is_installed", lambda name: name not in ("peer:dali", "peer:ffcv"))
    assert why_missing("torch") is None
    assert why_missing("dali") == "what dali needs is not installed"
    assert why_missing("peer:ffcv") == "what peer:ffcv needs is not installed"
    assert not {"dali", "ffcv"} & set(throughput.parse([]).loaders)
    assert "dali" in throughput.parse(["--loaders", "dali"]).loaders  # which then says what is missing


def test_original_data_need_jpegtran(monkeypatch: pytest.MonkeyPatch) -> None:
    require("roi")
    monkeypatch.setenv("PATH", "")
    assert "jpegtran" in (why_missing("roi:keep") or "")
    assert why_missing("roi") is None


# The scripts


def test_throughput_writes_a_record_for_each_cell(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    command = [sys.executable, "bench/throughput.py", "--data", str(folder), "--loaders", "torch,peer:torchvision"]
    command += ["--num-workers", "1", "--resolutions", "32", "--batch-size", "8", "--output", "float32"]
    command += ["--seconds", "0.2", "--rounds", "2", "--json", str(target), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "float32, 32 px" in done.stdout

    records = json.loads(target.read_text())
    assert [record["loader"] for record in records] == ["torch", "peer:torchvision"]
    assert [record["variant"] for record in records] == ["", ""]
    for record in records:
        rate = record["images_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        keys = ("num_workers", "resolution", "batch_size", "output")
        assert [record[key] for key in keys] == [1, 32, 8, "float32"]
        assert record["cpu_ms_per_image"] > 0
        assert record["peak_rss_mb"] > 10
        assert record["seconds_to_first_batch"] > 0
        assert record["foreign_cpu"]["median"] >= 0
        assert len(record["rounds"]) == 2
        if record["loader"] == "torch":
            assert list(record["ratios"]) == ["peer:torchvision"]
            assert 0 < record["ratios"]["peer:torchvision"]["min"] <= record["ratios"]["peer:torchvision"]["max"]
        else:
            assert not record["ratios"]


def test_throughput_of_a_variant(folder: Path, tmp_path: Path) -> None:
    require("roi")
    target = tmp_path / "out.json"
    options = ["--data", str(folder), "--loaders", "roi:256", "--num-workers", "1", "--resolutions", "32"]
    options += ["--batch-size", "8", "--output", "uint8", "--seconds", "0.2", "--rounds", "1", "--device", "cpu"]
    assert throughput.main([*options, "--json", str(target)]) == 0
    (record,) = json.loads(target.read_text())
    assert (record["loader"], record["variant"]) == ("roi", "256")
    assert record["images_per_second"]["median"] > 0
    assert record["bytes_per_image"] > 100
    assert record["roofline_fraction"] > 0


def pretend(cells: Sequence[Cell], *, rounds: int, **_: object) -> list[Measurement]:
    """Stand in for a measurement: nothing is opened, and each cell is faster than the one before it."""
    half = usable_cores() / 2
    return [Measurement(0.1, (Round(100 * n, 1.0, half, 0.0, 50.0),) * rounds) for n, _ in enumerate(cells, start=1)]


def test_batch_sizes_have_tables_and_charts_of_their_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput, "measure", pretend)
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "html")}
    options = ["--data", str(folder), "--loaders", "torch,peer:torchvision", "--num-workers", "0,1", "--device", "cpu"]
    options += ["--resolutions", "32", "--batch-size", "4,8", "--output", "uint8", "--rounds", "2"]
    for kind, path in files.items():
        options += [f"--{kind}", str(path)]
    assert throughput.main(options) == 0
    assert "uint8, 32 px, batches of 4" in capsys.readouterr().out

    records = json.loads(files["json"].read_text())
    assert [record["batch_size"] for record in records] == [4] * 4 + [8] * 4
    sizes = open_data(str(folder), show_progress=False).train.sizes
    assert [record["bytes_per_image"] for record in records] == pytest.approx([sizes.mean()] * 8, rel=0.1)
    assert [record["roofline_fraction"] for record in records] == pytest.approx([0.5] * 8)
    assert {"peer:torchvision"} == {peer for record in records for peer in record["ratios"]}
    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["images_per_second.max"]) for row in rows] == [100, 200, 300, 400] * 2
    page = files["html"].read_text()
    assert page.count("<svg") == page.count("<table>") == 2
    assert "uint8, 32 px, batches of 8" in page
    assert "--batch-size 4,8" in page


def test_workers_asked_for_are_shown_with_the_threads_in_their_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "usable_cores", lambda: 2.0)
    measurement = Measurement(0.1, (Round(100, 1.0, 1.0, 0.0, 50.0),))

    def shown(name: str) -> list[str]:
        works = [work_on(folder, "uint8", num_workers) for num_workers in (0, 1, 3)]
        return [lines(Result(name, work, measurement, {}))[0][1] for work in works]

    assert shown("roi:plain") == shown("peer:ffcv") == shown("dali") == ["0 (1)", "1", "3 (2)"]
    assert shown("torch") == shown("peer:torchvision") == ["0", "1", "3"]
    assert shown("peer:dali") == ["0 (1)", "1", "3"]


def test_throughput_of_a_packed_set(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, target = packed_by("roi", folder).shards.folder, tmp_path / "out.json"
    options = ["--data", str(packed), "--num-workers", "1", "--resolutions", "32", "--batch-size", "8"]
    options += ["--output", "float32", "--seconds", "0.2", "--rounds", "1", "--device", "cpu", "--json", str(target)]
    assert throughput.main(options) == 0
    (record,) = json.loads(target.read_text())
    assert (record["loader"], record["variant"]) == ("roi", "")
    assert throughput.main([*options, "--loaders", "roi:keep"]) == 1
    assert "is packed: use --loaders roi" in capsys.readouterr().err


@pytest.mark.parametrize("output", throughput.OUTPUTS)
@pytest.mark.parametrize("name", [name for name in OWN_LOADERS if name != "auto"])
def test_own_loaders_deliver_without_end(
    name: str, output: Output, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(name)
    monkeypatch.setattr(throughput, "MIN_EPOCH_IMAGES", 1)
    work = work_on(folder, output)
    batches = throughput.own_images(
        name, work, prepare(name, open_data(str(folder), show_progress=False), work.dataset)
    )
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


def test_a_folder_without_a_readable_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("a", "b", "a", "b")):
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name / f"{number}.jpg").write_text("no image at all")
    assert throughput.main(["--data", str(tmp_path), "--loaders", "torch"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: no image of {tmp_path / 'train'} can be read; the first is {tmp_path}")


@pytest.mark.parametrize("name", ["torch", "roi:plain", "peer:torchvision", "peer:torchvision-v2"])
def test_a_file_that_does_not_decode_is_named(name: str, tmp_path: Path) -> None:
    require(name)
    folder = image_folder(tmp_path, train=1, val=1)
    for path in (folder / "train").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:700])
    dataset = open_data(str(folder), show_progress=False).train
    assert not dataset.problems, "the headers are whole"
    one = throughput.cell(name, Work(dataset, 32, 2, 0, "uint8", "cpu"), None)
    with pytest.raises(CellError, match=r"(?s)jpg cannot be decoded: .*Move it out of the folder"):
        measure([one], rounds=1, seconds=0.1)


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


@pytest.mark.parametrize("model", ["", "resnet10t"])
def test_memory_is_reported_for_each_epoch(folder: Path, tmp_path: Path, model: str) -> None:
    target = tmp_path / "out.json"
    options = ["--data", str(folder), "--loaders", "torch", "--num-workers", "1", "--resolutions", "16,32"]
    options += ["--model", model]
    assert memory.main([*options, "--epochs", "3", "--batch-size", "8", "--device", "cpu", "--json", str(target)]) == 0
    (record,) = json.loads(target.read_text())
    assert (record["model"], record["resolutions"]) == (model, [16, 32, 16])
    assert len(record["resident_mb"]) == 3
    assert all(megabytes > 10 for megabytes in record["resident_mb"])
    assert record["growth_mb"] == record["resident_mb"][2] - max(record["resident_mb"][:2])
