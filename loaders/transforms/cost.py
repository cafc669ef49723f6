"""What a step costs on this machine: measured once for each kind, form of the image and backend, and kept.

Costs are CPU time of one thread in milliseconds. A step on every pixel is measured at several sizes, between which its
cost is interpolated; a resize is fitted by what its two passes read and write. How pixels lie in memory changes some
costs several times over, so that it is part of an image's form, and it is noted in which form a step leaves an image.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from loaders.cache import cache_dir
from loaders.files import atomic_file
from loaders.transforms.fusion import Window
from loaders.transforms.steps import (
    Blur,
    Box,
    Call,
    Crop,
    Erase,
    PaddedCrop,
    Resize,
    ResizedCrop,
    Several,
    Size,
    Skip,
    Step,
)

_FORMAT = 4  # of the file: what its keys and numbers mean

_SIZES: tuple[Size, ...] = ((64, 64), (128, 128), (224, 224), (320, 384), (480, 640))
_RESIZES: tuple[tuple[Size, Size], ...] = (
    ((48, 48), (96, 96)),
    ((48, 48), (224, 224)),
    ((96, 96), (64, 64)),
    ((96, 96), (224, 224)),
    ((224, 224), (96, 96)),
    ((224, 288), (224, 224)),
    ((375, 500), (96, 96)),
    ((375, 500), (224, 224)),
    ((375, 500), (256, 341)),
    ((600, 800), (224, 224)),
)
_MARGIN = 16  # pixels around a box, so that what is cut out is no contiguous memory
_REPETITIONS = 5
_SECONDS = 0.01  # of one measurement at least, so that the clock's ticks do not matter
_LONG = 50.0  # milliseconds; what takes longer is taken to be in proportion at larger sizes


@dataclass(frozen=True)
class Form:
    """How the pixels of an image lie in memory.

    Attributes:
        is_float: in float32, not in bytes.
        is_planar: as (3, H, W), not as (H, W, 3).
        is_cut: with gaps, as those of a window of a larger image, or in another order.
    """

    is_float: bool = False
    is_planar: bool = False
    is_cut: bool = False

    def __str__(self) -> str:
        kind = "float32" if self.is_float else "uint8"
        return kind + " planar" * self.is_planar + " cut" * self.is_cut


class Formed(Protocol):
    """An image, as far as its form is asked for."""

    @property
    def form(self) -> Form: ...


Execute = Callable[[Step, np.ndarray, str, Form], Callable[[], Formed]]
"""From a step, uint8 pixels (H, W, 3), backend and form to a call that does it to them and returns the result."""


@dataclass(frozen=True)
class Known:
    """What was measured of a kind of step.

    Attributes:
        figures: milliseconds at _SIZES; of a resize the factors of the fit.
        leaves: the form of the image that it leaves.
    """

    figures: list[float]
    leaves: Form


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch work in the calling thread alone, as in a loader's worker, so that its CPU time is all there is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cpu_ms(call: Callable[[], object], repetitions: int = _REPETITIONS) -> float:
    """Return the least CPU time of a call over some repetitions, in milliseconds."""
    begin = time.thread_time()
    call()
    calls = max(1, round(_SECONDS / repetitions / max(time.thread_time() - begin, 1e-6)))
    best = float("inf")
    for _ in range(repetitions):
        begin = time.thread_time()
        for _ in range(calls):
            call()
        best = min(best, (time.thread_time() - begin) / calls)
    return 1000 * best


def passes(step: Step, size: Size) -> tuple[float, float]:
    """Return how much the two passes of a resize work on: samples read or written, whichever are more."""
    assert isinstance(step, Resize | Window)
    box = step.box if isinstance(step, ResizedCrop | Window) else Box(0, 0, size[1], size[0])
    height, width = step.size
    return box.height * max(box.width, width), width * max(box.height, height)


@dataclass
class Costs:
    """The measured costs, read from a file and added to it when something is asked for that is not in it.

    Attributes:
        execute: see `Execute`.
        path: the file; None keeps them in memory alone.
    """

    execute: Execute
    path: Path | None = None
    table: dict[str, Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            try:
                self.table = _read(self.path)
            except (ValueError, TypeError, KeyError, AttributeError):
                self.table = {}  # damaged: to be measured again

    def of(self, step: Step, size: Size, backend: str, form: Form) -> float:
        """Return the CPU time of a step, in milliseconds; that of a user's function counts as nothing.

        Args:
            size: of the image that it takes.
            form: of that image.
        """
        if isinstance(step, Skip | Call):
            return 0.0
        figures = self._known(step, backend, form).figures
        if isinstance(step, Resize | Window):
            first, second = passes(step, size)
            return figures[0] + figures[1] * first + figures[2] * second
        touched = step.output_size(size) if isinstance(step, Crop | PaddedCrop) else size
        return _interpolate(touched[0] * touched[1], figures)

    def leaves(self, step: Step, backend: str, form: Form) -> Form:
        """Return the form in which a step leaves an image; a user's function counts as leaving it as it is."""
        return form if isinstance(step, Skip | Call) else self._known(step, backend, form).leaves

    def _known(self, step: Step, backend: str, form: Form) -> Known:
        key = f"{backend} {form} {step.cost_key()}"
        if key not in self.table:
            with single_threaded():
                if isinstance(step, Resize | Window):
                    self.table[key] = self._resize(step, backend, form)
                else:
                    self.table[key] = self._pixels(step, backend, form)
            self._save()
        return self.table[key]

    def _pixels(self, step: Step, backend: str, form: Form) -> Known:
        times: list[float] = []
        for size in _SIZES:
            if times and times[-1] > _LONG:
                last = _SIZES[len(times) - 1]
                times.append(times[-1] * size[0] * size[1] / (last[0] * last[1]))
                continue
            least = _least_side(step)
            taken = max(size[0], least), max(size[1], least)
            sample, source = _sample(step, taken)
            call = self.execute(sample, _noise(source), backend, form)
            times.append(cpu_ms(call) * size[0] * size[1] / (taken[0] * taken[1]))
        return Known(times, call().form)

    def _resize(self, step: Resize | Window, backend: str, form: Form) -> Known:
        works, times = [], []
        for source, target in _RESIZES:
            sample = replace(step, size=target)
            whole = source
            if isinstance(sample, ResizedCrop | Window):
                sample = replace(sample, box=Box(_MARGIN, _MARGIN, source[1], source[0]))
                whole = (source[0] + 2 * _MARGIN, source[1] + 2 * _MARGIN)
            works.append((1.0, *passes(sample, source)))
            call = self.execute(sample, _noise(whole), backend, form)
            times.append(cpu_ms(call))
        return Known(_fit(np.array(works), np.array(times)), call().form)

    def _save(self) -> None:
        if self.path is not None:
            with atomic_file(self.path) as temporary:
                table = {key: asdict(known) for key, known in self.table.items()}
                temporary.write_text(json.dumps(table, indent=1) + "\n")


def _read(path: Path) -> dict[str, Known]:
    table = json.loads(path.read_text())
    return {key: Known(known["figures"], Form(**known["leaves"])) for key, known in table.items()}


def costs_file() -> Path:
    """Return where this machine's costs are kept: a file of the cache folder for each processor and set of versions."""
    versions = [metadata.version(package) for package in ("torch", "torchvision", "pillow")]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    machine = hashlib.sha256("|".join([platform.machine(), processor, *versions]).encode()).hexdigest()[:16]
    return cache_dir() / f"transform-costs-{_FORMAT}-{machine}.json"


def _sample(step: Step, size: Size) -> tuple[Step, Size]:
    """Return a step that costs as much for each pixel, and the size of an image of which it touches so many pixels.

    Boxes are in proportion to the size, whatever those of the step are.
    """
    height, width = size
    match step:
        case Crop():
            return Crop(Box(_MARGIN, _MARGIN, width, height)), (height + 2 * _MARGIN, width + 2 * _MARGIN)
        case PaddedCrop():
            return replace(step, box=Box(-(width // 8), -(height // 8), width, height)), size
        case Erase():
            return replace(step, box=Box(width // 4, height // 4, width // 3, height // 3)), size
    return step, size


def _least_side(step: Step) -> int:
    """Return the side in pixels of the smallest image that a step can be done to, whatever its boxes."""
    if isinstance(step, Several):
        return max(map(_least_side, step.steps), default=1)
    return step.kernel_size // 2 + 1 if isinstance(step, Blur) else 1  # as far as the image is reflected


def _noise(size: Size) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def _interpolate(pixels: float, times: Sequence[float]) -> float:
    """Return the time for a number of pixels from those at _SIZES; beyond the largest in proportion."""
    known = [height * width for height, width in _SIZES]
    if pixels > known[-1]:
        return times[-1] * pixels / known[-1]
    return float(np.interp(pixels, known, times))


def _fit(works: np.ndarray, times: np.ndarray) -> list[float]:
    """Return the non-negative factors of a constant and two kinds of work, by least squares of relative errors."""
    chosen = [0, 1, 2]
    while True:
        solution, *_ = np.linalg.lstsq(works[:, chosen] / times[:, None], np.ones(len(times)), rcond=None)
        if (solution >= 0).all():
            factors = np.zeros(3)
            factors[chosen] = solution
            return factors.tolist()
        chosen.pop(int(solution.argmin()))
