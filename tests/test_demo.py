"""The demo set: the same everywhere, in ten classes, safe to make twice at once."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders import demo
from loaders.demo import CLASSES, IMAGES, demo_folder, draw_image, write_demo
from loaders.opening import open_data


@pytest.fixture
def few_images(monkeypatch):
    monkeypatch.setattr(demo, "IMAGES", {"train": 40, "val": 20})


def contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_demo_is_deterministic(tmp_path):
    for name in ("one", "two"):
        write_demo(tmp_path / name, {"train": 60, "val": 20}, show_progress=False)
    first = contents(tmp_path / "one")
    assert len(first) == 80
    assert len(set(first.values())) == 80
    assert first == contents(tmp_path / "two")


def test_pixels_do_not_depend_on_the_version(tmp_path):
    pixels = np.concatenate([draw_image(0, index, *kind).ravel() for index, kind in enumerate(CLASSES.values())])
    assert pixels.dtype == np.uint8
    # A wide tolerance: another machine's sine may differ in its last bit, another layout of the draws moves far more.
    assert pixels.mean() == pytest.approx(86.780, abs=0.01)
    assert pixels.std() == pytest.approx(46.786, abs=0.01)


def test_demo_opens_by_name(tmp_path, few_images):
    data = open_data("demo", cache=tmp_path, show_progress=False)
    assert data.classes == tuple(sorted(CLASSES)) == tuple(CLASSES)
    assert data.train.class_counts().tolist() == [4] * 10
    assert data.val.class_counts().tolist() == [2] * 10
    assert not data.train.problems
    sides = np.stack([data.train.widths, data.train.heights])
    assert 72 <= sides.min() <= sides.max() <= 200
    assert len(np.unique(sides)) > 20
    assert data.train.name == "demo/train"


def test_full_size():
    assert IMAGES == {"train": 4000, "val": 1000}


def test_two_at_once_do_not_break_each_other(tmp_path, few_images):
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: demo_folder(tmp_path, show_progress=False), range(2)))
    assert folders[0] == folders[1]
    assert len(contents(folders[0])) == 60
    assert os.listdir(tmp_path) == [folders[0].name]


def test_a_crash_leaves_nothing(tmp_path, few_images, monkeypatch):
    def fail(*_args, **_keywords):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail)
        with pytest.raises(OSError, match="No space"):
            demo_folder(tmp_path, show_progress=False)
    assert os.listdir(tmp_path) == []
    assert len(contents(demo_folder(tmp_path, show_progress=False))) == 60


def test_fine_detail_is_gone_at_32_and_there_at_64():
    """The stripes of a disc keep most of their contrast at 64 pixels and less than half of that at 32."""

    def roughness(pattern: str, resolution: int) -> float:
        values = []
        for index in range(30):
            image = Image.fromarray(draw_image(0, index, *CLASSES[pattern])).convert("L")
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            small = image.resize(
                (resolution, resolution), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
            )
            middle = slice(resolution // 2 - resolution // 8, resolution // 2 + resolution // 8)
            values.append(np.asarray(small, np.float64)[middle, middle].std())
        return float(np.median(values))

    contrast = {resolution: roughness("striped-disc", resolution) for resolution in (32, 64, 128)}
    assert contrast[64] > 0.7 * contrast[128]
    assert contrast[32] < 0.5 * contrast[64]
