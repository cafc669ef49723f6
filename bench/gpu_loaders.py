"""How fast images reach the GPU: our loaders, a set that lies there, and what DALI's decoder makes of its options."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial

import torch

from bench.gpu_images import LOADERS, Feed, Photos, burst, held, open_photos
from bench.gpu_process import Job, Reporter, UnavailableError, Value
from bench.gpu_turns import Cell, Turns, least_seconds, rates, ratio
from bench.measure import Spread
from bench.peers import FLIP, MEAN, STD
from kernels.fused import fuse
from loaders.transfer import DeviceBatch

_RESIDENT = "resident"


def run(job: Job, report: Reporter) -> None:
    """Measure all of it, the more important first."""
    photos = open_photos(job)
    resolutions = (32,) if job.is_shadow else (224, 128)
    first = resolutions[0]
    parts = [
        *((f"loaders at {side} px", _loaders, side, len(LOADERS) + 1) for side in resolutions),
        (f"DALI's JPEG engine at {first} px", _engine, first, 5),
        *((f"cut regions at {side} px", _regions, side, 2) for side in resolutions),
    ]
    for number, (name, part, side, cells) in enumerate(parts):
        share = report.remaining * cells / sum(cells for *_, cells in parts[number:])
        report.attempt(name, partial(part, photos, side, job, report, share), least_seconds(cells, job.is_shadow))


def _loaders(photos: Photos, resolution: int, job: Job, report: Reporter, seconds: float) -> None:
    cells = {
        name: Cell(partial(_delivered, name, photos, resolution, job), held=held(name, job), burst=burst(name, job))
        for name in LOADERS
    }
    cells[_RESIDENT] = Cell(partial(_resident, resolution, job))
    title = f"Images normalized on the device, {resolution} px"
    _table(title, "loader", cells, "torch", seconds, job, report)


def _delivered(name: str, photos: Photos, resolution: int, job: Job) -> Generator[DeviceBatch, None, None]:
    feed = Feed.open(name, photos, job)
    try:
        yield from feed.batches(resolution)
    finally:
        feed.close()


def _resident(resolution: int, job: Job) -> Generator[torch.Tensor, None, None]:
    """Take batches of a set whose pixels lie on the device at this size; flip and normalize them there.

    The pixels are random, as their values do not matter, and more than the caches hold.
    """
    device = torch.device(job.device)
    size = ((2 if job.is_shadow else 32) * job.batch_size, 3, resolution, resolution)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
    while True:
        for indices in torch.randperm(len(pixels), device=device).split(job.batch_size):
            flip = torch.rand(len(indices), device=device) < FLIP
            yield fuse(pixels[indices], MEAN, STD, flip=flip)


def _engine(photos: Photos, resolution: int, job: Job, report: Reporter, seconds: float) -> None:
    from bench.gpu_pipelines import HARDWARE_LOADS, random_crops

    loads = [None] if job.is_shadow else list(HARDWARE_LOADS)
    cells = {
        "on the CPU" if load is None else f"{load:g}": Cell(partial(random_crops, photos, resolution, load, job))
        for load in loads
    }
    title = f"Plain DALI, share of the JPEG engine (hw_decoder_load), {resolution} px"
    _table(title, "share", cells, "0.65", seconds, job, report)


def _regions(photos: Photos, resolution: int, job: Job, report: Reporter, seconds: float) -> None:
    from bench.gpu_pipelines import cut_samples, sample_images

    samples = cut_samples(photos, resolution, job)

    def decoded(are_cut: bool) -> torch.Tensor:
        with closing(sample_images(samples, are_cut, job)) as batches:
            return next(batches).cpu().int()

    whole, cut = decoded(False), decoded(True)
    difference = (whole - cut).abs().float()
    report.check(
        f"DALI decodes regions cut out of JPEGs as it does the whole, {resolution} px",
        float(difference.mean()) < 0.5,
        f"mean difference {float(difference.mean()):.3f}, largest {int(difference.max())} of 255; "
        f"{samples.share:.0%} of the bytes",
    )
    cells = {
        "whole JPEGs": Cell(partial(sample_images, samples, False, job)),
        "cut regions": Cell(partial(sample_images, samples, True, job)),
    }
    _table(f"DALI's decoder from memory, {resolution} px", "input", cells, "whole JPEGs", seconds, job, report)


def _table(
    title: str, column: str, cells: Mapping[str, Cell], base: str, seconds: float, job: Job, report: Reporter
) -> None:
    """Measure cells and report after each round what is known: rates, each with its ratio to one of them by round."""
    found: dict[str, list[float]] = {}
    for found in rates(cells, Turns.within(seconds, len(cells), job.is_shadow), job, report):
        for name, rate in found.items():
            row: dict[str, Value] = {column: name, "images_per_second": Spread.of(rate)}
            if base in found and name != base:
                row[f"to {base}"] = ratio(rate, found[base])
            report.update(title, **row)
    if not found:
        raise UnavailableError("none of it can run here")
