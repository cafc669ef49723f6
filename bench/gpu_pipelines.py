"""Plain DALI pipelines: how the JPEG engine's share matters, and whether cut regions decode sooner than whole files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.gpu_images import Photos, packed_photos
from bench.gpu_process import Job, UnavailableError
from bench.gpu_regions import Cut, cut_region, needed_box
from bench.peers import FLIP, RATIO, SCALE
from loaders.dali_pipeline import import_dali
from loaders.plan import EpochPlan, View

Tensors = Generator[torch.Tensor, None, None]

HARDWARE_LOADS = (0.0, 0.25, 0.5, 0.65, 0.9)
"""Shares of the images that the GPU's JPEG engine is given; 0.65 is DALI's default."""

_BATCHES = 4  # of different samples in memory


def random_crops(photos: Photos, resolution: int, hardware_load: float | None, job: Job) -> Tensors:
    """Read files, decode random crops of them and resize these; nothing but DALI's own operators.

    Args:
        hardware_load: share of the images for the JPEG engine; None for what DALI takes.
    """
    fn, types = import_dali().fn, import_dali().types
    files, labels = list(photos.train.paths), photos.train.labels.tolist()
    options = {} if hardware_load is None else {"hw_decoder_load": hardware_load}

    def images() -> Any:
        encoded, _ = fn.readers.file(files=files, labels=labels, random_shuffle=True)
        cropped = fn.decoders.image_random_crop(
            encoded,
            device=_decoder(job),
            output_type=types.RGB,
            random_area=SCALE,
            random_aspect_ratio=RATIO,
            **options,
        )
        return fn.resize(cropped, size=[resolution] * 2, interp_type=types.INTERP_LINEAR, antialias=True)

    return _tensors(images, job)


@dataclass(frozen=True, eq=False)
class Samples:
    """JPEGs in memory with a window each, and the parts of them that the windows need.

    Attributes:
        whole: the JPEGs, uint8 (bytes,) each.
        cut: the parts.
        windows: float64 (N, 4): left, top, right, bottom in pixels of the whole image.
        resolution: of the results, pixels.
    """

    whole: list[np.ndarray]
    cut: list[Cut]
    windows: np.ndarray
    resolution: int

    @property
    def share(self) -> float:
        """The bytes of the parts over those of the wholes."""
        return sum(len(cut.jpeg) for cut in self.cut) / sum(map(len, self.whole))


def cut_samples(photos: Photos, resolution: int, job: Job) -> Samples:
    """Pack the images, draw windows, and cut out what these need.

    Raises:
        UnavailableError: they cannot be packed, or none is packed in a way that it can be cut.
    """
    dataset = packed_photos(photos)
    view = View(resolution, min(len(dataset), _BATCHES * job.batch_size), scale=SCALE, ratio=RATIO, flip=FLIP)
    plan = EpochPlan(dataset, 0, view).batch(0)
    whole, cuts, windows = [], [], []
    for index, window in zip(plan.indices.tolist(), plan.windows, strict=True):
        if dataset.orientations[index] != 1:
            continue
        width, height = int(dataset.widths[index]), int(dataset.heights[index])
        record = dataset.record(index)
        cut = cut_region(record, dataset.restart_index(index), needed_box(window, width, height, resolution))
        if cut is not None:
            whole.append(record)
            cuts.append(cut)
            left, top = window[:2] * (width, height)
            windows.append([left, top, left + window[2] * width, top + window[3] * height])
    if not whole:
        raise UnavailableError("no image is packed with restart markers that line up with its rows: are they photos?")
    return Samples(whole, cuts, np.array(windows), resolution)


def sample_images(samples: Samples, are_cut: bool, job: Job) -> Tensors:
    """Decode samples from memory and resize their windows, the parts cut out of them or the wholes.

    Yields:
        Batches of uint8 (n, resolution, resolution, 3) on the device, in the samples' order, without end. A batch is
        good until the next one is asked for.
    """
    fn, types = import_dali().fn, import_dali().types
    boxes = np.array([cut.box for cut in samples.cut])
    origin = boxes[:, 1::-1]
    start = (samples.windows[:, 1::-1] - origin).astype(np.float32)
    end = (samples.windows[:, 3:1:-1] - origin).astype(np.float32)
    anchor, shape = origin.astype(np.int32), (boxes[:, 3:1:-1] - origin).astype(np.int32)
    encoded = [cut.jpeg for cut in samples.cut] if are_cut else samples.whole
    size = min(job.batch_size, len(encoded))
    starts = itertools.cycle(range(0, len(encoded) - size + 1, size))

    def source() -> list[Any]:
        begin = next(starts)
        batch = slice(begin, begin + size)
        inputs: list[Any] = [encoded[batch], start[batch], end[batch]]
        return inputs if are_cut else [*inputs, anchor[batch], shape[batch]]

    def images() -> Any:
        jpeg, roi_start, roi_end, *box = fn.external_source(
            source=source,
            num_outputs=3 if are_cut else 5,
            batch=True,
            dtype=[types.UINT8, types.FLOAT, types.FLOAT] + [types.INT32] * (0 if are_cut else 2),
            ndim=[1] * (3 if are_cut else 5),
        )
        if are_cut:
            pixels = fn.decoders.image(jpeg, device=_decoder(job), output_type=types.RGB)
        else:
            pixels = fn.decoders.image_slice(
                jpeg,
                *box,
                axes=[0, 1],
                normalized_anchor=False,
                normalized_shape=False,
                device=_decoder(job),
                output_type=types.RGB,
            )
        return fn.resize(
            pixels,
            size=[samples.resolution] * 2,
            roi_start=roi_start,
            roi_end=roi_end,
            roi_relative=False,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )

    return _tensors(images, job)


def _decoder(job: Job) -> str:
    return "cpu" if job.is_shadow else "mixed"


def _tensors(images: Callable[[], Any], job: Job) -> Tensors:
    """Run a pipeline of one output without end."""
    device_id = None if job.is_shadow else torch.cuda.current_device()

    @import_dali().pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=job.batch_size, num_threads=max(1, job.num_workers), device_id=device_id, seed=0
    )
    def graph() -> Any:
        return images()

    pipeline = graph()
    pipeline.build()
    while True:
        (delivered,) = pipeline.run()
        yield torch.from_dlpack(delivered.as_tensor())
