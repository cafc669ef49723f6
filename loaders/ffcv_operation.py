"""What FFCV's threads do with a batch: find each record in the file, then crop and resize it with our own kernels.

FFCV decodes whole images and resizes them with OpenCV's INTER_AREA, which is 2 of 255 away from Pillow on average; here
the same compiled code runs as behind the other loaders. All that belongs to a batch travels as an argument: arrays that
an operation refers to in any other way are frozen by Numba when it compiles, and an epoch would repeat the crops of the
first one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from kernels.jpeg import BAD, SCRATCH_TOO_SMALL, create_handle, destroy_handle
from kernels.memory import bytes_at, fetch_add
from kernels.regions import FACTS, load_sample
from kernels.resample import resize_window
from loaders.ffcv_file import RAW
from loaders.ffcv_library import Operation, State
from loaders.plan import BatchPlan

ADDRESS, LENGTH, MODE, WIDTH, HEIGHT = range(5)  # columns of Task.records
_UPRIGHT = 1  # EXIF orientation
_FIRST_SCRATCH = 1 << 20  # bytes
_MAX_SCRATCH = 1 << 28  # bytes; no honest record needs as much


class Task(NamedTuple):
    """A batch for compiled code.

    Attributes:
        indices: int64 (n,), samples of the file.
        windows: float64 (n, 4): left, top, width, height in fractions of the image.
        flips: bool (n,).
        images: uint8 (n, 3, resolution, resolution) to fill.
        statuses: int64 (n,), how each sample ended: `kernels.jpeg.Status`.
        records: int64 (n, 5), filled in: where the bytes are, how many, what they are, width and height in pixels.
        taken: int64 (1,), samples begun; n stops the work.
        num_threads: how many threads work on it.
    """

    indices: np.ndarray
    windows: np.ndarray
    flips: np.ndarray
    images: np.ndarray
    statuses: np.ndarray
    records: np.ndarray
    taken: np.ndarray
    num_threads: int

    @staticmethod
    def of(batch: BatchPlan, images: np.ndarray, num_threads: int) -> Task:
        """Return a batch of which nothing is done."""
        count = len(batch)
        return Task(
            batch.indices,
            np.ascontiguousarray(batch.windows),
            np.ascontiguousarray(batch.flips),
            images,
            np.zeros(count, np.int64),
            np.zeros((count, 5), np.int64),
            np.zeros(1, np.int64),
            num_threads,
        )

    def stop(self) -> None:
        """Begin no further sample."""
        self.taken[0] = len(self.indices)


@njit(cache=True, nogil=True, error_model="numpy")
def _load_raw(record: np.ndarray, width: int, height: int, window: np.ndarray, flip: bool, out: np.ndarray) -> int:
    """Crop and resize raw pixels, uint8 (height * width * 3,), into ``out``, uint8 (3, R, R)."""
    if width < 1 or height < 1 or record.size != 3 * width * height:
        return BAD
    pixels = record.reshape(height, width, 3)
    planes = out.transpose(1, 2, 0)
    if flip:
        planes = planes[:, ::-1]
    left, top = max(0.0, window[0] * width), max(0.0, window[1] * height)
    right, bottom = min(width, (window[0] + window[2]) * width), min(height, (window[1] + window[3]) * height)
    resize_window(pixels, left, top, right - left, bottom - top, planes)
    return 0


@njit(cache=True, nogil=True, error_model="numpy")
def load_some(task: Task) -> None:
    """Load samples until none is left to begin, as one of several threads."""
    starts = np.empty(0, np.uint32)  # the records have no restart markers
    facts = np.zeros(FACTS, np.int64)
    scratch = np.empty(_FIRST_SCRATCH, np.uint8)
    while True:
        i = fetch_add(task.taken, 0, 1)
        if i >= task.indices.size:
            break
        record = bytes_at(task.records[i, ADDRESS], task.records[i, LENGTH])
        window, flip, out = task.windows[i], task.flips[i], task.images[i]
        if task.records[i, MODE] == RAW:
            task.statuses[i] = _load_raw(record, task.records[i, WIDTH], task.records[i, HEIGHT], window, flip, out)
            continue
        handle = create_handle()  # a new one: what becomes of a damaged record must not depend on those before
        status = load_sample(handle, record, starts, _UPRIGHT, window, flip, out, facts, scratch)
        if status == SCRATCH_TOO_SMALL and facts[0] <= _MAX_SCRATCH:
            scratch = np.empty(facts[0], np.uint8)
            status = load_sample(handle, record, starts, _UPRIGHT, window, flip, out, facts, scratch)
        destroy_handle(handle)
        task.statuses[i] = status


@njit(cache=True, nogil=True, parallel=True, error_model="numpy")
def load_all(task: Task) -> None:
    """Load all samples, in as many threads as the batch says."""
    for _ in prange(task.num_threads):
        load_some(task)


class FindRecords(Operation):  # type: ignore[misc]  # FFCV has no types
    """Asks FFCV's memory manager where the records of a batch are; its input is a `Task` where FFCV has indices."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        """Ask for no memory: a batch brings its own, which nobody overwrites."""
        return previous_state, None

    def generate_code(self) -> Callable[..., Any]:
        """Return what FFCV compiles, anew in every process: as little as possible."""
        read = self.memory_read

        def find(task: Task, memory: None, metadata: np.ndarray, storage_state: Any) -> Task:
            for i in range(task.indices.size):
                entry = metadata[task.indices[i]]
                record = read(entry["data_ptr"], storage_state)
                task.records[i, ADDRESS] = record.ctypes.data
                task.records[i, LENGTH] = record.size
                task.records[i, MODE] = entry["mode"]
                task.records[i, WIDTH] = entry["width"]
                task.records[i, HEIGHT] = entry["height"]
            return task

        return find


class LoadImages(Operation):  # type: ignore[misc]
    """Fills in the images of a batch, in Numba's threads."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        """Ask FFCV not to compile what is compiled already, and for no memory."""
        return replace(previous_state, jit_mode=False), None

    def generate_code(self) -> Callable[..., Any]:
        """Return a function of a `Task` and no memory."""

        def load(task: Task, memory: None) -> Task:
            if task.num_threads > 1:
                load_all(task)
            else:  # needs no threading layer
                load_some(task)
            return task

        return load
