"""Packing for tests: what to pack, and a look at what became of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from loaders.pack_job import pack
from loaders.pack_records import PackOptions
from loaders.pack_sources import PackSource
from loaders.packed import PackedDataset, open_packed, verify_record
from loaders.packed_manifest import Manifest
from tests.images import damaged, exif, photo


def kinds_of_files(root: Path) -> Path:
    """Write a folder with files of all kinds, bad ones among them, in one class, and ordinary photos in another."""
    for split in ("train", "val"):
        for name in ("odd", "plain"):
            (root / split / name).mkdir(parents=True)
    for number in range(6):
        photo(150 + 10 * number, 120, number).save(root / "train/plain" / f"p{number}.jpg", quality=92)
    photo(90, 140, 50).save(root / "val/plain/q0.jpg")
    photo(60, 40, 51).save(root / "val/odd/q1.jpg")
    odd = root / "train/odd"
    picture = photo(200, 130, 7)
    picture.save(odd / "progressive.jpg", progressive=True, quality=88)
    picture.save(odd / "turned.jpg", exif=exif(6), quality=90)
    picture.convert("L").save(odd / "gray.jpg", quality=90)
    picture.convert("CMYK").save(odd / "cmyk.jpg", quality=95)
    picture.save(odd / "rgb.jpg", keep_rgb=True, quality=95)
    picture.save(odd / "full.jpg", subsampling="4:4:4", quality=90, comment=b"secret")
    picture.save(odd / "half.jpg", subsampling="4:2:2", quality=90)
    picture.save(odd / "alpha.png")
    picture.convert("RGBA").save(odd / "rgba.png")
    Image.fromarray(np.arange(100 * 80, dtype=np.uint16).reshape(80, 100) * 8).save(odd / "deep.png")
    Image.fromarray(np.random.default_rng(3).integers(0, 2, (90, 90, 3), np.uint8) * 255).save(odd / "noise.png")
    photo(1, 1, 8).save(odd / "dot.png")
    data = (root / "train/plain/p0.jpg").read_bytes()
    half = len(data) // 2
    (odd / "corrupt.jpg").write_bytes(data[:half] + b"\xff\xd3" + data[half:])  # Pillow shows what comes before
    for damage in ("early", "empty", "text"):
        damaged(odd, damage, damage)
    return root


def packing(source: PackSource, folder: Path, workers: int = 1, **options: object) -> Manifest:
    return pack(source, folder, PackOptions(**options), workers=workers, show_progress=False)  # type: ignore[arg-type]


def opened(folder: Path) -> tuple[PackedDataset, PackedDataset]:
    data = open_packed(folder)
    assert isinstance(data.train, PackedDataset) and isinstance(data.val, PackedDataset)
    return data.train, data.val


def records_by_name(folder: Path) -> dict[str, tuple[PackedDataset, int]]:
    return {Path(d.paths[i]).name: (d, i) for d in opened(folder) for i in range(len(d))}


def image_of(dataset: PackedDataset, index: int, rendition: int | None = None) -> Image.Image:
    assert verify_record(dataset, index, rendition) is None
    image = Image.open(io.BytesIO(dataset.record(index, rendition).tobytes()))
    image.load()
    return image


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def difference(first: Image.Image, second: Image.Image) -> float:
    pixels = [np.asarray(image.convert("RGB"), np.float64) for image in (first, second)]
    assert pixels[0].shape == pixels[1].shape
    return float(np.abs(pixels[0] - pixels[1]).mean())
