"""A packed set of photos, the region loader on it, and what Pillow makes of its records."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from loaders.bad_samples import BadSamples
from loaders.contract import Batch
from loaders.dataset import ImageDataset
from loaders.opening import open_data
from loaders.pack_job import pack
from loaders.pack_records import PackOptions
from loaders.pack_sources import source_of
from loaders.packed import PackedDataset, open_packed
from loaders.pixels import load_window
from loaders.plan import draw_batch
from loaders.roi_backend import RoiLoader
from tests.images import photo

TOLERANCE = 0.5  # mean absolute difference to Pillow on the stored bytes, of 255


def pack_photos(root: Path) -> Path:
    """Write photos and pack them: a set with two shards for training and two renditions."""
    for split, count in (("train", 31), ("val", 10)):
        for number in range(count):
            path = root / "photos" / split / ("cat", "dog")[number % 2] / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(400 - 3 * number, 310 + 2 * number, number).save(path, quality=92)
    source = source_of(open_data(str(root / "photos"), show_progress=False))
    pack(source, root / "set", PackOptions(shard_mb=1, renditions=(200, 100)), workers=1, show_progress=False)
    return root / "set"


def opened(folder: Path) -> PackedDataset:
    train = open_packed(folder).train
    assert isinstance(train, PackedDataset)
    return train


def create(*datasets: ImageDataset, threads: int = 2, bad_samples: BadSamples | None = None) -> RoiLoader:
    return RoiLoader(datasets, threads, BadSamples() if bad_samples is None else bad_samples)


def contents(batches: Iterator[Batch]) -> list[tuple[list[int], list[int], bytes]]:
    return [(b.indices.tolist(), b.labels.tolist(), b.images.numpy().tobytes()) for b in batches]


def version_for(dataset: PackedDataset, index: int, window: np.ndarray, resolution: int) -> int | None:
    """Return the smallest rendition of a sample whose window has the resolution; None for the image."""
    chosen = None
    for number, rendition in enumerate(dataset.renditions):
        if min(window[2] * rendition.widths[index], window[3] * rendition.heights[index]) >= resolution:
            chosen = number
    return chosen


def differences(dataset: PackedDataset, batch: Batch, version: int | str | None = "chosen") -> list[float]:
    """Return the mean absolute difference to Pillow on the stored bytes, of each sample."""
    view = batch.plan.view
    plan = draw_batch(dataset, view, batch.plan.seed, batch.plan.epoch, 0, batch.indices.numpy(), batch.keys)
    found = []
    for position, index in enumerate(plan.indices.tolist()):
        window = plan.windows[position]
        which = version_for(dataset, index, window, view.resolution) if version == "chosen" else version
        record = io.BytesIO(dataset.record(index, which).tobytes())  # type: ignore[arg-type]
        expected = load_window(record, window, view.resolution, int(dataset.orientations[index]))
        if plan.flips[position]:
            expected = expected[:, ::-1]
        found.append(float(np.abs(batch.images[position].permute(1, 2, 0).numpy().astype(int) - expected).mean()))
    return found
