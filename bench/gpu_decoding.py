"""Crops that are decoded or resampled on a GPU, against those of a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from bench.gpu_images import ON_DEVICE, Photos, open_named, open_photos
from bench.gpu_process import Job, Reporter
from bench.peers import FLIP, RATIO, SCALE
from loaders.contract import Batch
from loaders.dataset import ImageDataset
from loaders.pixels import load_window
from loaders.plan import EpochPlan, View

_DECODED = 96
_MEAN_DIFFERENCE = 1.0  # of 255: between libjpeg-turbo's arithmetic and a GPU's


def run(job: Job, report: Reporter) -> None:
    """Check DALI's decoding and the region loader's resampling."""
    photos = open_photos(job)
    for resolution in (32,) if job.is_shadow else (128, 224):
        report.attempt(f"decoding, {resolution} px", partial(_decoding, photos, resolution, job, report))
        report.attempt(
            f"resampling on the device, {resolution} px", partial(_resampling, photos, resolution, job, report)
        )


def _decoding(photos: Photos, resolution: int, job: Job, report: Reporter) -> None:
    """Compare the crops that DALI decodes on the GPU with Pillow's."""
    loader, dataset = open_named("dali", photos, job)
    with loader:
        differences = np.array(list(_differences(loader.run(_plan(dataset, resolution)), dataset)))
    report.check(
        f"DALI decodes on the {'CPU' if job.is_shadow else 'GPU'} what Pillow does, {resolution} px",
        bool(differences.max() < _MEAN_DIFFERENCE),
        f"{len(differences)} crops, mean difference {differences.mean():.2f}, of the worst one "
        f"{differences.max():.2f} of 255",
    )


def _plan(dataset: ImageDataset, resolution: int) -> EpochPlan:
    return EpochPlan(dataset, 0, View(resolution, min(32, len(dataset)), scale=SCALE, ratio=RATIO, flip=FLIP))


def _differences(batches: Iterator[Batch], dataset: ImageDataset) -> Iterator[float]:
    """Yield how far each crop is from Pillow's on average, of the first few."""
    delivered = 0
    for batch in batches:
        images = batch.images.permute(0, 2, 3, 1).cpu().numpy().astype(int)
        if not np.array_equal(batch.indices, batch.plan.indices):
            continue  # one was bad, and another stands in its place
        for image, index, window, flip in zip(
            images, batch.plan.indices.tolist(), batch.plan.windows, batch.plan.flips, strict=True
        ):
            orientation = int(dataset.orientations[index])
            expected = load_window(dataset.paths[index], window, batch.plan.resolution, orientation, scaled=False)
            yield float(np.abs(image - (expected[:, ::-1] if flip else expected)).mean())
        delivered += len(batch)
        if delivered >= _DECODED:
            return


def _resampling(photos: Photos, resolution: int, job: Job, report: Reporter) -> None:
    """Compare what the region loader resamples on the device with what it resamples on the host."""
    crops = []
    for name in (ON_DEVICE, "roi"):
        loader, dataset = open_named(name, photos, job)
        with loader:
            batch = next(iter(loader.run(_plan(dataset, resolution))))
            crops.append(batch.images.cpu().int())
    difference = (crops[0] - crops[1]).abs().float()
    report.check(
        f"the region loader resamples on the device as on the host, {resolution} px",
        float(difference.mean()) < _MEAN_DIFFERENCE,
        f"mean difference {float(difference.mean()):.2f}, largest {int(difference.max())} of 255",
    )
