"""What a benchmark does about a file that cannot be decoded: it ends and names the file."""

from __future__ import annotations

from collections.abc import Iterable

from loaders.bad_samples import BadSample, BadSampleError, BadSamples
from loaders.dataset import ImageDataset


class StopAtBad(BadSamples):
    """Ends a measurement at the first file that cannot be decoded, as the loaders do that ours are compared with."""

    def __init__(self) -> None:
        super().__init__("raise")

    def record(self, dataset: ImageDataset, samples: Iterable[BadSample]) -> None:
        for sample in samples:
            raise BadSampleError(unreadable(sample.path, sample.reason))


def unreadable(path: str, reason: object) -> str:
    """Say that a file cannot be decoded, and what to do."""
    return f"{path} cannot be decoded: {reason}. Move it out of the folder to measure without it"
