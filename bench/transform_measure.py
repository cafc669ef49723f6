"""Measuring the orders of transform lists in turns, on decoded photos, in one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from bench.measure import Spread
from loaders.dataset import ImageDataset
from loaders.opening import DataError
from loaders.pixels import PixelError, decode
from loaders.transforms.apply import Picture, run
from loaders.transforms.cost import single_threaded
from loaders.transforms.planner import Plan

Photos = list[np.ndarray]
SEED = 0


@dataclass(frozen=True)
class Contender:
    """Something that does a transform list to all photos.

    Attributes:
        name: for messages.
        work: does it once.
        results: does it once and returns the images in levels, float32 (H, W, 3) each.
        clock: of the CPU time that the work takes, in seconds.
    """

    name: str
    work: Callable[[], object]
    results: Callable[[], Photos]
    clock: Callable[[], float] = time.thread_time


@dataclass(frozen=True)
class Timing:
    """CPU time per image in milliseconds and images per second of one thread, over the rounds."""

    cpu_ms: Spread
    images_per_second: Spread


def read_photos(dataset: ImageDataset, count: int) -> Photos:
    """Decode the first photos of a set: uint8 (H, W, 3) each.

    Raises:
        DataError: none can be decoded.
    """
    photos: Photos = []
    for index in range(len(dataset)):
        if len(photos) == count:
            break
        try:
            photos.append(np.array(decode(dataset.paths[index])))
        except PixelError:
            continue
    if not photos:
        raise DataError(f"{dataset.name} has no images that can be decoded")
    return photos


def planned(plan: Plan, photos: Photos) -> Contender:
    """Return a plan as a contender."""
    name = f"{plan.backend}: {', '.join(operation.name for operation in plan.operations)}"
    pictures = [Picture.of(pixels, plan.backend) for pixels in photos]
    return Contender(name, partial(_work, plan, pictures), partial(_results, plan, pictures))


def _work(plan: Plan, pictures: Sequence[Picture]) -> None:
    for index, picture in enumerate(pictures):
        run(plan, picture, SEED, 0, index)


def _results(plan: Plan, pictures: Sequence[Picture]) -> Photos:
    return [run(plan, picture, SEED, 0, index).levels() for index, picture in enumerate(pictures)]


def measure_in_turns(
    contenders: Sequence[Contender], images: int, rounds: int, progress: tqdm | None = None
) -> list[Timing]:
    """Measure contenders one after another, then all again, and so on.

    Args:
        contenders: each has done its work at least once.
        images: that each works on.
        progress: a bar to move on by one for each turn.
    """
    times: list[list[tuple[float, float]]] = [[] for _ in contenders]
    with single_threaded():
        for _ in range(rounds):
            for contender, measured in zip(contenders, times, strict=True):
                if progress is not None:
                    progress.set_postfix_str(contender.name[:60])
                wall, cpu = time.perf_counter(), contender.clock()
                contender.work()
                cpu = contender.clock() - cpu
                measured.append((1000 * cpu / images, images / (time.perf_counter() - wall)))
                if progress is not None:
                    progress.update()
    return [
        Timing(Spread.of([cpu for cpu, _ in measured]), Spread.of([rate for _, rate in measured])) for measured in times
    ]


def difference(results: Photos, reference: Photos) -> tuple[float, float] | None:
    """Return the largest and the mean difference in levels; None where the sizes differ."""
    if any(one.shape != other.shape for one, other in zip(results, reference, strict=True)):
        return None
    differences = [np.abs(one - other) for one, other in zip(results, reference, strict=True)]
    return float(max(one.max() for one in differences)), float(np.mean([one.mean() for one in differences]))
