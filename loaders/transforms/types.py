"""What an operation of a transform list is: its kind, and what is drawn for an image.

Parameters and their distributions are those of ``torchvision.transforms.v2``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np
from numba import njit

from kernels.random import _TO_UNIT, philox
from loaders.transforms import steps
from loaders.transforms.steps import Size, Step

Range = tuple[float, float]

FIRST_STREAM = 256  # of the generator; operation n draws from this one plus n. Those of kernels.random.Stream are below
DRAWS = 44  # for each random operation: whether it happens, and at most ten attempts of four
ATTEMPTS = 10


class Spatial(Enum):
    """What an operation does to the places of pixels."""

    NONE = "none"
    PERMUTE = "permutes pixels"
    CROP = "cuts out"
    PADDED_CROP = "pads and cuts out"
    RESIZE = "resizes"
    RESIZED_CROP = "cuts out and resizes"
    ROTATE = "rotates"
    AFFINE = "rotates, moves, scales and shears"
    FILTER = "mixes neighbors"
    ERASE = "erases"
    ANY = "does anything"


class Point(Enum):
    """What an operation does to the values of pixels."""

    NONE = "none"
    TO_FLOAT = "changes the type"
    NORMALIZE = "normalizes"
    LINEAR = "linear"
    CLIPPING = "linear, clips"
    NONLINEAR = "nonlinear"
    DISCONTINUOUS = "has jumps"


@dataclass(frozen=True, kw_only=True)
class Operation(ABC):
    """One entry of a transform list.

    Attributes:
        probability: how often it happens.
        spatial, point: its kind; one of them is NONE.
        uses_statistics: its result depends on a mean over the whole image.
        is_random: parameters are drawn for each image.
    """

    probability: float = 1.0

    spatial: ClassVar[Spatial] = Spatial.NONE
    uses_statistics: ClassVar[bool] = False
    draws_parameters: ClassVar[bool] = False
    typical_draw: ClassVar[float] = 0.77  # off the middle, where many do nothing: factors are 1, and angles 0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"{self.name}: the probability must be in [0, 1], got {self.probability}")

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def point(self) -> Point:
        return Point.NONE

    @property
    def has_jumps(self) -> bool:
        """Whether a level more or less before it can be many behind it."""
        return self.point is Point.DISCONTINUOUS or self.spatial is Spatial.ANY

    @property
    def is_random(self) -> bool:
        return self.draws_parameters or self.probability < 1

    @property
    def gain(self) -> float:
        """By how much it can enlarge the largest difference between two images."""
        return 1.0

    @abstractmethod
    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        """Return what is done to an image.

        Args:
            uniforms: float64 draws in [0, 1).
            size: of the image as it comes to this operation.
        """

    def draw(self, seed: int, epoch: int, index: int, number: int, size: Size) -> Step:
        """Draw what is done to an image, if anything.

        Args:
            seed, epoch, index: of the run and the sample.
            number: of this operation in the program as written.
            size: of the image as it comes to this operation in the program as written.
        """
        if not self.is_random:
            return self.step(np.empty(0), size)
        uniforms = np.empty(DRAWS)
        _fill(np.uint64(seed), epoch, np.uint64(index), FIRST_STREAM + number, uniforms)
        return self.step(uniforms[1:], size) if uniforms[0] < self.probability else steps.Skip()

    def typical(self, size: Size) -> Step:
        """Return what is done to an image when it happens, which costs what it does on average."""
        return self.step(np.full(DRAWS - 1, self.typical_draw), size)


@njit(cache=True, nogil=True)
def _fill(seed: np.uint64, epoch: int, key: np.uint64, stream: int, out: np.ndarray) -> None:
    for block in range(len(out) // 4):
        words = philox(seed, epoch, key, stream, block)
        for lane in range(4):
            out[4 * block + lane] = np.float64(words[lane]) * _TO_UNIT


def between(limits: Range, uniform: float) -> float:
    """Return the value at a draw in [0, 1) of a range."""
    return limits[0] + (limits[1] - limits[0]) * uniform


def check_rising(name: str, limits: Range, low: float, high: float = math.inf) -> None:
    """Raise a ValueError unless a range is two rising numbers in [low, high]."""
    if not low <= limits[0] <= limits[1] <= high:
        raise ValueError(f"{name} must be two rising numbers in [{low:g}, {high:g}], got {limits}")
