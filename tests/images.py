"""Images, damaged files and data sets for tests."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from loaders.dataset import ImageDataset, PixelForm, StringColumn
from loaders.pixels import PixelError, open_image, orientation_of

_FORMS = {"RGB": PixelForm.RGB, "L": PixelForm.GRAY, "CMYK": PixelForm.CMYK}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an RGB picture with what photos have: smooth shading, edges, a frame and a little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    phase = random.uniform(0, 6, (2, 3))
    waves = np.sin(x[..., None] / 17 + phase[0]) + np.cos(y[..., None] / 23 + phase[1])
    pixels = 128 + 45 * waves + random.normal(0, 3, (height, width, 3))
    pixels[(x + 2 * y) // 40 % 5 == 0] *= 0.5
    pixels[0] = pixels[:, -1] = 250
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def exif(orientation: int) -> Image.Exif:
    """Return EXIF data with an orientation."""
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def dataset_of(
    paths: Sequence[Path], labels: Sequence[int] | None = None, name: str = "test", num_classes: int = 3
) -> ImageDataset:
    """Index files by what Pillow reads in their headers."""
    widths, heights, orientations, forms = [], [], [], []
    problems = {}
    for index, path in enumerate(paths):
        try:
            with open_image(path) as image:
                # Pillow looks for EXIF data behind the pixels of a PNG, too; no need to decode them here.
                orientation = 1 if image.format == "PNG" and "exif" not in image.info else orientation_of(image)
                size = image.size if orientation < 5 else image.size[::-1]
                form = _FORMS.get(image.mode, PixelForm.OTHER)
        except PixelError as error:
            problems[index] = str(error)
            size, orientation, form = (1, 1), 1, PixelForm.UNREADABLE
        widths.append(size[0])
        heights.append(size[1])
        orientations.append(orientation)
        forms.append(form)
    return ImageDataset(
        name=name,
        classes=tuple(f"class {c}" for c in range(num_classes)),
        paths=StringColumn.of(map(str, paths)),
        labels=np.asarray(labels if labels is not None else np.arange(len(paths)) % num_classes, np.int64),
        widths=np.array(widths, np.int32),
        heights=np.array(heights, np.int32),
        orientations=np.array(orientations, np.uint8),
        forms=np.array(forms, np.uint8),
        sizes=np.array([path.stat().st_size for path in paths], np.int64),
        problems=problems,
    )


def photos(folder: Path, count: int, sizes: Sequence[tuple[int, int]] = ((90, 70), (64, 80), (50, 50))) -> list[Path]:
    """Write JPEG photos of several sizes and return their paths."""
    paths = []
    for number in range(count):
        path = folder / f"photo{number:03d}.jpg"
        photo(*sizes[number % len(sizes)], seed=number).save(path, quality=90)
        paths.append(path)
    return paths


DAMAGES = ("early", "late", "png", "webp", "bmp", "empty", "text", "bomb")


def damaged(folder: Path, damage: str, name: str = "bad") -> Path:
    """Write a file that Pillow refuses and return its path.

    Args:
        damage: one of DAMAGES: a JPEG cut off early or late, another format cut off, an empty file, a text, a header
            that promises 400 megapixels.
    """
    suffix = f".{damage}" if damage in ("png", "webp", "bmp") else ".png" if damage == "bomb" else ".jpg"
    path = folder / f"{name}{suffix}"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("This is no image.")
    elif damage == "bomb":
        header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
        chunks = [header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
        data = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    else:
        photo(80, 60, seed=7).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: int({"early": 0.4, "late": 0.97}.get(damage, 0.6) * len(data))])
    return path
