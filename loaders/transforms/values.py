"""Operations on the values of pixels: types, normalization, colors and levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.device import Color
from loaders.transforms import steps
from loaders.transforms.steps import Size, Step
from loaders.transforms.types import Operation, Point, Range, Spatial, between, check_rising


@dataclass(frozen=True)
class ToFloat(Operation):
    """From bytes to float32, white as 1."""

    @property
    def point(self) -> Point:
        return Point.TO_FLOAT

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.ToFloat()


@dataclass(frozen=True)
class Normalize(Operation):
    """Subtract a mean and divide by a standard deviation, for each channel."""

    mean: Color
    std: Color

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"{self.name}: mean and std must be three numbers each, std positive")

    @property
    def point(self) -> Point:
        return Point.NORMALIZE

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Normalize(self.mean, self.std)


@dataclass(frozen=True)
class _Blend(Operation):
    """A change by a factor, drawn evenly; 1 changes nothing."""

    factor: Range
    draws_parameters = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rising(f"{self.name}: factor", self.factor, 0)

    @property
    def point(self) -> Point:
        return Point.CLIPPING if self.factor[1] > 1 else Point.LINEAR


@dataclass(frozen=True)
class Brightness(_Blend):
    """Multiply by a factor."""

    @property
    def gain(self) -> float:
        return max(self.factor[1], 1.0)

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Brightness(between(self.factor, uniforms[0]))


@dataclass(frozen=True)
class Contrast(_Blend):
    """Blend with the image's mean luma."""

    uses_statistics = True

    @property
    def gain(self) -> float:
        return max(2 * self.factor[1] - 1, 1.0)

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Contrast(between(self.factor, uniforms[0]))


@dataclass(frozen=True)
class Saturation(_Blend):
    """Blend with the luma."""

    @property
    def gain(self) -> float:
        return max(2 * self.factor[1] - 1, 1.0)

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Saturation(between(self.factor, uniforms[0]))


@dataclass(frozen=True)
class Hue(Operation):
    """Turn the hue by a fraction of the circle, drawn evenly."""

    turn: Range
    draws_parameters = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rising(f"{self.name}: turn", self.turn, -0.5, 0.5)

    @property
    def point(self) -> Point:
        return Point.NONLINEAR

    @property
    def gain(self) -> float:
        return 7.0  # the brightest channel, less a chroma off by 2 and a place on the circle off by 4 over the chroma

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Hue(between(self.turn, uniforms[0]))


@dataclass(frozen=True)
class Grayscale(Operation):
    """Replace each channel by the luma."""

    @property
    def point(self) -> Point:
        return Point.LINEAR

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Grayscale()


@dataclass(frozen=True)
class Invert(Operation):
    """Replace each value by its distance from white."""

    @property
    def point(self) -> Point:
        return Point.LINEAR

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Invert()


@dataclass(frozen=True)
class Solarize(Operation):
    """Invert levels from a threshold on, which is a fraction of white."""

    threshold: float

    @property
    def point(self) -> Point:
        return Point.DISCONTINUOUS

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Solarize(self.threshold)


@dataclass(frozen=True)
class Posterize(Operation):
    """Keep the uppermost bits of each byte."""

    bits: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.bits <= 8:
            raise ValueError(f"{self.name}: bits must be in [1, 8], got {self.bits}")

    @property
    def point(self) -> Point:
        return Point.DISCONTINUOUS

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Posterize(self.bits)


@dataclass(frozen=True)
class Sharpness(Operation):
    """Blend with a smoothed image, for bytes: 0 smooths, 1 changes nothing, more sharpens."""

    factor: float
    spatial = Spatial.ANY

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 0:
            raise ValueError(f"{self.name}: the factor must not be negative, got {self.factor}")

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Sharpness(self.factor)


@dataclass(frozen=True)
class Autocontrast(Operation):
    """Stretch each channel to the full range, for bytes."""

    spatial = Spatial.ANY

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Autocontrast()


@dataclass(frozen=True)
class Equalize(Operation):
    """Equalize each channel's histogram, for bytes."""

    spatial = Spatial.ANY

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Equalize()


def color_jitter(
    brightness: Range | None = None,
    contrast: Range | None = None,
    saturation: Range | None = None,
    hue: Range | None = None,
    probability: float = 1.0,
) -> list[Operation]:
    """Return up to four operations: factors of brightness, contrast and saturation, and the turn of the hue."""
    changes: list[Operation] = []
    for kind, limits in ((Brightness, brightness), (Contrast, contrast), (Saturation, saturation), (Hue, hue)):
        if limits is not None:
            changes.append(kind(limits, probability=probability))  # type: ignore[operator]
    return changes
