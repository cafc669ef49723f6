"""Data stall: what share of the rate on a batch that lies ready a model loses when a loader feeds it."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import torch

from bench.gpu_images import LOADERS, Feed, burst, held, open_feeds, open_photos
from bench.gpu_process import Job, Reporter, UnavailableError
from bench.gpu_training import DTYPE, Trainee
from bench.gpu_turns import Cell, Turns, good_seconds, least_seconds, rates, ratio
from bench.measure import Spread
from loaders.transfer import DeviceBatch

_READY = "a ready batch"
_RUNS = (
    ("resnet50", 224),
    ("resnet18", 128),
    ("resnet50", 128),
    ("resnet18", 224),
    ("resnet50", 160),
    ("resnet18", 160),
    ("resnet50", 192),
    ("resnet18", 192),
)
_SHADOW_LOADERS = ("roi", "dali")
_SHADOW_RUNS = (("resnet18", 32),)


def run(job: Job, report: Reporter) -> None:
    """Measure models and sizes, the extremes first, as many as there is time for with turns of a good length."""
    photos = open_photos(job)
    feeds = open_feeds(_SHADOW_LOADERS if job.is_shadow else LOADERS, photos, job, report, DTYPE)
    if not feeds:
        raise UnavailableError("no loader can run here")
    runs = _SHADOW_RUNS if job.is_shadow else _RUNS
    trainees = {}
    try:
        for number, (model, resolution) in enumerate(runs):
            if model not in trainees:
                trainees[model] = Trainee(model, job)
            share = max(report.remaining / (len(runs) - number), good_seconds(1 + len(feeds), job.is_shadow))
            report.attempt(
                f"{model} at {resolution} px",
                partial(_stall, trainees[model], model, resolution, feeds, share, job, report),
                needs=least_seconds(1 + len(feeds), job.is_shadow),
            )
    finally:
        for feed in feeds:
            feed.close()


def _stall(
    trainee: Trainee, model: str, resolution: int, feeds: list[Feed], seconds: float, job: Job, report: Reporter
) -> None:
    def on_ready_batch(batch: tuple[torch.Tensor, torch.Tensor]) -> int:
        trainee.step(*batch)
        return len(batch[1])

    def on_loader(batch: DeviceBatch) -> int:
        trainee.step(batch.images, batch.labels)
        return len(batch)

    cells = {_READY: Cell(partial(_ready_batches, trainee, resolution, job), on_ready_batch)}
    for feed in feeds:
        cells[feed.name] = Cell(
            partial(feed.batches, resolution), on_loader, held(feed.name, job), burst(feed.name, job)
        )
    title = f"Training {model} at {resolution} px, bfloat16, channels_last"
    for found in rates(cells, Turns.within(seconds, len(cells), job.is_shadow), job, report):
        ready = found.pop(_READY, None)
        if ready is None:
            raise UnavailableError("the model cannot be trained on a batch that lies ready")
        report.update(title, images=_READY, images_per_second=Spread.of(ready))
        for name, rate in found.items():
            kept = ratio(rate, ready)
            stall = Spread(100 * (1 - kept.median), 100 * (1 - kept.max), 100 * (1 - kept.min))
            report.update(title, images=name, images_per_second=Spread.of(rate), data_stall_percent=stall)


def _ready_batches(
    trainee: Trainee, resolution: int, job: Job
) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    batch = trainee.random_batch(job.batch_size, resolution)
    while True:
        yield batch
