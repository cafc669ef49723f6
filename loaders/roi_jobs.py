"""One batch on its way through the region loader: where its bytes are, and what becomes of samples that are odd."""

from __future__ import annotations

import threading

import numpy as np

from kernels.regions import FACTS, Sources, Status, load_samples, mark_done
from loaders.bad_samples import BadSample
from loaders.contract import LoaderError
from loaders.dataset import ImageDataset
from loaders.packed import PackedDataset, Records, verify_record
from loaders.pixels import PixelError, load_bytes_into, load_into
from loaders.plan import BatchPlan, substitute

MAX_REPLACEMENTS = 100  # tries to find a good sample in place of a bad one
_FIRST_SCRATCH = 4 << 20  # bytes; what most images need
_MAX_SCRATCH = 1 << 28  # bytes; what needs more is left to Pillow, which gives its memory back


class Worker:
    """What one thread keeps between batches: memory that grows with the largest region."""

    def __init__(self) -> None:
        self.facts = np.zeros(FACTS, np.int64)
        self.scratch = np.empty(_FIRST_SCRATCH, np.uint8)

    def grow(self) -> bool:
        """Make room for what the sample that did not fit needs; return False if that is too much."""
        needed = int(self.facts[0])
        if needed > _MAX_SCRATCH:
            return False
        self.scratch = np.empty(max(needed, len(self.scratch)) * 5 // 4, np.uint8)
        return True


class Job:
    """A batch, and how far it is. Several threads may work on it at once.

    Args:
        dataset: what the plan refers to.
        plan: what is asked for.
        pixels: uint8 (n, 3, resolution, resolution) to fill.
        known_bad: the reasons for samples that are known to be bad, by index; added to.
        replace: put another sample in place of a bad one, where the view is not for evaluation.

    Attributes:
        indices: int64 (n,), the samples delivered.
        kept: bool (n,), False for what is left out.
        damaged_renditions: where a smaller version was damaged and the image took its place: which one, and what is
            wrong with it, by the index of the sample.
        finished: set when nothing more is going to happen to the batch.
        error: what ended it early.
    """

    def __init__(
        self, dataset: ImageDataset, plan: BatchPlan, pixels: np.ndarray, known_bad: dict[int, str], replace: bool
    ) -> None:
        self.dataset, self.plan, self.pixels = dataset, plan, pixels
        self.indices = plan.indices.copy()
        self.kept = np.ones(len(plan), np.bool_)
        self._bad: list[tuple[int, BadSample]] = []  # by position in the batch
        self.damaged_renditions: dict[int, tuple[int, str]] = {}
        self.finished = threading.Event()
        self.error: BaseException | None = None
        self._known_bad, self._replace = known_bad, replace
        self._counters = np.zeros(2, np.int64)  # samples taken, samples done
        self._statuses = np.zeros(len(plan), np.int32)
        for position, index in enumerate(plan.indices.tolist() if known_bad else ()):
            if index in known_bad:
                self._statuses[position] = Status.KNOWN_BAD
        self._sources, self._versions = _sources(dataset, plan)
        if not len(plan):
            self.finished.set()

    @property
    def bad(self) -> list[BadSample]:
        """The bad samples met, in the order of the batch, whichever thread was first."""
        return [sample for _, sample in sorted(self._bad, key=lambda found: found[0])]

    @property
    def is_taken(self) -> bool:
        """Whether no sample is left to begin."""
        return bool(self._counters[0] >= len(self.plan))

    def fail(self, error: BaseException) -> None:
        """Begin no further sample, and have whoever waits for the batch raise an error."""
        self.error = self.error or error
        self._counters[0] = len(self.plan)
        self.finished.set()

    def work(self, worker: Worker) -> None:
        """Load samples until none is left to begin."""
        try:
            self._work(worker)
        except BaseException as error:
            self.fail(error)

    def _work(self, worker: Worker) -> None:
        again = -1
        while True:
            position = self._load_samples(again, worker)
            again = -1
            if position < 0:
                break
            if self._make_room(position, worker):
                self._statuses[position] = Status.OK
                again = position
            else:
                self._finish_in_python(position)
                mark_done(self._counters)
        if self._counters[1] == len(self.plan):
            self.finished.set()

    def _load_samples(self, again: int, worker: Worker) -> int:
        """Have compiled code load samples; return one to look at, below 0 when none is left to begin."""
        return load_samples(
            self._counters, again, self._statuses, self.pixels, *self._sources,
            self.plan.windows, self.plan.flips, worker.facts, worker.scratch,
        )  # fmt: skip

    def _make_room(self, position: int, worker: Worker) -> bool:
        """Provide the memory that a sample lacked; return False if that is not what kept it, or too much."""
        return bool(self._statuses[position] == Status.SCRATCH_TOO_SMALL) and worker.grow()

    def _finish_in_python(self, position: int) -> None:
        """Give Pillow what compiled code does not read, and find a replacement for what Pillow refuses as well."""
        index = int(self.plan.indices[position])
        out = self.pixels[position].transpose(1, 2, 0)
        status = self._statuses[position]
        reason = self._known_bad.get(index) if status == Status.KNOWN_BAD else self._load(self.plan, position, out)
        if reason is None:
            if status == Status.CHANGED:
                self._note_rendition(position, index)
            return
        self._note(position, index, reason)
        if self.plan.view.is_evaluation or not self._replace:
            self.kept[position] = False
        else:
            self.indices[position] = self._load_replacement(position, out)

    def _load_replacement(self, position: int, out: np.ndarray) -> int:
        for attempt in range(MAX_REPLACEMENTS):
            candidate = substitute(self.dataset, self.plan, position, attempt)
            index = int(candidate.indices[0])
            reason = self._known_bad.get(index) or self._load(candidate, 0, out)
            if reason is None:
                return index
            self._note(position, index, reason)
        raise LoaderError(
            f"no readable image found in place of {self.dataset.paths[int(self.plan.indices[position])]} "
            f"in {MAX_REPLACEMENTS} tries: most files of {self.dataset.name} seem to be damaged"
        )

    def _load(self, plan: BatchPlan, position: int, out: np.ndarray) -> str | None:
        """Fill ``out`` (uint8 HWC) by way of Pillow; return the reason if the sample is bad."""
        index = int(plan.indices[position])
        window, flip = plan.windows[position], bool(plan.flips[position])
        orientation = int(self.dataset.orientations[index])
        try:
            if isinstance(self.dataset, PackedDataset):
                record = self.dataset.checked_record(index).copy()  # PyTorch warns of memory that is read-only
                load_bytes_into(record, window, out, flip, orientation)
            else:
                load_into(self.dataset.paths[index], window, out, flip, orientation)
        except PixelError as error:
            return str(error)
        return None

    def _note(self, position: int, index: int, reason: str) -> None:
        self._known_bad[index] = reason
        self._bad.append((position, BadSample(self.dataset.name, index, self.dataset.paths[index], reason)))

    def _note_rendition(self, position: int, index: int) -> None:
        rendition = int(self._versions[position])
        if rendition >= 0 and isinstance(self.dataset, PackedDataset):
            problem = verify_record(self.dataset, index, rendition)
            if problem is not None:
                self.damaged_renditions[index] = rendition, problem


def _sources(dataset: ImageDataset, plan: BatchPlan) -> tuple[Sources, np.ndarray]:
    """Return where compiled code finds the samples, and which rendition that is, int64 (n,): -1 for the image."""
    indices = plan.indices
    zeros = np.zeros(len(plan), np.int64)
    versions = np.full(len(plan), -1, np.int64)
    orientations = dataset.orientations[indices]
    if not isinstance(dataset, PackedDataset):
        starts = dataset.paths.offsets[indices]
        lengths = dataset.paths.offsets[indices + 1] - starts
        none = np.zeros(len(plan), np.uint64)
        places = dataset.paths.buffer, starts, lengths, zeros, zeros, none, zeros, zeros, none, orientations
        return Sources(*places), versions
    columns = _record_columns(dataset.records, indices)
    # From the largest rendition to the smallest: the last that serves is taken.
    for number, rendition in enumerate(dataset.renditions):
        sides = plan.windows[:, 2:] * np.stack([rendition.widths[indices], rendition.heights[indices]], axis=1)
        serves = sides.min(axis=1) >= plan.resolution
        smaller = _record_columns(rendition, indices)
        columns = [np.where(serves, *pair) for pair in zip(smaller, columns, strict=True)]
        versions[serves] = number
    return Sources._make((dataset.paths.buffer, zeros, zeros, *columns, orientations)), versions


def _record_columns(records: Records, indices: np.ndarray) -> list[np.ndarray]:
    columns = (
        records.addresses,
        records.lengths,
        records.checksums,
        records.index_addresses,
        records.index_counts,
        records.index_checksums,
    )
    return [column[indices] for column in columns]
