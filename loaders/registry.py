"""Loaders by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from loaders.bad_samples import BadSamples
from loaders.contract import Loader, LoaderError
from loaders.cores import decoding_threads, usable_cores
from loaders.dataset import ImageDataset
from loaders.packed import PackedDataset

LOADER_NAMES = ("torch", "dali", "ffcv", "roi", "synthetic")
_PACKED_LOADERS = ("roi", "synthetic")  # that take packed sets


def workers_used(name: str, num_workers: int, cores: float | None = None) -> int:
    """Return how many worker processes or threads a loader uses when it is asked for so many.

    Args:
        name: one of LOADER_NAMES.
        num_workers: asked for.
        cores: that may be used; None for those that this process may use.
    """
    if name == "synthetic":
        return 0
    return num_workers if name == "torch" else decoding_threads(num_workers, cores or usable_cores())


def create_loader(
    name: str,
    datasets: Sequence[ImageDataset],
    num_workers: int,
    bad_samples: BadSamples,
    device: torch.device | str = "cpu",
    prefetch: int = 2,
    cache: Path | None = None,
    resample_on: Literal["cpu", "device"] = "cpu",
) -> Loader:
    """Create a loader.

    Args:
        name: one of LOADER_NAMES.
        datasets: the data sets that its plans will refer to.
        num_workers: worker processes (``torch``) or threads (the others).
        bad_samples: the policy for files that cannot be decoded.
        device: where the batches are needed; ``dali`` decodes there, and ``roi`` resamples there if asked to.
        prefetch: batches in flight, for each worker (``torch``) or in all (the others).
        cache: where ``ffcv`` keeps the files that it writes; None for ``cache_dir()``.
        resample_on: ``device`` has ``roi`` resample on ``device`` and deliver batches there; others take no notice.

    Raises:
        ValueError: the name is unknown.
        ImportError: the backend is not installed; the message says how to install it.
        LoaderError: a set is packed, and the backend does not read packed sets.
    """
    if name not in _PACKED_LOADERS:
        for dataset in datasets:
            if isinstance(dataset, PackedDataset):
                raise LoaderError(f"{dataset.name} is packed: only the loader roi reads packed sets, not {name}")
    if name == "torch":
        from loaders.torch_backend import TorchLoader

        return TorchLoader(datasets, num_workers, bad_samples, prefetch)
    if name == "dali":
        from loaders.dali_backend import DaliLoader

        return DaliLoader(datasets, num_workers, bad_samples, torch.device(device), prefetch)
    if name == "ffcv":
        from loaders.ffcv_backend import FfcvLoader

        return FfcvLoader(datasets, num_workers, bad_samples, torch.device(device), prefetch, cache=cache)
    if name == "roi":
        from loaders.roi_backend import RoiLoader

        return RoiLoader(datasets, num_workers, bad_samples, torch.device(device), prefetch, resample_on)
    if name == "synthetic":
        from loaders.synthetic_backend import SyntheticLoader

        return SyntheticLoader(datasets, bad_samples, torch.device(device))
    raise ValueError(f"unknown loader {name!r}; choose one of {', '.join(LOADER_NAMES)}")
