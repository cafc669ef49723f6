"""Which loader to use: by what is installed, the form of the set, and a short measurement on this machine."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import time

import torch

from kernels.jpeg import JpegLibraryError, load_library
from loaders.bad_samples import BadSamples, TooManyBadSamplesError
from loaders.contract import LoaderError
from loaders.dataset import ImageDataset
from loaders.packed import PackedDataset
from loaders.plan import EpochPlan, View
from loaders.registry import create_loader

SECONDS = 2.0  # for all candidates together
_ROUNDS = 2  # the first of all may find the files on the disk, the others find them in memory
MIN_IMAGES = 1000  # a smaller set is trained on before a difference shows

logger = logging.getLogger("headrace")


def candidates(dataset: ImageDataset, device: torch.device) -> list[str]:
    """Return the loaders that can read a set on this machine, the one to be preferred among equals first.

    FFCV is none of them: it begins by writing a copy of the set, which is for the user to ask for.
    """
    names = []
    try:
        load_library()
        names.append("roi")
    except JpegLibraryError:
        pass
    if isinstance(dataset, PackedDataset):
        return names
    if importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None:
        names.insert(0 if device.type == "cuda" else len(names), "dali")
    return [*names, "torch"]


def choose_loader(
    dataset: ImageDataset, device: torch.device, num_workers: int, resolution: int, batch_size: int
) -> tuple[str, str]:
    """Choose a loader.

    Args:
        dataset: what is to be read.
        device: where batches are needed.
        num_workers: worker processes or threads.
        resolution: of the images to measure with, pixels.
        batch_size: of the batches to measure with.

    Returns:
        Its name, and the reason, for the log.

    Raises:
        JpegLibraryError: the set is packed, and libjpeg-turbo is missing.
    """
    names = candidates(dataset, device)
    if isinstance(dataset, PackedDataset):
        load_library()
        return "roi", "the set is packed"
    if len(names) == 1:
        return names[0], "no other is installed"
    if len(dataset) < MIN_IMAGES:
        return names[0], f"with fewer than {MIN_IMAGES} images there is no need to measure"
    plan = EpochPlan(dataset, 0, View(resolution, batch_size))
    rates = dict.fromkeys(names, 0.0)
    for _ in range(_ROUNDS):
        for name in names:
            rate = _rate(name, plan, num_workers, device, SECONDS / len(names) / _ROUNDS)
            rates[name] = max(rates[name], rate)
    best = max(rates, key=lambda name: rates[name])
    shown = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    return best, f"images/s measured at {resolution} px: {shown}"


def _rate(name: str, plan: EpochPlan, num_workers: int, device: torch.device, seconds: float) -> float:
    """Return images per second after the first batch; 0 for a loader that fails here."""
    try:
        with create_loader(name, [plan.dataset], num_workers, BadSamples(max_fraction=1.0), device) as loader:
            batches = itertools.chain.from_iterable(loader.run(plan) for _ in itertools.count())
            next(batches)
            begin, images = time.perf_counter(), 0
            for batch in batches:
                images += len(batch)
                if time.perf_counter() - begin >= seconds:
                    break
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return images / (time.perf_counter() - begin)
    except (ImportError, LoaderError, RuntimeError, TooManyBadSamplesError) as error:
        logger.info("Loader %s left out: %s", name, error)
        return 0.0
