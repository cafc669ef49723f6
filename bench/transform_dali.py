"""The orders of transform lists as DALI pipelines on the CPU, as far as DALI can express them.

The parameters are those drawn for our own backends, given to DALI image by image, so that all do the same work. DALI
has no contrast about an image's own mean, no solarize, posterize or invert, and no fill within a rectangle in floating
point after a normalization; lists with these are left out.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from bench.transform_measure import SEED, Contender, Photos
from loaders.transforms import steps
from loaders.transforms.apply import draw
from loaders.transforms.geometry import (
    CenterCrop,
    GaussianBlur,
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotation,
    VerticalFlip,
)
from loaders.transforms.planner import Plan
from loaders.transforms.steps import Step, reorder
from loaders.transforms.types import Operation
from loaders.transforms.values import Brightness, Hue, Normalize, Saturation, ToFloat

_KNOWN = (
    Brightness,
    CenterCrop,
    GaussianBlur,
    HorizontalFlip,
    Hue,
    Normalize,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotation,
    Saturation,
    ToFloat,
    VerticalFlip,
)


def why_left_out(operations: Sequence[Operation]) -> str | None:
    """Return why DALI does not take part; None where it does."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "DALI is not installed: pip install 'headrace[dali]'"
    unknown = [operation.name for operation in operations if not isinstance(operation, _KNOWN)]
    return f"DALI is left out: it has no {', '.join(dict.fromkeys(unknown))} as torchvision has it" if unknown else None


def contender(plan: Plan, photos: Photos) -> Contender:
    """Return a plan's order as a DALI pipeline over the photos, one thread, one batch."""
    from nvidia.dali import fn, pipeline_def

    drawn = [
        reorder(draw(plan.program.operations, 0, SEED, 0, index, pixels.shape[:2]), plan.orders[0], pixels.shape[:2])
        for index, pixels in enumerate(photos)
    ]
    feeds: list[list[np.ndarray]] = []

    def feed(values: Sequence[Any]) -> Any:
        """Return a graph node that gives each photo its value."""
        arrays = [np.asarray(value, np.float32) for value in values]
        feeds.append(arrays)
        return fn.external_source(source=lambda: arrays, batch=True, no_copy=True)

    no_device: Any = None

    @pipeline_def(batch_size=len(photos), num_threads=1, device_id=no_device, prefetch_queue_depth=1)
    def pipeline() -> Any:
        images = fn.external_source(source=lambda: photos, batch=True, layout="HWC", no_copy=True)
        is_float = False
        for place, operation in enumerate(plan.operations):
            images = _node(images, operation, [of_photo[place] for of_photo in drawn], feed, is_float)
            is_float = is_float or isinstance(operation, ToFloat)
        return images

    built = pipeline()
    built.build()
    normalize = plan.program.normalization
    is_float = any(isinstance(operation, ToFloat) for operation in plan.operations)

    def results() -> Photos:
        (batch,) = built.run()
        images: Photos = [np.array(batch[index], np.float32) for index in range(len(photos))]
        if normalize is not None:
            std, mean = np.array(normalize.std, np.float32), np.array(normalize.mean, np.float32)
            images = [image * std + mean for image in images]
        return [255 * image for image in images] if is_float else images

    name = f"dali: {', '.join(operation.name for operation in plan.operations)}"
    return Contender(name, partial(built.run), results, time.process_time)


def _node(images: Any, operation: Operation, drawn: Sequence[Step], feed: Any, is_float: bool) -> Any:
    """Return the graph with one more operation.

    Args:
        drawn: what it does to each photo.
        feed: from a value for each photo to a graph node.
    """
    from nvidia.dali import fn
    from nvidia.dali.types import DALIDataType, DALIInterpType

    white = 1.0 if is_float else 255.0
    dtype = DALIDataType.FLOAT if is_float else DALIDataType.UINT8

    def values(name: str, otherwise: float) -> Any:
        return feed([getattr(step, name, otherwise) for step in drawn])

    match operation:
        case ToFloat():
            return fn.cast(images, dtype=DALIDataType.FLOAT) * np.float32(1 / 255)
        case Normalize(mean=mean, std=std):
            center, deviation = (np.array(color, np.float32).reshape(1, 1, 3) for color in (mean, std))
            return fn.normalize(images, mean=center, stddev=deviation, dtype=dtype)
        case HorizontalFlip() | VerticalFlip():
            flags = feed([isinstance(step, steps.Flip) for step in drawn])
            flags = fn.cast(flags, dtype=DALIDataType.INT32)
            across = isinstance(operation, HorizontalFlip)
            return fn.flip(images, horizontal=flags if across else 0, vertical=0 if across else flags)
        case Resize() | RandomResizedCrop():
            boxes = [getattr(step, "box", None) for step in drawn]
            if isinstance(operation, RandomResizedCrop):
                images = _slice(images, boxes, feed)
            sizes = feed([step.size for step in drawn])  # type: ignore[attr-defined]
            filter_ = (
                DALIInterpType.INTERP_CUBIC if operation.interpolation == "bicubic" else DALIInterpType.INTERP_LINEAR
            )
            return fn.resize(images, size=sizes, interp_type=filter_, antialias=True, dtype=dtype)
        case CenterCrop() | RandomCrop():
            return _slice(images, [getattr(step, "box", None) for step in drawn], feed)
        case Rotation(fill=fill):
            degrees = values("degrees", 0.0)
            return fn.rotate(images, angle=degrees, keep_size=True, fill_value=white * fill[0], dtype=dtype)
        case GaussianBlur(kernel_size=kernel):
            return fn.gaussian_blur(images, sigma=values("sigma", 0.0), window_size=kernel, dtype=dtype)
        case Brightness():
            return fn.brightness(images, brightness=values("factor", 1.0), dtype=dtype)
        case Saturation():
            return fn.saturation(images, saturation=values("factor", 1.0), dtype=dtype)
        case Hue():
            return fn.hue(images, hue=360 * values("turn", 0.0), dtype=dtype)
    raise TypeError(f"DALI has no {operation.name}")


def _slice(images: Any, boxes: Sequence[Any], feed: Any) -> Any:
    from nvidia.dali import fn

    starts = feed([(box.top, box.left) for box in boxes])
    extents = feed([(box.height, box.width) for box in boxes])
    return fn.slice(images, starts, extents, axes=(0, 1), normalized_anchor=False, normalized_shape=False)
