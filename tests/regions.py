"""Crops of JPEGs by compiled code, and by Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from kernels.jpeg import create_handle, destroy_handle
from kernels.regions import FACTS, Status, load_sample
from kernels.restart import interval_starts
from loaders.pixels import load_window

NO_INDEX = np.empty(0, np.uint32)
WHOLE = (0.0, 0.0, 1.0, 1.0)
SCRATCH = np.empty(8 << 20, np.uint8)


def load(
    record: np.ndarray,
    starts: np.ndarray = NO_INDEX,
    window: tuple[float, ...] = WHOLE,
    resolution: int = 32,
    orientation: int = 1,
    flip: bool = False,
    scratch: np.ndarray = SCRATCH,
) -> tuple[int, np.ndarray]:
    """Load a crop with a new decoder; return the status and uint8 (3, resolution, resolution)."""
    out = np.zeros((3, resolution, resolution), np.uint8)
    facts, handle = np.zeros(FACTS, np.int64), create_handle()
    status = load_sample(handle, record, starts, orientation, np.array(window), flip, out, facts, scratch)
    destroy_handle(handle)
    return status, out


def by_pillow(
    record: np.ndarray,
    window: tuple[float, ...] = WHOLE,
    resolution: int = 32,
    orientation: int = 1,
    flip: bool = False,
    scaled: bool = False,
) -> np.ndarray:
    image = load_window(io.BytesIO(record.tobytes()), np.array(window), resolution, orientation, scaled)
    return (image[:, ::-1] if flip else image).transpose(2, 0, 1)


def difference(record: np.ndarray, *arguments: Any, scaled: bool = False) -> float:
    """Return the mean absolute difference to Pillow, of 255; ``scaled`` lets it decode to a smaller size."""
    status, out = load(record, interval_starts(record), *arguments)
    assert status == Status.OK
    return float(np.abs(out.astype(int) - by_pillow(record, *arguments, scaled=scaled)).mean())


def luma_noise(width: int, height: int) -> np.ndarray:
    """Return a gray picture no two pixels of which are alike."""
    gray = np.random.default_rng(width * height).integers(20, 236, (height, width, 1), np.uint8)
    return gray.repeat(3, axis=2)
