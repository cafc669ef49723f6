"""What DALI is asked to do for a batch: bad samples replaced or left out, odd files converted, windows laid out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit

from loaders.bad_samples import BadSample, BadSamples
from loaders.contract import LoaderError
from loaders.dali_geometry import Geometry, lay_out
from loaders.dataset import ImageDataset, PixelForm, StringColumn
from loaders.endings import end_properly
from loaders.pixels import PixelError, decode
from loaders.plan import BatchPlan, substitute

MAX_REPLACEMENTS = 100  # tries to find a good sample in place of a bad one


@dataclass(frozen=True, eq=False)
class Job:
    """One batch on its way through DALI.

    Attributes:
        number: which of the loader's data sets.
        plan: what was asked for.
        indices, keys: int64 and uint64 (n,), the samples to deliver.
        paths: uint8 (n, bytes), their files; absolute paths, brought to one length by slashes in front.
        geometry: their windows.
        bad: the bad samples that were met in the plan, those replaced or left out.
        converted: the directory that holds converted files, if there are any.
    """

    number: int
    plan: BatchPlan
    indices: np.ndarray
    keys: np.ndarray
    paths: np.ndarray
    geometry: Geometry
    bad: tuple[BadSample, ...]
    converted: tempfile.TemporaryDirectory[str] | None

    def __len__(self) -> int:
        return len(self.indices)

    def discard(self) -> None:
        """Remove the converted files."""
        if self.converted is not None:
            self.converted.cleanup()


class JobMaker:
    """Turns plans into jobs, by what is known of the files so far.

    The same plan may be turned into a job again after more has been found out; a sample's replacement is the first
    that is good, whenever the others were found bad.

    Args:
        datasets: what plans may refer to.
        num_threads: threads to examine files with.
        bad_samples: what is known to be bad already.
    """

    def __init__(self, datasets: Sequence[ImageDataset], num_threads: int, bad_samples: BadSamples) -> None:
        self._datasets = datasets
        self._num_threads = num_threads
        self._bad: list[dict[int, str]] = [bad_samples.known(dataset) for dataset in datasets]
        self._to_convert: list[set[int]] = [
            # libjpeg leaves it open whether CMYK is stored inverted: Pillow and DALI answer it differently.
            set(np.flatnonzero(dataset.forms == PixelForm.CMYK).tolist())
            for dataset in datasets
        ]
        self._looked_at = [np.zeros(len(dataset), np.bool_) for dataset in datasets]

    def make(self, number: int, plan: BatchPlan) -> Job:
        """Make a job.

        Raises:
            LoaderError: no good sample was found to replace a bad one.
        """
        while True:
            job = self._try(number, plan)
            if job is not None:
                return job

    def _try(self, number: int, plan: BatchPlan) -> Job | None:
        """Make a job, or find another bad sample on the way and return None."""
        dataset = self._datasets[number]
        indices, keys, windows, flips, bad = self._select(number, plan)
        if self._examine_new(number, indices):
            return None
        widths, heights, orientations = dataset.widths[indices], dataset.heights[indices], dataset.orientations[indices]
        to_convert = self._to_convert[number]
        positions = [p for p, index in enumerate(indices.tolist()) if index in to_convert] if to_convert else []
        directory = tempfile.TemporaryDirectory(prefix="headrace-") if positions else None
        converted: dict[int, bytes] = {}
        for position in positions:
            assert directory is not None
            index = int(indices[position])
            try:
                image = decode(dataset.paths[index])
            except PixelError as error:
                self._bad[number][index] = str(error)
                directory.cleanup()
                return None
            file = Path(directory.name, f"{position}.ppm")
            image.save(file)
            converted[position] = bytes(file)
            widths[position], heights[position], orientations[position] = image.width, image.height, 1
        paths = _equally_long(dataset.paths, indices, converted)
        geometry = lay_out(windows, flips, widths, heights, orientations, plan.resolution)
        return Job(number, plan, indices, keys, paths, geometry, bad, directory)

    def _select(
        self, number: int, plan: BatchPlan
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[BadSample, ...]]:
        """Return indices, keys, windows and flips with the known bad samples replaced or left out, and these."""
        known = self._bad[number]
        positions = [p for p, index in enumerate(plan.indices.tolist()) if index in known] if known else []
        if not positions:
            return plan.indices, plan.keys, plan.windows, plan.flips, ()
        bad = [self._bad_sample(number, int(plan.indices[position])) for position in positions]
        if plan.view.is_evaluation:
            columns = (plan.indices, plan.keys, plan.windows, plan.flips)
            indices, keys, windows, flips = (np.delete(column, positions, axis=0) for column in columns)
            return indices, keys, windows, flips, tuple(bad)
        indices, windows, flips = plan.indices.copy(), plan.windows.copy(), plan.flips.copy()
        for position in positions:
            replacement = self._replacement(number, plan, position, bad)
            indices[position], windows[position], flips[position] = (
                replacement.indices[0],
                replacement.windows[0],
                replacement.flips[0],
            )
        return indices, plan.keys, windows, flips, tuple(bad)

    def _replacement(self, number: int, plan: BatchPlan, position: int, bad: list[BadSample]) -> BatchPlan:
        dataset = self._datasets[number]
        for attempt in range(MAX_REPLACEMENTS):
            candidate = substitute(dataset, plan, position, attempt)
            index = int(candidate.indices[0])
            if index not in self._bad[number]:
                return candidate
            bad.append(self._bad_sample(number, index))
        raise LoaderError(
            f"no readable image found in place of {dataset.paths[int(plan.indices[position])]} "
            f"in {MAX_REPLACEMENTS} tries: most files of {dataset.name} seem to be damaged"
        )

    def _bad_sample(self, number: int, index: int) -> BadSample:
        dataset = self._datasets[number]
        return BadSample(dataset.name, index, dataset.paths[index], self._bad[number][index])

    def _examine_new(self, number: int, indices: np.ndarray) -> bool:
        """Look at files for the first time, with Pillow where the end is not proper; return whether some are bad."""
        looked_at = self._looked_at[number]
        new = indices[~looked_at[indices]]
        if not len(new):
            return False
        looked_at[new] = True
        suspects = new[~end_properly(self._datasets[number].paths, new)]
        return bool(len(suspects)) and bool(self.examine(number, suspects.tolist()))

    def examine(self, number: int, indices: Iterable[int]) -> list[BadSample]:
        """Decode files with Pillow, remember the outcome and return the bad ones."""
        dataset = self._datasets[number]
        distinct = sorted(set(indices))
        with ThreadPoolExecutor(self._num_threads) as pool:
            reasons = list(pool.map(lambda index: _reason_of(dataset.paths[index]), distinct))
        self._bad[number].update({i: reason for i, reason in zip(distinct, reasons, strict=True) if reason is not None})
        return [self._bad_sample(number, i) for i in distinct if i in self._bad[number]]

    def convert_from_now_on(self, number: int, indices: set[int]) -> bool:
        """Have files converted that DALI refuses; return whether that is new for any of them."""
        new = indices - self._to_convert[number]
        self._to_convert[number] |= new
        return bool(new)


def _reason_of(path: str) -> str | None:
    """Return why Pillow refuses a file, None if it does not."""
    try:
        decode(path)
    except PixelError as error:
        return str(error)
    return None


def _equally_long(paths: StringColumn, indices: np.ndarray, converted: dict[int, bytes]) -> np.ndarray:
    """Return paths as one array, which DALI takes over much faster than as many: uint8 (n, bytes).

    Args:
        paths: absolute paths; slashes that repeat the first one mean nothing.
        indices: int64 (n,), which of them.
        converted: other paths to be used instead, by position in ``indices``.
    """
    starts, ends = paths.offsets[indices], paths.offsets[indices + 1]
    length = max(int((ends - starts).max(initial=0)), *map(len, converted.values()), 0)
    out = np.empty((len(indices), length), np.uint8)
    _write_paths(paths.buffer, starts, ends, out)
    for position, path in converted.items():
        out[position] = np.frombuffer(path.rjust(length, b"/"), np.uint8)
    return out


@njit(cache=True, nogil=True)
def _write_paths(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray, out: np.ndarray) -> None:
    for row in range(len(out)):
        begin = out.shape[1] - (ends[row] - starts[row])
        out[row, :begin] = ord("/")
        out[row, begin:] = buffer[starts[row] : ends[row]]
