"""What a switch of the image size costs: the first steps at a new size against those that follow, and the way back."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import torch

from bench.gpu_process import Job, Reporter
from bench.gpu_training import DTYPE, Trainee
from bench.gpu_turns import synchronize

if TYPE_CHECKING:
    from bench.gpu_images import Feed

_LADDER, _SHADOW_LADDER = (128, 160, 192, 224), (16, 24)
_FIRST = 5  # steps or batches that a switch may slow down
_STEADY, _SHADOW_STEADY = 10, 1
_FEEDS, _SHADOW_FEEDS = ("dali", "roi", "torch"), ("roi",)
_MIN_SECONDS = 20.0


def run(job: Job, report: Reporter) -> None:
    """Measure training as it is, loaders, and training with a compiled model."""
    ladder = _SHADOW_LADDER if job.is_shadow else _LADDER
    model = "resnet18" if job.is_shadow else "resnet50"
    needs = 0 if job.is_shadow else _MIN_SECONDS
    report.attempt(f"{model}, not compiled", partial(_training, model, False, ladder, job, report), needs)
    report.attempt("loaders", partial(_loaders, ladder, job, report), needs)
    report.attempt("resnet18, compiled", partial(_training, "resnet18", True, ladder, job, report), needs)


def _training(model: str, compiled: bool, ladder: tuple[int, ...], job: Job, report: Reporter) -> None:
    """Go up the ladder as far as time allows, and up again."""
    how = "compiled" if compiled else "not compiled"
    trainee = Trainee(model, job, compiled)
    begin = time.perf_counter()
    trainee.step(*trainee.random_batch(job.batch_size, ladder[0] // 2))  # what the first step of all costs is not asked
    synchronize(job)
    slowest = time.perf_counter() - begin
    seen: list[int] = []
    for resolution in ladder:
        if report.remaining < 2 * slowest:
            report.left_out(f"{model} at {resolution} px, {how}", "no time was left")
            continue
        first = _visit(trainee, model, how, "first", resolution, job, report)
        slowest = max(slowest, first)
        seen.append(resolution)
    for resolution in seen:
        _visit(trainee, model, how, "second", resolution, job, report)


def _visit(trainee: Trainee, model: str, how: str, visit: str, resolution: int, job: Job, report: Reporter) -> float:
    """Report on some steps at a size; return the seconds that the first one took."""
    images, labels = trainee.random_batch(job.batch_size, resolution)
    seconds = [_seconds(partial(trainee.step, images, labels), job) for _ in range(_FIRST + _steady(job))]
    steady, cost = _cost(seconds, _FIRST)
    memory = {} if job.is_shadow else {"reserved_mb": torch.cuda.memory_reserved() / 1e6}
    report.row(
        f"Switching the size of {model}, {how}",
        resolution=resolution,
        visit=visit,
        first_step_ms=1000 * seconds[0],
        second_step_ms=1000 * seconds[1],
        steady_step_ms=1000 * steady,
        switch_ms=1000 * cost,
        **memory,
    )
    return seconds[0]


def _loaders(ladder: tuple[int, ...], job: Job, report: Reporter) -> None:
    from bench.gpu_images import open_feeds, open_photos  # needs what opens data sets

    feeds = open_feeds(_SHADOW_FEEDS if job.is_shadow else _FEEDS, open_photos(job), job, report, DTYPE)
    for feed in feeds:
        report.attempt(f"loader {feed.name}", partial(_loader, feed, ladder, job, report))
        feed.close()


def _loader(feed: Feed, ladder: tuple[int, ...], job: Job, report: Reporter) -> None:
    """Leave an epoch and begin one of another size.

    At the beginning of an epoch each worker process makes a batch, and all of these arrive nearly together: the first
    such bursts are the switch, and a steady batch is what the others take on average.
    """
    from bench.gpu_images import burst

    with closing(feed.batches(ladder[0] // 2)) as batches:
        next(batches)
    at_once = burst(feed.name, job)
    first = -(-_FIRST // at_once) * at_once
    count = first + max(2, -(-_steady(job) // at_once)) * at_once
    took = 0.0
    for visit in ("first", "second"):
        for resolution in ladder:
            if report.remaining < 2 * took:
                report.left_out(f"loader {feed.name} at {resolution} px, {visit} visit", "no time was left")
                continue
            begin = time.perf_counter()
            with closing(feed.batches(resolution)) as batches:
                seconds = [_seconds(partial(next, batches), job) for _ in range(count)]
            took = time.perf_counter() - begin
            steady, cost = _cost(seconds, first)
            report.row(
                "Switching the size of a loader",
                loader=feed.name,
                resolution=resolution,
                visit=visit,
                first_batch_ms=1000 * seconds[0],
                steady_batch_ms=1000 * steady,
                switch_ms=1000 * cost,
            )


def _steady(job: Job) -> int:
    return _SHADOW_STEADY if job.is_shadow else _STEADY


def _cost(seconds: list[float], first: int) -> tuple[float, float]:
    """Return the time of a steady step, on average over those behind the first ones, and what these took beyond it."""
    steady = sum(seconds[first:]) / len(seconds[first:])
    return steady, sum(seconds[:first]) - first * steady


def _seconds(step: Callable[[], object], job: Job) -> float:
    begin = time.perf_counter()
    step()
    synchronize(job)
    return time.perf_counter() - begin
