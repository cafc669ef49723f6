"""Training by the region loader: when a folder is packed first."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from engine import train
from kernels.jpeg import JpegLibraryError, load_library
from loaders.opening import open_data
from loaders.packed_manifest import MANIFEST
from loaders.plan import EpochPlan, View
from tests.folders import image_folder
from tests.packed_photos import create, opened

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)

SMALL = ["--model", "resnet10t", "--batch-size", "8", "--resolutions", "32", "--num-workers", "1", "--threads", "1"]
ENGINE = [*SMALL, "--epochs", "1", "--loader", "roi"]


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "colors", train=24, val=9)


def train_on(folder: Path, root: Path, *options: str) -> None:
    assert (
        train.main([str(folder), *ENGINE, "--output", str(root / "runs"), "--cache", str(root / "cache"), *options])
        == 0
    )


def packing_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if "Packing" in record.getMessage()]
    caplog.clear()
    return messages


def test_training_packs_a_folder_once(colors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace")
    train_on(colors, tmp_path)
    (manifest,) = (tmp_path / "cache").glob(f"packed/*/{MANIFEST}")
    (message,) = packing_messages(caplog)
    assert str(manifest.parent) in message
    assert "--pack off" in message
    written = manifest.stat().st_mtime_ns
    train_on(colors, tmp_path)
    assert packing_messages(caplog) == []
    assert manifest.stat().st_mtime_ns == written
    assert len(list((tmp_path / "cache" / "packed").iterdir())) == 1


def test_training_on_files_as_they_are(colors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace")
    train_on(colors, tmp_path, "--pack", "off")
    assert packing_messages(caplog) == []
    assert not (tmp_path / "cache" / "packed").exists()


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="jpegtran is not installed")
def test_training_on_the_original_data(colors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace")
    train_on(colors, tmp_path, "--pack", "keep")
    (message,) = packing_messages(caplog)
    assert "original" in message
    (manifest,) = (tmp_path / "cache").glob(f"packed/*/{MANIFEST}")
    packed, plain = opened(manifest.parent), open_data(str(colors), show_progress=False).train
    by_name = {Path(plain.paths[index]).name: index for index in range(len(plain))}
    view = View.evaluation(32, len(packed))
    with create(packed, plain) as loader:
        (kept,) = loader.run(EpochPlan(packed, 0, view))
        (read,) = loader.run(EpochPlan(plain, 0, view))
    order = [by_name[Path(packed.paths[index]).name] for index in range(len(packed))]
    assert torch.equal(kept.images, read.images[order]), "without loss"
