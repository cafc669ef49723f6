"""The doctor: what it finds in data that were made for it, and what it says to do."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from engine import doctor, doctor_machine, doctor_rates
from engine.distributed import process
from engine.doctor import Options, main, run
from engine.doctor_data import DataFacts, Duplicates, data_facts, exact_duplicates
from engine.doctor_findings import Findings, advice
from engine.doctor_machine import Capacity, Component, DiskRate, capacity, components, disk_rate
from engine.doctor_packing import PackingGain, packing_gain
from engine.doctor_page import bar_chart, write_page
from engine.doctor_pixels import PixelFacts, pixel_facts
from engine.doctor_print import byte_count, print_findings
from engine.doctor_rates import LoadingCost, predict
from engine.doctor_steps import StepCost, step_costs
from engine.model import create_model
from loaders.augment import PRESETS
from loaders.contract import Loader
from loaders.dataset import ImageData
from loaders.opening import open_data
from loaders.pack_job import pack
from loaders.pack_records import PackOptions
from loaders.pack_sources import source_of
from loaders.packed import open_packed
from loaders.registry import create_loader
from tests.images import damaged, dataset_of, exif, photo

MUCH = Capacity(cores=4, memory=16 << 30, available=8 << 30, shared_memory=8 << 30, device="CPU", bus=math.inf)


def no_bar() -> tqdm[None]:
    return tqdm(disable=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in which everything is wrong once."""
    root = tmp_path_factory.mktemp("odd")
    for split, counts in (("train", {"cat": 12, "dog": 2}), ("val", {"cat": 2, "dog": 2})):
        for name, count in counts.items():
            place = root / split / name
            place.mkdir(parents=True)
            for number in range(count):
                seed = number + {"train": 0, "val": 100}[split] + {"cat": 0, "dog": 50}[name]
                photo(96 + number, 80, seed).save(place / f"{number}.jpg", quality=92, exif=exif(1 + number % 2))
    shutil.copy(root / "train/cat/0.jpg", root / "val/cat/copied.jpg")
    shutil.copy(root / "train/cat/3.jpg", root / "train/dog/mistaken.jpg")
    photo(97, 80, 51).save(root / "val/dog/again.jpg", quality=50, exif=exif(2))  # train/dog/1.jpg
    photo(50, 50, 7).convert("L").save(root / "train/cat/gray.png")
    damaged(root / "train/cat", "late", "broken")
    damaged(root / "train/cat", "text", "unreadable")
    return root


@pytest.fixture(scope="module")
def data(folder: Path) -> ImageData:
    return open_data(str(folder), show_progress=False)


def names(pairs: tuple[tuple[str, str], ...], folder: Path) -> list[tuple[str, str]]:
    return [(str(Path(a).relative_to(folder)), str(Path(b).relative_to(folder))) for a, b in pairs]


def test_the_index_tells_classes_sizes_and_forms(data: ImageData, folder: Path) -> None:
    facts = data_facts(data)
    assert dict(zip(facts.classes, facts.train_counts, strict=True)) == {"cat": 15, "dog": 3}
    assert facts.imbalance == 5
    assert (facts.num_train, facts.num_val) == (18, 6)
    assert (facts.widths.smallest, facts.heights.smallest) == (50, 50)
    assert facts.forms == {"RGB": 22, "gray": 1, "unreadable": 1}
    assert facts.orientations == {2: 11}
    assert [Path(path).name for path, _ in facts.unreadable] == ["unreadable.jpg"]
    assert facts.total_bytes == sum(path.stat().st_size for path in folder.rglob("*.*"))


def test_equal_files_are_found(data: ImageData, folder: Path) -> None:
    found = exact_duplicates(data, 10, no_bar())
    assert names(found.across, folder) == [("train/cat/0.jpg", "val/cat/copied.jpg")]
    assert names(found.conflicting, folder) == [("train/cat/3.jpg", "train/dog/mistaken.jpg")]
    assert (found.within_train, found.unchecked) == (1, 0)


def test_files_of_equal_size_are_not_equal_for_that(tmp_path: Path) -> None:
    paths = []
    for number, content in enumerate([b"a" * 9000, b"a" * 9000, b"b" + b"a" * 8999, b"a" * 8999 + b"b"]):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(content)
        paths.append(path)
    split = dataset_of(paths, [0, 0, 0, 0])
    found = exact_duplicates(ImageData("same", split, split.select(np.array([1]))), 10, no_bar())
    assert found.within_train == 1  # the second of the first two
    assert found.across == ((str(paths[0]), str(paths[1])),)


def test_without_time_nothing_is_claimed(data: ImageData) -> None:
    found = exact_duplicates(data, -1, no_bar())
    assert (found.across, found.conflicting, found.within_train) == ((), (), 0)
    assert found.unchecked >= 4


def test_packed_sets_are_compared_by_their_checksums(data: ImageData, tmp_path: Path) -> None:
    good = replace(data, train=data.train.select(np.array([0, 1, 2])), val=data.train.select(np.array([0, 5])))
    pack(source_of(good), tmp_path / "packed", PackOptions(64), show_progress=False)
    found = exact_duplicates(open_packed(tmp_path / "packed"), 10, no_bar())
    assert len(found.across) == 1
    assert found.unchecked == 0


@pytest.mark.parametrize("loader", ["torch", "roi"])
def test_pixels_tell_damage_and_pictures_that_look_alike(data: ImageData, folder: Path, loader: str) -> None:
    found = pixel_facts(data, loader, 0 if loader == "torch" else 1, 32, 60, no_bar())
    near = {(Path(pair.train).name, Path(pair.val).name): pair.similarity for pair in found.near}
    assert set(near) == {("0.jpg", "copied.jpg"), ("1.jpg", "again.jpg")}
    assert near["0.jpg", "copied.jpg"] == pytest.approx(1)
    assert {Path(path).name for path, _ in found.bad} == {"broken.jpg", "unreadable.jpg"}
    assert (found.num_train, found.num_val, found.num_compared, found.whole) == (16, 6, 6, True)
    known = pixel_facts(
        data, loader, 0 if loader == "torch" else 1, 32, 60, no_bar(), known=[str(folder / "val/cat/copied.jpg")]
    )
    assert [Path(pair.val).name for pair in known.near] == ["again.jpg"]


def test_mean_and_deviation_are_exact(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (70, 24, 24, 3)).astype(np.uint8)  # more than one batch, of several lengths
    images[:40] //= 3
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path)
    split = dataset_of(paths)
    empty = split.select(np.arange(0))
    found = pixel_facts(ImageData("noise", split, empty), "torch", 0, 24, 60, no_bar())
    expected = images.reshape(-1, 3).astype(np.longdouble) / 255
    assert found.mean == pytest.approx(expected.mean(0).astype(float), rel=1e-14)
    assert found.std == pytest.approx(expected.std(0).astype(float), rel=1e-14)
    assert (found.num_train, found.num_val, found.whole) == (70, 0, True)


def test_flat_pictures_look_like_nothing(tmp_path: Path) -> None:
    paths = [tmp_path / f"{level}.png" for level in (100, 101)]
    for path in paths:
        Image.new("RGB", (40, 40), (int(path.stem),) * 3).save(path)
    split = dataset_of(paths)
    one = ImageData("flat", split.select(np.array([0])), split.select(np.array([1])))
    assert pixel_facts(one, "torch", 0, 32, 60, no_bar()).near == ()


def test_components_say_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.doctor_machine._version", lambda *packages: "")
    found = {one.name: one for one in components()}
    assert found["PyTorch"].version == torch.__version__
    for name in ("DALI", "FFCV", "Triton", "NVML"):
        assert not found[name].usable
        assert "pip install" in found[name].note


def test_pillow_simd_is_told_from_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def note() -> str:
        return next(one.note for one in components() if one.name == "pillow-simd")

    monkeypatch.setattr(doctor_machine, "pillow_version", lambda: "pillow-simd 12.1.1.post0")
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"\xc5\xf8\x77" * 300)
    assert note() == "with AVX2"
    monkeypatch.setattr(Path, "read_bytes", lambda path: bytes(1000))
    assert note().startswith("without AVX2")


def test_the_machine_is_seen() -> None:
    found = capacity(torch.device("cpu"))
    assert found.cores > 0
    assert 0 < found.available <= found.memory
    assert math.isinf(found.bus)


def test_memory_is_what_control_groups_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "memory_limit", lambda: 3e6)
    monkeypatch.setattr(doctor_machine, "memory_left", lambda: 1e6)
    found = capacity(torch.device("cpu"))
    assert (found.memory, found.available) == (3_000_000, 1_000_000)


def test_files_are_read(data: ImageData) -> None:
    found = disk_rate(data.train, 5.0)
    assert found is not None
    assert 0.5 * data.train.sizes.sum() <= found.bytes_read <= data.train.sizes.sum()
    gone = dataset_of([])
    assert disk_rate(gone, 0.1) is None


def test_what_is_slow_is_not_taken_for_memory(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.pread

    def slow(file: int, length: int, offset: int) -> bytes:
        time.sleep(0.02)
        return read(file, length, offset)

    monkeypatch.setattr(os, "pread", slow)
    monkeypatch.setattr(doctor_machine, "storage_bytes", lambda: 0)  # as for a file system in user space
    found = disk_rate(data.train, 5.0)
    assert found is not None
    assert found.source == "unknown"
    (prediction,) = predict(10**9, 100e3, MUCH, found, costs(roi=1), [])
    assert prediction.limit in ("disk", "workers")
    monkeypatch.setattr(doctor_machine, "_SLOW_READ", 1e3)
    found = disk_rate(data.train, 5.0)
    assert found is not None
    assert found.source == "memory"
    (prediction,) = predict(10**9, 100e3, MUCH, found, costs(roi=1), [])
    assert prediction.limit == "cores"


@pytest.mark.parametrize(
    ("latency", "rate", "readers", "seen"),
    [
        pytest.param(0.0, 20e6, [1, 8], (0.0, 20e6), id="one after the other"),
        pytest.param(20e-3, 1e9, [1, 8, 64], (19.7e-3, 318e6), id="each waits for itself"),
        pytest.param(20e-3, 40e6, [1, 8, 64], (20e-3, 40e6), id="both, met by 64 threads"),
        pytest.param(5e-3, 40e6, [1, 8], (5e-3, 40e6), id="both, met by 8 threads"),
    ],
)
def test_latency_is_told_from_rate(
    latency: float, rate: float, readers: list[int], seen: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    size, asked = 100_000, []

    def read(places: list[Any], seconds: float, together: int, least: int = 1) -> doctor_machine._Reading:
        asked.append(together)
        count = 10 * together
        return doctor_machine._Reading(
            together, count, count * size, max(10 * (latency + size / rate), count * size / rate)
        )

    monkeypatch.setattr(doctor_machine, "_places", lambda dataset, seed: [("file", 0, size)] * 20_000)
    monkeypatch.setattr(doctor_machine, "_read", read)
    monkeypatch.setattr(doctor_machine, "storage_bytes", iter((0, 10**12)).__next__)
    found = disk_rate(dataset_of([]), 1.0)
    assert found is not None
    assert asked == [1, *readers]  # the first place is read for itself
    assert (found.latency, found.bytes_per_second) == (
        pytest.approx(seen[0], abs=1e-4),
        pytest.approx(seen[1], rel=0.01),
    )


def costs(**milliseconds: float) -> list[LoadingCost]:
    return [LoadingCost(name, 128, value / 1000, 0.0, 100) for name, value in milliseconds.items()]


@pytest.mark.parametrize(
    ("machine", "disk", "step", "limit", "rate", "workers"),
    [
        pytest.param(MUCH, None, StepCost(128, 0.0, 0.0), "cores", 2000, 4, id="loading alone"),
        pytest.param(MUCH, None, StepCost(128, 1.5e-3, 6e-3), "model", 500, 1, id="model on the same cores"),
        pytest.param(
            MUCH, None, StepCost(128, 1e-3, 1e-3, 3e-3, 5e-3), "augmentation", 250, 1, id="heavy augmentation"
        ),
        pytest.param(
            replace(MUCH, device="GPU", bus=1e10), None, StepCost(128, 5e-3, 1e-4), "model", 200, 1, id="slow model"
        ),
        pytest.param(
            replace(MUCH, available=1), DiskRate(100e6, "disk", 1), StepCost(128, 0.0, 0.0), "disk", 1000, 3, id="disk"
        ),
        pytest.param(
            replace(MUCH, available=1), DiskRate(100e6, "memory", 1), StepCost(128, 0.0, 0.0), "cores", 2000, 4,
            id="disk not known",
        ),
    ],
)  # fmt: skip
def test_predictions(
    machine: Capacity,
    disk: DiskRate | None,
    step: StepCost,
    limit: str,
    rate: float,
    workers: int,
) -> None:
    (found,) = predict(18, 100e3, machine, disk, costs(roi=2, torch=4), [step])
    assert (found.limit, found.ceilings.rate) == (limit, pytest.approx(rate, rel=0.02))
    assert (found.loader, found.num_workers) == ("roi", workers)
    assert found.by_loader["roi"] >= found.by_loader["torch"]


def test_a_number_of_workers_is_taken_as_it_is_given() -> None:
    step = StepCost(128, 1e-3, 1e-3)
    for workers, rate, limit in ((0, 1000 / 3, "workers"), (1, 500, "workers"), (2, 1000, "model"), (9, 1000, "model")):
        (found,) = predict(18, 100e3, MUCH, None, costs(roi=2), [step], workers)
        assert (found.ceilings.rate, found.num_workers) == (pytest.approx(rate), workers)
        assert found.limit == limit or workers == 2  # there both are the limit


def test_the_rate_is_that_of_the_workers_named_with_it() -> None:
    two = replace(MUCH, cores=2, available=1)
    (auto,) = predict(18, 100e3, two, DiskRate(25e6, "disk", 1), costs(roi=9), [])
    (given,) = predict(18, 100e3, two, DiskRate(25e6, "disk", 1), costs(roi=9), [], 2)
    assert auto == given
    assert (auto.limit, auto.num_workers, auto.ceilings.rate) == ("workers", 2, pytest.approx(2 / 13e-3))


def test_more_workers_than_cores_are_advised_where_each_waits(data: ImageData) -> None:
    slow = predict(18, 100e3, replace(MUCH, available=1), DiskRate(100e6, "disk", 1), costs(roi=1.5), [])
    assert not any("--num-workers" in text for text in advice(findings(data, predictions=tuple(slow))))
    part = replace(MUCH, cores=1.5)
    held = predict(18, 100e3, part, None, costs(roi=10), [])
    (text,) = advice(findings(data, capacity=part, predictions=tuple(held)))
    assert text == "1 worker at 128 px cannot keep 1.5 cores busy: try a larger --num-workers"


def test_a_set_that_fits_into_memory_waits_for_the_disk_once() -> None:
    (found,) = predict(18, 100e3, MUCH, DiskRate(50e6, "disk", 1), costs(roi=1), [])
    assert found.ceilings.rate == pytest.approx(4000)
    assert found.from_disk.rate == pytest.approx(500)
    assert (found.limit, found.limit_from_disk) == ("cores", "disk")


def findings(data: ImageData, **changes: object) -> Findings:
    facts: DataFacts = data_facts(data)
    sound = replace(facts, unreadable=(), train_counts=(9, 9), val_counts=(3, 3))
    return replace(
        Findings(
            components=(Component("libjpeg-turbo", "3", True), Component("DALI", "", False, "pip install")),
            capacity=MUCH,
            disk=None,
            model="",
            default_resolutions=(),
            augment="light",
            costs=(),
            failures={},
            steps=(),
            predictions=(),
            packing=None,
            packed_predictions=(),
            facts=sound,
            duplicates=Duplicates((), (), 0, 24),
            pixels=None,
        ),
        **changes,
    )


def test_a_sound_set_needs_nothing(data: ImageData) -> None:
    assert advice(findings(data)) == []


def test_advice_begins_with_what_makes_results_wrong(data: ImageData) -> None:
    predictions = predict(18, 100e3, MUCH, None, costs(roi=2, torch=4), [])
    pixels = PixelFacts(32, (0.5,) * 3, (0.2,) * 3, 1, 1, True, 1, (), (("/late.jpg", "cut off"),))
    found = advice(
        findings(
            data,
            predictions=tuple(predictions),
            duplicates=Duplicates((("/a", "/b"),), (("/c", "/d"),), 2, 24),
            pixels=pixels,
            facts=replace(data_facts(data), train_counts=(90, 3)),
        )
    )
    expected = [
        "Take what training and validation share, 1 file", "Decide between the classes", "Repair or remove 2 files",
        "Use --loader roi", "The largest class has 30 times", "Copies of training files",
    ]  # fmt: skip
    assert [text[: len(start)] for text, start in zip(found, expected, strict=True)] == expected


def test_packing_is_advised_by_what_it_brings(data: ImageData) -> None:
    gain = PackingGain(128, tuple(costs(roi=1)), 30e3, 100e3)
    found = findings(
        data,
        predictions=tuple(predict(18, 100e3, MUCH, None, costs(roi=3), [])),
        packing=gain,
        packed_predictions=tuple(predict(18, 30e3, MUCH, None, gain.costs, [])),
    )
    (text,) = advice(found)
    assert "4000 images/s in place of 1333 at 128 px" in text
    slow = [StepCost(128, 10e-3, 0.0)]
    same = predict(18, 100e3, MUCH, None, costs(roi=3), slow), predict(18, 30e3, MUCH, None, gain.costs, slow)
    assert not any("Pack" in t for t in advice(replace(found, predictions=same[0], packed_predictions=same[1])))


def test_small_images_first_are_advised_unless_they_are_the_default(data: ImageData) -> None:
    both = [LoadingCost("roi", size, 1e-3, 0.0, 100) for size in (64, 128)]
    steps = [StepCost(64, 1e-3, 0.0), StepCost(128, 4e-3, 0.0)]
    found = findings(data, predictions=tuple(predict(18, 1e5, MUCH, None, both, steps)))
    texts = advice(found)
    assert texts[0].startswith("Train on small images first: --resolutions 64,128 takes 62 % of the time of 128 px")
    assert advice(replace(found, default_resolutions=(64, 128))) == texts[1:]


def test_some_images_are_packed_to_see(data: ImageData, tmp_path: Path) -> None:
    gain = packing_gain(data.train, (16,), PRESETS["light"], 0.05, no_bar())
    assert gain is not None
    assert gain.images == 16  # of 18, two of which cannot be decoded
    assert gain.costs[0].cpu_seconds > 0
    none = data.train.select(np.array(list(data.train.problems)))
    assert packing_gain(none, (16,), PRESETS["light"], 0.05, no_bar()) is None


def test_a_slow_model_is_no_case_for_workers(data: ImageData) -> None:
    predictions = predict(18, 100e3, MUCH, None, costs(roi=1), [StepCost(128, 10e-3, 40e-3)])
    (text,) = advice(findings(data, predictions=tuple(predictions)))
    assert "the model is the limit" in text


def test_heavy_augmentation_and_too_few_workers_are_told(data: ImageData) -> None:
    heavy = predict(18, 100e3, MUCH, None, costs(roi=1), [StepCost(128, 2e-3, 2e-3, 6e-3, 9e-3)])
    (text,) = advice(findings(data, predictions=tuple(heavy)))
    assert "augmentation is the limit, 75 % of what training does" in text
    few = predict(18, 100e3, MUCH, None, costs(roi=4), [StepCost(128, 1e-3, 1e-3)], 1)
    (text,) = advice(findings(data, predictions=tuple(few)))
    assert text.startswith("--num-workers 1 is too few")


def test_training_is_measured_as_its_loop_does_it(data: ImageData) -> None:
    threads = torch.get_num_threads()
    with process("cpu") as this:
        model = create_model("test_vit", len(data.classes), resolution=32)
        none, strong = (
            step_costs(model, data.train, this, (32,), PRESETS[name], 0.05, no_bar())[0] for name in ("none", "strong")
        )
    assert none.augment_cpu_seconds < strong.augment_cpu_seconds
    for cost in (none, strong):
        assert cost.seconds > 0
        elapsed, spent = cost.seconds + cost.augment_seconds, cost.cpu_seconds + cost.augment_cpu_seconds
        assert elapsed <= spent * (1 + 1e-9)
    assert torch.get_num_threads() == threads


def offer(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have these loaders measured, of which "missing" cannot be created."""

    def create(name: str, *arguments: Any) -> Loader:
        if name == "missing":
            raise ImportError("it is\nnot installed")
        return create_loader(name, *arguments)

    monkeypatch.setattr(doctor, "candidates", lambda dataset, device: list(names))
    monkeypatch.setattr(doctor_rates, "create_loader", create)


def test_everything_in_one_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch, "roi", "missing")
    written, page = tmp_path / "found.json", tmp_path / "found.html"
    arguments = [str(folder), "--resolutions", "24,32", "--model", "cifar_resnet10", "--seconds", "0.5"]
    assert main([*arguments, "--device", "cpu", "--json", str(written), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    for part in ("PyTorch", "usable cores", "copied.jpg", "again.jpg", "broken.jpg", "roi", "most useful first"):
        assert part in out
    found = json.loads(written.read_text())
    assert [row["resolution"] for row in found["predictions"]] == [24, 32]
    assert all(row["images_per_second"] > 0 for row in found["predictions"])
    assert found["failures"] == {"missing": "it is not installed"}
    assert found["advice"][0].startswith("Take what training and validation share, 1 file")
    html = page.read_text()
    assert html.count("<svg") == 3
    assert "again.jpg" in html


def test_loading_alone(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    offer(monkeypatch, "missing")
    found = run(Options(str(folder), resolutions=(24,), model="off", device="cpu", seconds=0.1))
    assert (found.steps, found.predictions) == ((), ())
    measured, advised = capsys.readouterr().out.split("most useful")
    assert "missing is left out: it is not installed" in measured
    assert "Look at why no loader could be measured here. First: missing: it is not installed" in advised
    assert "Nothing" not in advised


def test_a_set_of_damaged_files_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        (tmp_path / "set" / split / "only").mkdir(parents=True)
        for number in range(4):
            damaged(tmp_path / "set" / split / "only", "late", f"{number}")
    found = run(
        Options(str(tmp_path / "set"), resolutions=(24,), model="off", device="cpu", seconds=0.1, loader="torch")
    )
    assert (found.costs, len(found.bad_files)) == ((), 8)
    assert found.failures["torch"].startswith("no readable image found in place of")
    assert "torch is left out: no readable image found" in capsys.readouterr().out


def test_what_was_not_measured_suits_nobody(data: ImageData, capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(findings(data))
    assert capsys.readouterr().out.endswith("Nothing: but no loader was measured.\n")
    loaded = costs(roi=2)
    print_findings(findings(data, costs=tuple(loaded), predictions=tuple(predict(18, 1e5, MUCH, None, loaded, []))))
    assert capsys.readouterr().out.endswith("Nothing: this set and this machine suit each other.\n")


def test_images_that_are_made_up_are_not_looked_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(Options(str(folder), resolutions=(24,), model="off", device="cpu", seconds=0.1, loader="synthetic"))
    assert found.pixels is not None
    assert "broken.jpg" in {Path(path).name for path, _ in found.pixels.bad}
    assert {cost.loader for cost in found.costs} == {"synthetic"}


def test_nothing_is_claimed_of_what_was_not_looked_at(data: ImageData, capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(findings(data, duplicates=Duplicates((), (), 0, 19, 3, 2)))
    out = capsys.readouterr().out
    for text in (
        "Unreadable files: none, with 24 headers read and no image decoded.",
        "Files in both splits: none, among 19 compared.",
        "Not compared, for want of time: 3 files",
        "Not compared, empty or impossible to read: 2 files",
        "The pixels were not looked at",
    ):
        assert text in out


def test_files_that_cannot_be_read_are_no_want_of_time(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(4)]
    for path in paths:
        path.write_bytes(b"a" * 100)
    split = dataset_of(paths, [0, 0, 0, 0])
    paths[3].unlink()
    found = exact_duplicates(ImageData("gone", split, split.select(np.arange(0))), 10, no_bar())
    assert (found.within_train, found.compared, found.unchecked, found.unread) == (2, 3, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/folder"], "does not exist"),
        (["demo", "--seconds", "0"], "--seconds"),
        (["--resolutions", "0"], "--resolutions"),
        (["--num-workers=-1"], "--num-workers"),
        (["--batch-size", "0"], "--batch-size"),
        (["--rand-augment", "2,31"], "--rand-augment"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_model_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(folder), "--model", "resnet1"])
    assert "there is no model 'resnet1'" in capsys.readouterr().err


def test_many_classes_are_shown_in_part(data: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = tuple(f"kind <{number}>" for number in range(60))
    counts = tuple(range(1, 61))
    found = findings(data, facts=replace(data_facts(data), classes=many, train_counts=counts, val_counts=counts))
    print_findings(found)
    out = capsys.readouterr().out
    assert "kind <59>" in out
    assert "48 more" in out
    write_page(tmp_path / "page.html", found)
    assert "60 classes, largest first" in (tmp_path / "page.html").read_text()


def test_bars_name_their_class_and_escape_it() -> None:
    assert "&lt;b&gt;: 3 for training, 0 for validation" in bar_chart([("<b>", 3, 0), ("none", 0, 0)], "classes")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2.5e9, "2.5 GB"), (3e15, "3,000 TB")]
)
def test_byte_counts(size: float, text: str) -> None:
    assert byte_count(size) == text
