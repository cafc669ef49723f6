"""Small image folders: some that a network can learn, some of next to no pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loaders.dataset import ImageData
from loaders.opening import open_data

COLORS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


def image_folder(root: Path, train: int = 24, val: int = 9, side: int = 40) -> Path:
    """Write ``train/`` and ``val/`` with a class folder for each color; the counts are images over all classes."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            name = sorted(COLORS)[number % len(COLORS)]
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:04d}.jpg").write_bytes(colored_jpeg(name, number + 10_000 * (split == "val"), side))
    return root


def colored_jpeg(name: str, seed: int, side: int = 40) -> bytes:
    """Return a noisy JPEG of a class's color."""
    random = np.random.default_rng(seed)
    width, height = random.integers(side, 2 * side, 2)
    pixels = np.array(COLORS[name]) + random.normal(0, 40, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def make_image(path: Path, shade: int = 0) -> None:
    """Write an image of 6 by 4 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, 0, 0)).save(path)


def make_classes(root: Path, counts: dict[str, int]) -> None:
    """Write a folder of such images for each class."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            make_image(root / name / f"{index}.png", index)


def opened(source: Path | str, tmp_path: Path, **options: Any) -> ImageData:
    """Open data with a cache of the test's own."""
    return open_data(str(source), cache=tmp_path / "cache", show_progress=False, **options)
