"""What every loader promises: a plan in, batches out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Literal, Self

import numpy as np
import torch

from loaders.bad_samples import BadSamples
from loaders.dataset import ImageDataset
from loaders.plan import BatchPlan, EpochPlan


class LoaderError(RuntimeError):
    """A loader cannot go on; the message says why."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's share of one batch, on the loader's device.

    Attributes:
        images: uint8 (n, 3, resolution, resolution), RGB, dense in the layout that the loader declares.
        labels: int64 (n,), CPU.
        indices: int64 (n,), CPU: the samples delivered, replacements in place of bad ones.
        keys: uint64 (n,), numpy: what the samples' random draws are keyed by.
        plan: what was asked for.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    keys: np.ndarray
    plan: BatchPlan

    def __len__(self) -> int:
        return len(self.labels)


class Loader(ABC):
    """Feeds batches of one or several data sets, one epoch at a time.

    ``run`` may be called any number of times, with any plan over the loader's data sets, sizes and batch sizes as they
    come: nothing is rebuilt, but for what has to grow with the largest batch so far. Leaving an epoch early
    (``break``, an exception) is allowed; the next ``run`` starts right. Starting a second ``run`` ends the first.
    ``close``, leaving the ``with`` block or losing the last reference releases every thread and process.

    A sample that Pillow refuses is bad; what happens then is up to ``bad_samples``: see loaders.bad_samples.
    """

    name: ClassVar[str]
    layout: Literal["NCHW", "NHWC"]
    device: torch.device

    def __init__(self, datasets: Sequence[ImageDataset], num_workers: int, bad_samples: BadSamples) -> None:
        self.datasets = tuple(datasets)
        self.num_workers = num_workers
        self.bad_samples = bad_samples

    @abstractmethod
    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        """Yield the plan's batches in order, from its start batch on.

        Raises:
            BadSampleError: a sample is bad and the policy is to raise.
            TooManyBadSamplesError: more samples are bad than the policy allows.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything. May be called twice."""

    def use_workers(self, num_workers: int) -> None:
        """Work with so many workers from the next ``run`` on; ends the epoch under way, which can be gone on with."""
        self.close()
        self.num_workers = num_workers

    def describe(self) -> str:
        """Return one line on what does the decoding, for logs."""
        return self.name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
