"""FFCV's file for tests: loaders on it, and its records decoded by Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loaders import ffcv_file
from loaders.bad_samples import BadSamples
from loaders.contract import Batch
from loaders.dataset import ImageDataset
from loaders.ffcv_backend import FfcvLoader
from loaders.ffcv_file import JPEG_500, Beton, Storage

RAW = Storage(500, None)  # the tests' photos, as they are


def loader_of(dataset: ImageDataset, cache: Path, storage: Storage = JPEG_500, **options: Any) -> FfcvLoader:
    options = {"num_workers": 1, "bad_samples": BadSamples(max_fraction=0.5)} | options
    return FfcvLoader([dataset], storage=storage, cache=cache, show_progress=False, **options)


def stored(beton: Beton, index: int) -> Image.Image:
    """Decode a record with Pillow."""
    data = beton.record(index).tobytes()
    if beton.modes[index] == ffcv_file.JPEG:
        return Image.open(io.BytesIO(data))
    return Image.frombytes("RGB", (int(beton.widths[index]), int(beton.heights[index])), data)


def differences(beton: Beton, batch: Batch) -> np.ndarray:
    """Return the mean absolute difference to Pillow of every image of a batch, on the stored bytes."""
    out = []
    size = batch.plan.resolution
    for image, index, window, flip in zip(
        batch.images.permute(0, 2, 3, 1).numpy(), batch.indices, batch.plan.windows, batch.plan.flips, strict=True
    ):
        whole = stored(beton, int(index))
        left, top, width, height = window * (whole.size * 2)
        box = (left, top, min(left + width, whole.width), min(top + height, whole.height))
        expected = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box=box))
        out.append(np.abs(image.astype(int) - (expected[:, ::-1] if flip else expected)).mean())
    return np.array(out)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(data)
