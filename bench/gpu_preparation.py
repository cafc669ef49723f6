"""Everything that is done once, so that it takes no other section's time: compiled loops, packed sets, indexes."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial

from bench.gpu_images import LOADERS, Feed, Photos, open_photos
from bench.gpu_process import Job, Reporter


def run(job: Job, report: Reporter) -> None:
    """Take a batch from each loader."""
    photos = open_photos(job)
    train = photos.data.train
    report.row("Images", data=photos.data.name, images=len(train), kilobytes=float(train.sizes.mean()) / 1000)
    for name in LOADERS:
        report.attempt(f"loader {name}", partial(_first_batch, name, photos, job, report))


def _first_batch(name: str, photos: Photos, job: Job, report: Reporter) -> None:
    begin = time.perf_counter()
    feed = Feed.open(name, photos, job)
    try:
        with closing(feed.batches(32)) as batches:
            next(batches)
        what = feed.loader.describe()
    finally:
        feed.close()
    report.row("From nothing to the first batch", loader=name, seconds=time.perf_counter() - begin, runs=what)
