"""What is used of FFCV, imported in one place: FFCV changes the process in passing, and its absence needs an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numba import types

INSTALLATION = (
    "FFCV is built on installation and needs a compiler and two libraries. On Debian and Ubuntu:\n"
    "    sudo apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev\n"
    "    pip install 'headrace[ffcv]'\n"
    "--loader torch needs none of it"
)


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Restore PyTorch's number of threads, which FFCV sets for the whole process."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


try:
    with torch_threads_kept():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.loader import Loader
        from ffcv.loader.epoch_iterator import EpochIterator
        from ffcv.memory_allocator import MemoryAllocator
        from ffcv.memory_managers import OSCacheManager
        from ffcv.pipeline.compiler import Compiler
        from ffcv.pipeline.operation import Operation
        from ffcv.pipeline.pipeline_spec import PipelineSpec
        from ffcv.pipeline.state import State
        from ffcv.reader import Reader
        from ffcv.types import HeaderType
        from ffcv.writer import DatasetWriter
except (ImportError, OSError) as error:  # OSError: a shared library that it was built with is gone
    raise ImportError(f"the loader ffcv cannot be used: {error}. {INSTALLATION}") from error


def _compile_reader(self: OSCacheManager) -> Callable[..., Any]:
    """Compile the function that finds a record in the file, uint8 (size,), by its address."""

    def read(address: int, state: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        size = state[2][np.searchsorted(state[1], address)]
        return state[0][address : address + size]

    content = types.Array(types.uint8, 1, "C", readonly=True)
    numbers = types.uint64[::1]
    return Compiler.compile(read, content(types.uint64, types.Tuple([content, numbers, numbers])))


# In its own version FFCV says that the file is read-only by changing Numba's one type of byte arrays, after which
# nothing in the process can be compiled that writes to bytes.
OSCacheManager.compile_reader = _compile_reader

__all__ = [
    "DatasetWriter",
    "EpochIterator",
    "HeaderType",
    "IntField",
    "Loader",
    "MemoryAllocator",
    "Operation",
    "PipelineSpec",
    "RGBImageField",
    "Reader",
    "State",
    "torch_threads_kept",
]
