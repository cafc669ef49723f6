"""The FFCV loader: FFCV's file, its thread and its compiled loop over a batch, with our plan and our kernels.

The first use of a data set writes it as a `.beton` file into the cache. What the file holds is then what the pixels
are: images of at most 500 pixels as JPEG of quality 90, or of at most 256 pixels, raw.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numba
import numpy as np
import torch

from kernels.jpeg import load_library
from loaders.bad_samples import BadSample, BadSamples
from loaders.buffers import BufferPool
from loaders.cache import cache_dir
from loaders.contract import Batch, Loader, LoaderError
from loaders.cores import decoding_threads, usable_cores
from loaders.dataset import ImageDataset
from loaders.ffcv_epoch import EPOCH_ENDED, PlanEpoch, build_loader, has_samples
from loaders.ffcv_file import JPEG_500, Beton, Storage, open_beton
from loaders.ffcv_library import Loader as LibraryLoader
from loaders.ffcv_operation import Task, load_some
from loaders.plan import BatchPlan, EpochPlan, substitute
from loaders.wording import plural

MAX_REPLACEMENTS = 100  # tries to find a good sample in place of a bad one

logger = logging.getLogger("headrace")


class FfcvLoader(Loader):
    """FFCV.

    Args:
        datasets: what plans may refer to.
        num_workers: threads; at least 1 and at most the cores at hand are used.
        bad_samples: the policy for files that Pillow refuses and for damaged records.
        device: where the batches go next; for CUDA they are delivered in page-locked memory.
        prefetch: finished batches that may wait to be taken.
        storage: how images are stored.
        cache: where the files are kept; None for ``cache_dir()``.
        show_progress: show a progress bar while a file is written.

    Raises:
        ImportError: libjpeg-turbo is not installed. (Importing this module raises it when FFCV is not.)
    """

    name = "ffcv"
    layout = "NCHW"

    def __init__(
        self,
        datasets: Sequence[ImageDataset],
        num_workers: int,
        bad_samples: BadSamples,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
        prefetch: int = 2,
        storage: Storage = JPEG_500,
        cache: Path | None = None,
        show_progress: bool = True,
    ) -> None:
        super().__init__(datasets, num_workers, bad_samples)
        load_library()
        self.device = torch.device("cpu")
        self.prefetch = prefetch
        self.storage = storage
        self._cache = cache_dir() if cache is None else Path(cache).expanduser().absolute()
        self._show_progress = show_progress
        self._buffers = BufferPool(pinned=device.type == "cuda", keep=prefetch + 3)
        self._known_bad = [dict(bad_samples.known(dataset)) for dataset in self.datasets]
        self._opened: dict[int, tuple[Beton, LibraryLoader]] = {}
        self._stop_epoch: weakref.finalize[[], FfcvLoader] | None = None
        self._runs = 0

    @property
    def _num_threads(self) -> int:
        return _threads(self.num_workers)

    def describe(self) -> str:
        return f"ffcv: FFCV {version('ffcv')} on {self.storage.name} files, {plural(self._num_threads, 'thread')}"

    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        number = self.datasets.index(plan.dataset)
        self._runs += 1
        self._end_epoch()
        beton, loader = self._open(number)
        epoch = PlanEpoch(loader, plan, self._buffers)
        self._stop_epoch = weakref.finalize(self, epoch.stop)  # the epoch does not know this loader
        return self._deliver(number, beton, plan, epoch, self._runs)

    def _open(self, number: int) -> tuple[Beton, LibraryLoader]:
        """Return a data set's file and FFCV's loader of it; both are made on first use."""
        if number not in self._opened:
            beton = open_beton(self.datasets[number], self.storage, self._cache, self._show_progress)
            self._known_bad[number] = beton.bad | self._known_bad[number]
            logger.info(
                "FFCV compiles its part for %s; the first batch takes some seconds longer, half a minute once",
                beton.path.name,
            )
            self._opened[number] = beton, build_loader(beton, self._num_threads, self.prefetch)
        return self._opened[number]

    def _deliver(self, number: int, beton: Beton, plan: EpochPlan, epoch: PlanEpoch, current: int) -> Iterator[Batch]:
        for step in range(plan.start_batch, plan.num_batches):
            if current != self._runs:
                raise RuntimeError(EPOCH_ENDED)
            if has_samples(plan, step):
                yield self._finished(number, beton, *epoch.receive())
            else:
                size = plan.view.resolution
                batch = plan.batch(step)
                yield self._batch(number, batch, np.empty((0, 3, size, size), np.uint8), batch.indices, batch.keys)

    def _finished(self, number: int, beton: Beton, plan: BatchPlan, task: Task) -> Batch:
        """Replace or leave out the bad samples of a batch."""
        known = self._known_bad[number]
        to_look_at = task.statuses != 0
        if known:
            to_look_at |= np.isin(plan.indices, np.fromiter(known, np.int64, len(known)))
        if not to_look_at.any():
            return self._batch(number, plan, task.images, plan.indices, plan.keys)
        replace = self.bad_samples.policy == "skip" and not plan.view.is_evaluation
        indices, bad = plan.indices.copy(), []
        for position in np.flatnonzero(to_look_at).tolist():
            index = int(indices[position])
            known.setdefault(index, _damaged(beton))
            bad.append(self._bad_sample(number, index))
            if replace:
                indices[position] = self._load_replacement(number, beton, plan, position, task.images, bad)
        self.bad_samples.record(self.datasets[number], bad)
        if replace:
            return self._batch(number, plan, task.images, indices, plan.keys)
        kept = ~to_look_at
        return self._batch(number, plan, task.images[kept], indices[kept], plan.keys[kept])

    def _load_replacement(
        self, number: int, beton: Beton, plan: BatchPlan, position: int, images: np.ndarray, bad: list[BadSample]
    ) -> int:
        """Load the first good replacement of a sample; return its index."""
        dataset, known = self.datasets[number], self._known_bad[number]
        for attempt in range(MAX_REPLACEMENTS):
            candidate = substitute(dataset, plan, position, attempt)
            index = int(candidate.indices[0])
            if index not in known:
                if self._load(beton, candidate, images[position : position + 1]):
                    return index
                known[index] = _damaged(beton)
            bad.append(self._bad_sample(number, index))
        raise LoaderError(
            f"no readable image found in place of {dataset.paths[int(plan.indices[position])]} "
            f"in {MAX_REPLACEMENTS} tries: most files of {dataset.name} seem to be damaged"
        )

    def _load(self, beton: Beton, plan: BatchPlan, images: np.ndarray) -> bool:
        """Load a batch of one in this thread; return whether the sample is good."""
        task = Task.of(plan, images, 1)
        task.records[0] = beton.place(int(plan.indices[0]))
        load_some(task)
        return bool(task.statuses[0] == 0)

    def _bad_sample(self, number: int, index: int) -> BadSample:
        dataset = self.datasets[number]
        return BadSample(dataset.name, index, dataset.paths[index], self._known_bad[number][index])

    def _batch(self, number: int, plan: BatchPlan, images: np.ndarray, indices: np.ndarray, keys: np.ndarray) -> Batch:
        return Batch(
            torch.from_numpy(images),
            torch.from_numpy(self.datasets[number].labels[indices]),
            torch.from_numpy(indices),
            keys,
            plan,
        )

    def close(self) -> None:
        self._runs += 1
        self._end_epoch()
        self._opened.clear()

    def _end_epoch(self) -> None:
        if self._stop_epoch is not None:
            self._stop_epoch()
            self._stop_epoch = None


def _damaged(beton: Beton) -> str:
    return f"its record in {beton.path} is damaged"


def _threads(num_workers: int) -> int:
    """Return how many threads to use: Numba refuses more than there are cores."""
    if numba.threading_layer() == "workqueue":  # which ends the process when two threads use it at once
        logger.warning("FFCV runs in one thread: Numba finds neither TBB nor OpenMP; installing tbb helps")
        return 1
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return min(decoding_threads(num_workers, usable_cores()), most)
