"""What a transform list costs and changes, as written and as done, measured on images of a data set."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from loaders.dataset import ImageDataset
from loaders.packed import PackedDataset
from loaders.pixels import decode, open_image, to_rgb
from loaders.transforms import Plan, Program, run
from loaders.transforms.cost import cpu_ms, single_threaded
from loaders.transforms.device import call_on_image
from loaders.transforms.explain import Measured
from loaders.transforms.program import Untyped
from loaders.transforms.types import Operation

_IMAGES = 8  # that a transform list is measured on at most
_MEASURE_SECONDS = 1.0  # after which no further one is


def transform_costs(plan: Plan, train: ImageDataset) -> Measured | None:
    """Return what a transform list costs for an image, as written and as planned, and by how much the results differ.

    It is measured on some images, as many as are done in a second; None where none can be done.

    Raises:
        LoaderError: a function of the user's fails.
    """
    plan = replace(plan, program=Program(tuple(map(_as_on_device, plan.program.operations))))
    written = replace(plan, orders=tuple(tuple(range(len(segment))) for segment in plan.program.segments()))
    times: list[tuple[float, ...]] = []
    differences: list[tuple[float, float]] = []
    deadline = time.monotonic() + _MEASURE_SECONDS
    with single_threaded():
        for index in np.linspace(0, len(train) - 1, min(_IMAGES, len(train)), dtype=int):
            try:
                pixels = np.array(_decoded(train, int(index)))
                before, after = (run(one, pixels, index=int(index)).levels() for one in (written, plan))
                if before.shape == after.shape:
                    apart = np.abs(before - after)
                    differences.append((float(apart.mean()), float(apart.max())))
                times.append(tuple(cpu_ms(partial(run, one, pixels, index=int(index)), 2) for one in (written, plan)))
            except ValueError:  # the file is damaged, or a crop is larger than the image
                continue
            if time.monotonic() > deadline:
                break
    if not times:
        return None
    cost_before, cost_after = np.mean(times, axis=0)
    mean = float(np.mean([one for one, _ in differences])) if differences else None
    largest = max(one for _, one in differences) if differences else None
    return Measured(float(cost_before), float(cost_after), len(times), mean, largest)


def _as_on_device(operation: Operation) -> Operation:
    """Return a user's function as the device calls it: seeded alike each time, its failures named."""
    if not isinstance(operation, Untyped):
        return operation
    return replace(operation, function=lambda image: call_on_image(operation, 0, image.clone()[None])[0])


def _decoded(train: ImageDataset, index: int) -> Image.Image:
    if not isinstance(train, PackedDataset):
        return decode(train.paths[index])
    with open_image(io.BytesIO(train.checked_record(index).tobytes())) as image:
        return to_rgb(image)
