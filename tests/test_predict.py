from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from engine.model import create_model
from engine.predict import Options, run
from engine.saved_model import SavedModel, save_model

CLASSES = ("red", "green", "blue")


class BrightestChannel(nn.Module):
    """Says which color an image has; the pixels it sees go through the whole path."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(8.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.sharpness * images.mean(dim=(2, 3))


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("engine.saved_model.create_model", lambda name, classes, **arguments: BrightestChannel())
    folder = tmp_path / "run"
    folder.mkdir()
    saved = SavedModel("brightest", CLASSES, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), resolution=16)
    save_model(folder / "model.safetensors", BrightestChannel(), saved)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for index, name in enumerate(("c.png", "a.png", "below/b.png", "d.png", "e.png")):
        color = [20, 20, 20]
        color[index % 3] = 220
        Image.new("RGB", (30 + index, 20), tuple(color)).save(folder / name)
    (folder / "empty.jpg").write_bytes(b"")
    cut = folder / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-900])
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_every_image_has_its_row_bad_ones_too(trained: Path, photos: Path, tmp_path: Path, loader: str) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    output = tmp_path / "out.csv"
    message = run(Options(trained, photos, output, batch_size=2, loader=loader, num_workers=1, device="cpu"))  # type: ignore[arg-type]
    rows = {Path(row["path"]).name: row for row in rows_of(output)}
    assert "5 images classified; 2 could not be decoded" in message
    expected = {"c.png": "red", "a.png": "green", "b.png": "blue", "d.png": "red", "e.png": "green"}
    assert {name: row["class"] for name, row in rows.items()} == expected | {"empty.jpg": "", "cut.jpg": ""}
    assert all(float(rows[name]["probability"]) > 0.9 and not rows[name]["problem"] for name in expected)
    assert rows["empty.jpg"]["problem"] == "the file is empty"
    assert rows["cut.jpg"]["problem"]


def test_several_classes_are_written_the_most_probable_first(trained: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    run(Options(trained, photos / "a.png", output, top_k=5, loader="torch", num_workers=0, device="cpu"))
    (row,) = rows_of(output)
    probabilities = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
    assert {row["class"], row["class_2"], row["class_3"]} == set(CLASSES)
    assert "class_4" not in row


def test_a_trained_architecture_is_used_through_the_file_alone(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    saved = SavedModel("cifar_resnet10", CLASSES, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), resolution=32)
    file = tmp_path / "any-name.safetensors"
    save_model(file, create_model(saved.model, 3), saved)
    run(Options(file, photos, tmp_path / "out.csv", loader="torch", num_workers=1, device="cpu"))
    assert {row["class"] for row in rows_of(tmp_path / "out.csv")} <= {*CLASSES, ""}


def test_options_out_of_range_are_refused(trained: Path, photos: Path) -> None:
    with pytest.raises(ValueError, match="--top-k"):
        run(Options(trained, photos, top_k=0))
