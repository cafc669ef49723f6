"""How ``--loader auto`` chooses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.jpeg import JpegLibraryError
from loaders import choice
from loaders.bad_samples import BadSamples
from loaders.choice import candidates, choose_loader
from loaders.contract import Batch, Loader, LoaderError
from loaders.dataset import ImageDataset
from loaders.opening import open_data
from loaders.pack_job import pack
from loaders.pack_sources import source_of
from loaders.packed import open_packed
from loaders.plan import EpochPlan, View
from loaders.registry import create_loader
from tests.folders import image_folder
from tests.images import dataset_of, photos

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return dataset_of(photos(tmp_path_factory.mktemp("photos"), 12))


@pytest.fixture
def large(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> ImageDataset:
    """A set that counts as large enough to be measured on, in a short time."""
    monkeypatch.setattr(choice, "MIN_IMAGES", len(dataset))
    monkeypatch.setattr(choice, "SECONDS", 0.2)
    return dataset


def choose(dataset: ImageDataset) -> tuple[str, str]:
    return choose_loader(dataset, CPU, 1, 16, 4)


def offer(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(choice, "candidates", lambda dataset, device: list(names))


class TimedLoader(Loader):
    """Delivers nothing but empty batches, in a given time each."""

    name = "timed"
    layout = "NCHW"

    def __init__(self, datasets: list[ImageDataset], seconds: float) -> None:
        super().__init__(datasets, 0, BadSamples())
        self.seconds, self.epochs, self.closed = seconds, 0, False

    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        self.epochs += 1
        for batch in plan:
            time.sleep(self.seconds)
            indices = torch.from_numpy(batch.indices)
            yield Batch(torch.empty(len(batch), 3, 16, 16), indices, indices, batch.keys, batch)

    def close(self) -> None:
        self.closed = True


def timed(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> dict[str, TimedLoader]:
    """Put loaders of a given speed in place of the real ones; return those created."""
    created: dict[str, TimedLoader] = {}

    def create(name: str, datasets: list[ImageDataset], *arguments: Any) -> TimedLoader:
        created[name] = TimedLoader(datasets, seconds[name])
        return created[name]

    offer(monkeypatch, *seconds)
    monkeypatch.setattr(choice, "create_loader", create)
    return created


def refuse() -> str:
    raise JpegLibraryError("libturbojpeg0 is missing")


def test_a_packed_set_is_for_roi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image_folder(tmp_path / "colors", 6, 3)
    pack(source_of(open_data(str(folder), show_progress=False)), tmp_path / "set", workers=1, show_progress=False)
    packed = open_packed(tmp_path / "set").train
    monkeypatch.setattr(choice, "load_library", lambda: "libturbojpeg")
    assert choose(packed) == ("roi", "the set is packed")
    assert candidates(packed, CPU) == ["roi"]
    monkeypatch.setattr(choice, "load_library", refuse)
    with pytest.raises(JpegLibraryError, match="libturbojpeg0"):
        choose(packed)


def test_what_is_installed_decides_on_the_candidates(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"nvidia", "nvidia.dali"}
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: object() if name in installed else None)
    monkeypatch.setattr(choice, "load_library", lambda: "libturbojpeg")
    assert candidates(dataset, CPU) == ["roi", "dali", "torch"]
    assert candidates(dataset, torch.device("cuda")) == ["dali", "roi", "torch"]
    installed.discard("nvidia.dali")
    assert candidates(dataset, torch.device("cuda")) == ["roi", "torch"]
    monkeypatch.setattr(choice, "load_library", refuse)
    installed.clear()
    assert candidates(dataset, CPU) == ["torch"]
    assert choose(dataset) == ("torch", "no other is installed")


def test_small_sets_are_not_measured(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    created = timed(monkeypatch, roi=1, torch=1)
    name, reason = choose(dataset)
    assert name == "roi"
    assert "fewer than 1000 images" in reason
    assert not created


@pytest.mark.parametrize("slow", ["roi", "dali"])
def test_the_fastest_is_chosen_and_the_figures_told(
    large: ImageDataset, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    rates = {"roi": 1000.0, "dali": 1000.0, "torch": 20.0, slow: 12.0}
    offer(monkeypatch, "roi", "dali", "torch")
    monkeypatch.setattr(choice, "_rate", lambda name, *arguments: rates[name])
    name, reason = choose(large)
    assert name == ("dali" if slow == "roi" else "roi")
    assert reason == "images/s measured at 16 px: " + ", ".join(f"{n} {rates[n]:.0f}" for n in ("roi", "dali", "torch"))


def test_loaders_are_measured_and_closed(large: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    created = timed(monkeypatch, slow=0.05, fast=0.001)
    assert choose(large)[0] == "fast"
    assert all(loader.closed for loader in created.values())
    assert created["fast"].epochs > 1, "as many epochs as the time allows"


@pytest.mark.parametrize("error", [LoaderError("x"), ImportError("x"), RuntimeError("x")])
def test_a_loader_that_fails_is_left_out(
    large: ImageDataset, monkeypatch: pytest.MonkeyPatch, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "headrace")
    timed(monkeypatch, broken=0.001, slow=0.02)
    create: Callable[..., Loader] = choice.create_loader

    def fail(name: str, *arguments: Any) -> Loader:
        if name == "broken":
            raise error
        return create(name, *arguments)

    monkeypatch.setattr(choice, "create_loader", fail)
    name, reason = choose(large)
    assert name == "slow"
    assert "broken 0, slow" in reason
    assert "Loader broken left out: x" in caplog.text


def test_real_loaders_are_measured(large: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "torch", "synthetic")
    monkeypatch.setattr(choice, "create_loader", create_loader)
    name, reason = choose_loader(large, CPU, 0, 16, 4)
    rates = {part.split()[0]: float(part.split()[1]) for part in reason.split(": ")[1].split(", ")}
    assert set(rates) == {"torch", "synthetic"}
    assert min(rates.values()) > 0
    assert name == max(rates, key=lambda name: rates[name])


def test_damaged_sets_are_measured_all_the_same(tmp_path: Path) -> None:
    paths = photos(tmp_path, 12)
    dataset = dataset_of(paths)
    for path in paths[:7]:
        path.write_bytes(b"")
    assert choice._rate("torch", EpochPlan(dataset, 0, View(16, 4)), 0, CPU, 0.1) > 0
