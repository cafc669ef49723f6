"""The images that the GPU benchmark reads, and our loaders on them, delivered as a model takes them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from bench.gpu_process import Job, Reporter, UnavailableError
from bench.peers import FLIP, MEAN, RATIO, SCALE, STD
from bench.variants import open_loader, prepare, why_missing
from loaders.bad_samples import BadSamples
from loaders.contract import Loader, LoaderError
from loaders.dataset import ImageData, ImageDataset
from loaders.opening import DataError, open_data
from loaders.pack_records import PackError
from loaders.packed import PackedDataset, open_packed
from loaders.plan import EpochPlan, View
from loaders.registry import create_loader
from loaders.transfer import DeviceBatch, Transfer

Dataset = TypeVar("Dataset", bound=ImageDataset)

ON_DEVICE = "roi:device"  # the region loader, resampling on the device
LOADERS = ("torch", "ffcv", "roi", ON_DEVICE, "dali")
_IMAGES, _SHADOW_IMAGES = 4000, 48
_EPOCH_IMAGES = 40_000
_TORCH_PREFETCH = 1  # for each worker: a second batch would hide for seconds that they are too slow
_PREFETCH = 2  # of the other loaders, unless they are told otherwise
_HELD = 2  # further batches: one that is handed over, and one on its way to the device
_UNSUITABLE = (DataError, PackError, LoaderError)  # data that a loader cannot be given


@dataclass(frozen=True, eq=False)
class Photos:
    """What is read.

    Attributes:
        data: some images of the data set, taken evenly from it.
        train: those for training, repeated so that epochs are long.
    """

    data: ImageData
    train: ImageDataset


def open_photos(job: Job) -> Photos:
    """Open a job's data set and take a few thousand images of it.

    Raises:
        DataError: there are no such data.
    """
    data = open_data(job.data, show_progress=False)
    count = _SHADOW_IMAGES if job.is_shadow else _IMAGES
    data = replace(data, train=some(data.train, count), val=some(data.val, count // 10))
    return Photos(data, repeated(data.train))


def some(dataset: ImageDataset, count: int) -> ImageDataset:
    """Return at most so many images with a readable header, taken evenly from a set."""
    good = np.setdiff1d(np.arange(len(dataset)), list(dataset.problems))
    return dataset.select(good[np.linspace(0, len(good) - 1, min(count, len(good))).astype(np.int64)])


def repeated(dataset: Dataset) -> Dataset:
    """Return a set with its images repeated, so that epochs are long."""
    return dataset.select(np.tile(np.arange(len(dataset)), -(-_EPOCH_IMAGES // len(dataset))))


def packed_photos(photos: Photos) -> PackedDataset:
    """Return the training images as the region loader packs them: at most 500 pixels large, quality 90.

    Raises:
        UnavailableError: they cannot be packed.
    """
    folder = _prepared("roi", photos)
    assert folder is not None
    packed = open_packed(folder).train
    assert isinstance(packed, PackedDataset)
    return packed


def _prepared(name: str, photos: Photos) -> Path | None:
    missing = why_missing(name)
    if missing is not None:
        raise UnavailableError(missing)
    try:
        return prepare(name, photos.data, photos.train)
    except _UNSUITABLE as error:
        raise UnavailableError(str(error)) from error


def open_named(name: str, photos: Photos, job: Job) -> tuple[Loader, ImageDataset]:
    """Open a loader of LOADERS and what it reads.

    Raises:
        UnavailableError: it cannot run here, or not on these data.
    """
    device = torch.device(job.device)
    if name == ON_DEVICE:
        options: dict[str, Any] = {"resample_on": "device"}
        if not set(options) <= set(inspect.signature(create_loader).parameters):
            raise UnavailableError("the region loader has no option to resample on the device")
        packed = repeated(packed_photos(photos))
        return create_loader("roi", [packed], job.num_workers, BadSamples(), device, **options), packed
    folder = _prepared(name, photos)
    if name == "torch":
        loader = create_loader(name, [photos.train], job.num_workers, BadSamples(), device, _TORCH_PREFETCH)
        return loader, photos.train
    dataset = photos.train if folder is None else repeated(open_packed(folder).train)
    try:
        return open_loader(name, dataset, job.num_workers, device), dataset
    except _UNSUITABLE as error:
        raise UnavailableError(str(error)) from error


def burst(name: str, job: Job) -> int:
    """Return how many batches of a loader may arrive together: those that its worker processes make at one time."""
    return job.num_workers if name == "torch" else 1


def held(name: str, job: Job) -> int:
    """Return how many batches of a loader lie ready at the most while none is taken."""
    return (_TORCH_PREFETCH * job.num_workers if name == "torch" else _PREFETCH) + _HELD


@dataclass(frozen=True, eq=False)
class Feed:
    """A loader that is open, and the way to the device."""

    name: str
    loader: Loader
    dataset: ImageDataset
    transfer: Transfer
    batch_size: int

    @classmethod
    def open(cls, name: str, photos: Photos, job: Job, dtype: torch.dtype = torch.float32) -> Feed:
        """Open a loader of LOADERS, whose batches come normalized, as ``dtype``; see `open_named`."""
        loader, dataset = open_named(name, photos, job)
        transfer = Transfer(torch.device(job.device), MEAN, STD, dtype=dtype)
        return cls(name, loader, dataset, transfer, job.batch_size)

    def batches(self, resolution: int) -> Generator[DeviceBatch, None, None]:
        """Yield training batches of a size, without end."""
        view = View(resolution, self.batch_size, scale=SCALE, ratio=RATIO, flip=FLIP, drop_last=True)
        for epoch in itertools.count():
            yield from self.transfer.batches(self.loader.run(EpochPlan(self.dataset, epoch, view)))

    def close(self) -> None:
        """Release the loader."""
        self.loader.close()


def open_feeds(names: tuple[str, ...], photos: Photos, job: Job, report: Reporter, dtype: torch.dtype) -> list[Feed]:
    """Open those loaders that can run here; the others are reported."""
    feeds: list[Feed] = []

    def opening(name: str) -> Callable[[], None]:
        return lambda: feeds.append(Feed.open(name, photos, job, dtype))

    for name in names:
        report.attempt(f"loader {name}", opening(name))
    return feeds
