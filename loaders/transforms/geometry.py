"""Operations on the places of pixels: crops, flips, resizes, rotations, blurs and erased rectangles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kernels.device import Color
from loaders.transforms import steps
from loaders.transforms.steps import Border, Box, Interpolation, RotationInterpolation, Size, Step
from loaders.transforms.types import ATTEMPTS, Operation, Range, Spatial, between, check_rising

_GAINS: dict[Interpolation, float] = {"bilinear": 1.0, "bicubic": 1.6}  # sums of a filter's weights, signs left out


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip(Operation):
    """Mirror left to right."""

    probability: float = 0.5
    spatial = Spatial.PERMUTE

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Flip(True)


@dataclass(frozen=True, kw_only=True)
class VerticalFlip(Operation):
    """Mirror top to bottom."""

    probability: float = 0.5
    spatial = Spatial.PERMUTE

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Flip(False)


@dataclass(frozen=True)
class Rotate90(Operation):
    """Turn counterclockwise by quarters of a circle."""

    quarters: int = 1
    spatial = Spatial.PERMUTE

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Turn(self.quarters % 4)


@dataclass(frozen=True)
class Rotation(Operation):
    """Rotate by an angle in degrees, drawn evenly, within the frame; the corners get a color."""

    degrees: Range
    fill: Color = (0.0, 0.0, 0.0)
    interpolation: RotationInterpolation = "bilinear"
    spatial = Spatial.ROTATE
    draws_parameters = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_color(self.name, self.fill)

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Rotate(between(self.degrees, uniforms[0]), self.fill, self.interpolation)


@dataclass(frozen=True, kw_only=True)
class Affine(Operation):
    """Rotate, shear, scale and move within the frame, all about its center; what comes in from outside gets a color.

    Attributes:
        degrees: range of the rotation, clockwise, unlike that of `Rotation`.
        translation: largest move across and down, as fractions of width and height; whole pixels are drawn.
        scale: range of the enlargement.
        shear_x, shear_y: ranges of the shears, degrees.
    """

    degrees: Range = (0.0, 0.0)
    translation: tuple[float, float] = (0.0, 0.0)
    scale: Range = (1.0, 1.0)
    shear_x: Range = (0.0, 0.0)
    shear_y: Range = (0.0, 0.0)
    fill: Color = (0.0, 0.0, 0.0)
    interpolation: RotationInterpolation = "bilinear"
    spatial = Spatial.AFFINE
    draws_parameters = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_color(self.name, self.fill)
        check_rising(f"{self.name}: scale", self.scale, 1e-6)
        if not all(0 <= fraction <= 1 for fraction in self.translation):
            raise ValueError(f"{self.name}: translations must be in [0, 1], got {self.translation}")

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        moves = [
            round((2 * uniform - 1) * fraction * length)
            for uniform, fraction, length in zip(uniforms[1:3], self.translation, size[::-1], strict=True)
        ]
        return steps.Affine(
            between(self.degrees, uniforms[0]),
            (moves[0], moves[1]),
            between(self.scale, uniforms[3]),
            (between(self.shear_x, uniforms[4]), between(self.shear_y, uniforms[5])),
            self.fill,
            self.interpolation,
        )


@dataclass(frozen=True)
class Resize(Operation):
    """Resize to (height, width), or the shorter side to a number of pixels; antialiased."""

    size: int | Size
    interpolation: Interpolation = "bilinear"
    spatial = Spatial.RESIZE

    @property
    def gain(self) -> float:
        return _GAINS[self.interpolation]

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        if not isinstance(self.size, int):
            return steps.Resize(self.size, self.interpolation)
        height, width = size
        longer = int(self.size * max(size) / min(size))
        return steps.Resize((self.size, longer) if height <= width else (longer, self.size), self.interpolation)


@dataclass(frozen=True)
class CenterCrop(Operation):
    """Cut out the center."""

    size: Size
    spatial = Spatial.CROP

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        height, width = _inside(self.name, self.size, size)
        return steps.Crop(Box(round((size[1] - width) / 2), round((size[0] - height) / 2), width, height))


@dataclass(frozen=True)
class RandomCrop(Operation):
    """Cut out a window at a random place."""

    size: Size
    spatial = Spatial.CROP
    draws_parameters = True

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        height, width = _inside(self.name, self.size, size)
        left = math.floor(uniforms[0] * (size[1] - width + 1))
        return steps.Crop(Box(left, math.floor(uniforms[1] * (size[0] - height + 1)), width, height))


@dataclass(frozen=True)
class PaddedRandomCrop(Operation):
    """Cut out a window at a random place of the image with a border around it.

    Attributes:
        padding: width of the border: left, top, right, bottom, pixels.
        border: a color, or the image reflected about its outermost pixels.
        fill: the color, in fractions of white.
    """

    size: Size
    padding: tuple[int, int, int, int]
    border: Border = "constant"
    fill: Color = (0.0, 0.0, 0.0)
    spatial = Spatial.PADDED_CROP
    draws_parameters = True

    @property
    def name(self) -> str:
        return "RandomCrop with padding"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_color(self.name, self.fill)
        if min(self.padding) < 0:
            raise ValueError(f"{self.name}: the padding must not be negative, got {self.padding}")

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        left, top, right, bottom = self.padding
        if self.border == "reflect" and (max(left, right) >= size[1] or max(top, bottom) >= size[0]):
            raise ValueError(f"{self.name}: an image of {size[1]} x {size[0]} cannot be reflected so far")
        padded = size[0] + top + bottom, size[1] + left + right
        height, width = _inside(self.name, self.size, padded)
        x, y = math.floor(uniforms[0] * (padded[1] - width + 1)), math.floor(uniforms[1] * (padded[0] - height + 1))
        return steps.PaddedCrop(Box(x - left, y - top, width, height), self.border, self.fill)


def _inside(name: str, window: Size, size: Size) -> Size:
    if window[0] > size[0] or window[1] > size[1]:
        raise ValueError(f"{name}: an image of {size[1]} x {size[0]} is smaller than {window[1]} x {window[0]} pixels")
    return window


@dataclass(frozen=True)
class RandomResizedCrop(Operation):
    """Cut out a window of random area and aspect ratio and resize it."""

    size: Size
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    spatial = Spatial.RESIZED_CROP
    draws_parameters = True
    typical_draw = 0.5  # the mean area

    @property
    def gain(self) -> float:
        return _GAINS[self.interpolation]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rising(f"{self.name}: scale", self.scale, 0, 1)
        check_rising(f"{self.name}: ratio", self.ratio, 1e-6)

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.ResizedCrop(self.size, self.interpolation, self._box(uniforms, size))

    def _box(self, uniforms: np.ndarray, size: Size) -> Box:
        height, width = size
        logarithms = (math.log(self.ratio[0]), math.log(self.ratio[1]))
        for draws in uniforms[: 4 * ATTEMPTS].reshape(-1, 4):
            area = height * width * between(self.scale, draws[0])
            ratio = math.exp(between(logarithms, draws[1]))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Box(math.floor(draws[2] * (width - w + 1)), math.floor(draws[3] * (height - h + 1)), w, h)
        w, h = width, height
        if width / height < self.ratio[0]:
            h = min(height, max(1, round(width / self.ratio[0])))
        elif width / height > self.ratio[1]:
            w = min(width, max(1, round(height * self.ratio[1])))
        return Box((width - w) // 2, (height - h) // 2, w, h)


@dataclass(frozen=True)
class GaussianBlur(Operation):
    """Blur by a Gaussian of an odd number of pixels; its standard deviation is drawn evenly."""

    kernel_size: int
    sigma: Range = (0.1, 2.0)
    spatial = Spatial.FILTER
    draws_parameters = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"{self.name}: the kernel size must be odd and positive, got {self.kernel_size}")
        check_rising(f"{self.name}: sigma", self.sigma, 1e-6)

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Blur(self.kernel_size, between(self.sigma, uniforms[0]))


@dataclass(frozen=True, kw_only=True)
class Erasing(Operation):
    """Fill a rectangle of random area, ratio (height over width) and place with a color, in fractions of white."""

    probability: float = 0.5
    scale: Range = (0.02, 0.33)
    ratio: Range = (0.3, 3.3)
    fill: Color = (0.0, 0.0, 0.0)
    spatial = Spatial.ERASE
    draws_parameters = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rising(f"{self.name}: scale", self.scale, 0, 1)
        check_rising(f"{self.name}: ratio", self.ratio, 1e-6)
        check_color(self.name, self.fill)

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        height, width = size
        logarithms = (math.log(self.ratio[0]), math.log(self.ratio[1]))
        for draws in uniforms[: 4 * ATTEMPTS].reshape(-1, 4):
            area = height * width * between(self.scale, draws[0])
            ratio = math.exp(between(logarithms, draws[1]))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                left = math.floor(draws[2] * (width - w + 1))
                return steps.Erase(Box(left, math.floor(draws[3] * (height - h + 1)), w, h), self.fill)
        return steps.Erase(Box(0, 0, 0, 0), self.fill)


def check_color(name: str, color: Color) -> None:
    """Raise a ValueError unless a color is three fractions of white."""
    if len(color) != 3 or not all(0 <= value <= 1 for value in color):
        raise ValueError(f"{name}: the fill must be red, green and blue in [0, 1], got {color}")
