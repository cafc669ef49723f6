"""What to do about a file that cannot be decoded: skip and count it, or stop and name it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loaders.dataset import ImageDataset

MAX_PIXELS = 200_000_000  # an image above this is taken for a decompression bomb

Policy = Literal["skip", "raise"]


@dataclass(frozen=True, order=True)
class BadSample:
    """A sample that cannot be decoded."""

    dataset: str
    index: int
    path: str
    reason: str


class BadSampleError(RuntimeError):
    """A sample is bad and the policy is to raise."""


class TooManyBadSamplesError(RuntimeError):
    """More samples are bad than the policy allows."""


class BadSamples:
    """Collects bad samples and applies the policy.

    With ``skip``, a bad training sample is replaced by another of the epoch and a bad evaluation sample is left out;
    each is recorded here once. With ``raise``, the first one ends the run.

    Args:
        policy: ``skip`` or ``raise``.
        max_fraction: the run ends when more than this fraction of a data set is bad; above 0, one sample always may be.
        csv_path: where to write the list, appended to as samples are found; None for nowhere.
    """

    def __init__(self, policy: Policy = "skip", max_fraction: float = 0.01, csv_path: Path | None = None) -> None:
        self.policy = policy
        self.max_fraction = max_fraction
        self.csv_path = csv_path
        self._found: dict[tuple[str, int], BadSample] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[BadSample]:
        return iter(self._found.values())

    def known(self, dataset: ImageDataset) -> dict[int, str]:
        """Return what is known to be bad in a data set: the reason for each index."""
        found = {index: sample.reason for (name, index), sample in self._found.items() if name == dataset.name}
        return dataset.problems | found

    def record(self, dataset: ImageDataset, samples: Iterable[BadSample]) -> None:
        """Record samples found bad; those known already count once.

        Raises:
            BadSampleError: the policy is ``raise``.
            TooManyBadSamplesError: the allowed fraction is exceeded.
        """
        for sample in samples:
            if self.policy == "raise":
                raise BadSampleError(
                    f"{sample.path} (sample {sample.index} of {sample.dataset}) cannot be decoded: {sample.reason}. "
                    "Repair or remove the file, or use --on-bad-sample skip"
                )
            if (sample.dataset, sample.index) not in self._found:
                self._found[sample.dataset, sample.index] = sample
                self._append(sample)
        bad = sum(name == dataset.name for name, _ in self._found)
        if bad > max(self.max_fraction * len(dataset), self.max_fraction > 0):
            listing = f"; they are listed in {self.csv_path}" if self.csv_path else ""
            first = next(s for s in self._found.values() if s.dataset == dataset.name)
            raise TooManyBadSamplesError(
                f"{bad} of the {len(dataset)} images of {dataset.name} cannot be decoded, more than "
                f"--max-bad-fraction {self.max_fraction:g} allows{listing}. First: {first.path}: {first.reason}"
            )

    def _append(self, sample: BadSample) -> None:
        if self.csv_path is None:
            return
        new = not self.csv_path.exists()
        with self.csv_path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["split", "index", "path", "reason"])
            writer.writerow([sample.dataset, sample.index, sample.path, sample.reason])

    def state_dict(self) -> list[tuple[str, int, str, str]]:
        """Return what was found, for a checkpoint."""
        return [(s.dataset, s.index, s.path, s.reason) for s in self._found.values()]

    def load_state_dict(self, state: list[tuple[str, int, str, str]]) -> None:
        """Take over what an earlier part of the run found, and write it to the CSV anew."""
        self._found = {(row[0], row[1]): BadSample(*row) for row in state}
        if self.csv_path is not None:
            self.csv_path.unlink(missing_ok=True)
        for sample in self._found.values():
            self._append(sample)
