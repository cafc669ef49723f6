"""An epoch in FFCV's hands: its thread works ahead on the batches of a plan; errors and ends are ours."""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty
from typing import Any

import torch

from loaders.buffers import BufferPool
from loaders.contract import LoaderError
from loaders.ffcv_file import Beton
from loaders.ffcv_library import EpochIterator, Loader, PipelineSpec, torch_threads_kept
from loaders.ffcv_operation import FindRecords, LoadImages, Task
from loaders.plan import BatchPlan, EpochPlan

EPOCH_ENDED = "this epoch has ended: the loader was closed or another epoch was started"
_PATIENCE = 0.2  # seconds between looks at whether the thread still lives


def build_loader(beton: Beton, num_threads: int, prefetch: int) -> Loader:
    """Build FFCV's loader of a file; it serves every epoch, whatever the size of images and batches.

    Args:
        beton: the file.
        num_threads: threads of its operations.
        prefetch: finished batches that may wait to be taken.
    """
    operations = PipelineSpec("image", decoder=FindRecords(), transforms=[LoadImages()])
    with torch_threads_kept():
        loader = Loader(
            str(beton.path),
            batch_size=1,  # of a PlanEpoch's items, which are batches
            num_workers=num_threads,
            os_cache=True,
            pipelines={"image": operations, "label": None},
            drop_last=False,
            batches_ahead=prefetch,
            seed=0,  # it would draw one from NumPy's global generator
        )
    loader.memory_manager.context.mmap = beton.data  # what has been checked, even if the file is replaced
    return loader


def has_samples(plan: EpochPlan, step: int) -> bool:
    """Return whether this rank has a share in a batch; in the last one of an epoch it may have none."""
    return plan.global_count(step) > plan.rank


class PlanEpoch(EpochIterator):  # type: ignore[misc]  # FFCV has no types
    """FFCV's thread for one epoch, whose items are the batches of a plan.

    What FFCV's own iterator lacks: an exception in the thread reaches whoever waits for a batch, and `stop` ends the
    thread wherever it is.

    Args:
        loader: of the file.
        plan: which batches to load.
        buffers: where the memory for the images comes from.
    """

    def __init__(self, loader: Loader, plan: EpochPlan, buffers: BufferPool) -> None:
        self._plan = plan
        self._buffers = buffers
        self._task: Task | None = None
        self._error: BaseException | None = None
        self._torch_threads = torch.get_num_threads()
        steps = [step for step in range(plan.start_batch, plan.num_batches) if has_samples(plan, step)]
        super().__init__(loader, steps)  # starts the thread

    def run(self) -> None:
        """Load one batch after another; runs in the thread."""
        try:
            super().run()
        except BaseException as error:
            self._error = error

    def run_pipeline(self, number: int, steps: list[int], slot: int, event: Any) -> tuple[BatchPlan, Task]:
        """Load one batch; FFCV calls it in the thread.

        Raises:
            StopIteration: the epoch was stopped.
        """
        if number == 0:
            torch.set_num_threads(self._torch_threads)  # FFCV has set it for the whole process
        batch = self._plan.batch(steps[0])
        pixels = self._buffers.take((len(batch), 3, batch.resolution, batch.resolution))
        task = Task.of(batch, pixels, self.loader.num_workers)
        self._task = task
        if self.terminate_event.is_set():
            raise StopIteration
        super().run_pipeline(number, task, slot, event)
        return batch, task

    def receive(self) -> tuple[BatchPlan, Task]:
        """Return the next batch.

        Raises:
            LoaderError: the thread failed.
            RuntimeError: the epoch was stopped.
        """
        while True:
            failed = self._error is not None  # asked first, so that what was finished before is delivered
            with suppress(Empty):
                _, result = self.output_queue.get(timeout=0 if failed else _PATIENCE)
                return result
            if self._error is not None and failed:
                raise LoaderError(f"FFCV's thread failed: {self._error}") from self._error
            if self.terminate_event.is_set():
                raise RuntimeError(EPOCH_ENDED)

    def stop(self) -> None:
        """End the thread and wait for it; what it has finished is thrown away."""
        self.terminate_event.set()
        if self._task is not None:
            self._task.stop()
        while True:
            with suppress(Empty):
                while True:
                    self.output_queue.get_nowait()
            if not self.is_alive() or self is threading.current_thread():  # the garbage collector may run anywhere
                break
            self.join(0.01)
        self._task = None
