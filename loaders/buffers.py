"""Memory for batches, used again as soon as nobody looks at it any more."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import torch


class BufferPool:
    """Hands out arrays from a few large buffers; an array that nobody refers to gives its buffer back by itself.

    New memory for every batch would cost a page fault for each 4 kB, a tenth of the time that decoding takes.

    Args:
        pinned: make the buffers page-locked, for copies to a CUDA device that do not wait.
        keep: how many free buffers to keep at most.
    """

    def __init__(self, pinned: bool, keep: int) -> None:
        self._pinned = pinned
        self._free: deque[np.ndarray] = deque(maxlen=keep)

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return uint8 memory of a shape, with whatever it held before, aligned to 64 bytes.

        A tensor made of the array by ``torch.from_numpy`` keeps the buffer in use, and so does every view of that
        tensor. A NumPy view of the array does not: NumPy has it refer to the buffer alone.
        """
        size = math.prod(shape)
        buffer = self._free.pop() if self._free else None
        if buffer is None or len(buffer) < size:
            buffer = self._allocate(size)
        array = buffer[:size].reshape(shape)
        weakref.finalize(array, self._free.append, buffer).atexit = False
        return array

    def _allocate(self, size: int) -> np.ndarray:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned).numpy()
