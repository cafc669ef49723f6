"""Data stall: what share of the rate on a batch that lies ready a model loses when a loader feeds it."""

from __future__ import annotations

from functools import partial

from bench.gpu_images import LOADERS, Feed, open_feeds, open_photos
from bench.gpu_process import Job, Reporter, UnavailableError
from bench.gpu_training import DTYPE, Trainee
from bench.gpu_turns import Images, Turns, least_seconds, rates, ratio
from bench.measure import Spread

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
    """Measure models and sizes, the extremes first, as many as there is time for."""
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
            share = report.remaining / (len(runs) - number)
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
    cells = {_READY: partial(_on_ready_batch, trainee, resolution, job)}
    for feed in feeds:
        cells[feed.name] = partial(_on_loader, trainee, resolution, feed)
    found = rates(cells, Turns.within(seconds, len(cells), job.is_shadow), job, report)
    ready = found.pop(_READY)
    title = f"Training {model} at {resolution} px, bfloat16, channels_last"
    report.row(title, images=_READY, images_per_second=Spread.of(ready))
    for name, rate in found.items():
        kept = ratio(rate, ready)
        stall = Spread(100 * (1 - kept.median), 100 * (1 - kept.max), 100 * (1 - kept.min))
        report.row(title, images=name, images_per_second=Spread.of(rate), data_stall_percent=stall)


def _on_ready_batch(trainee: Trainee, resolution: int, job: Job) -> Images:
    images, labels = trainee.random_batch(job.batch_size, resolution)
    while True:
        trainee.step(images, labels)
        yield len(labels)


def _on_loader(trainee: Trainee, resolution: int, feed: Feed) -> Images:
    for batch in feed.batches(resolution):
        trainee.step(batch.images, batch.labels)
        yield len(batch)
