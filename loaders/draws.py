"""What augmentation does to which images of a batch, drawn on the host for the whole batch at once.

Each function draws for one kind of change and returns steps: an operation, the images that it works on, and their
parameters. The policies' operations and ranges are those of ``torchvision.transforms.v2.RandAugment`` and
``TrivialAugmentWide``; resampling is bilinear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import torch

from kernels.device import Color
from kernels.random import Stream
from loaders import operations

Draw = Callable[[Stream, int], np.ndarray]
"""``kernels.random.uniform`` for the samples of one batch: stream and count to float64 (N, count) in [0, 1)."""

Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""As of loaders.operations: uint8 images (n, 3, H, W) and float32 parameters (n, k) to new images."""

STRONGEST = 30  # the largest magnitude of RandAugment and TrivialAugment

_BLUR_SIGMA = (0.1, 2.0)  # pixels
_BLUR_RADIUS = 6  # pixels
_ERASED_AREA = (0.02, 1 / 3)  # of the image's area
_ERASED_RATIO = (0.3, 3.3)  # height over width
_ERASING_ATTEMPTS = 10


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on some images of a batch.

    Attributes:
        operation: what is done.
        rows: int64 (n,), the images, each at most once.
        parameters: float32 (n, k), one row for each of them.
    """

    operation: Operation
    rows: np.ndarray
    parameters: np.ndarray

    @staticmethod
    def of(operation: Operation, chosen: np.ndarray, parameters: np.ndarray) -> Step:
        """Take the images where ``chosen``, bool (N,), and their rows of the whole batch's parameters, (N, k)."""
        rows = np.flatnonzero(chosen)
        return Step(operation, rows, parameters[rows].astype(np.float32))

    def where(self, chosen: np.ndarray) -> Step:
        """Return the same for those of the images that are chosen, too: bool (N,)."""
        kept = chosen[self.rows]
        return Step(self.operation, self.rows[kept], self.parameters[kept])


class BatchOperation(Protocol):
    """An operation of a transform list, for whole batches."""

    def steps(self, seed: int, epoch: int, keys: np.ndarray, height: int, width: int) -> list[Step]:
        """Draw what is done to a batch, each image by its key alone.

        Args:
            seed, epoch: what the draws depend on besides the keys.
            keys: uint64 (N,), one for each image.
            height, width: of the images, pixels; they stay.
        """


@dataclass(frozen=True)
class PolicySpace:
    """How far the operations of a policy go at the largest magnitude.

    Attributes:
        shear: tangent of the angle.
        translation: fraction of the side, pixels; their sum counts.
        rotation: degrees.
        factor: how far factors of brightness, saturation, contrast and sharpness are from 1.
        bits: bits that posterize drops.
    """

    shear: float
    translation: tuple[float, float]
    rotation: float
    factor: float
    bits: int


RAND_AUGMENT = PolicySpace(shear=0.3, translation=(150 / 331, 0), rotation=30, factor=0.9, bits=4)
TRIVIAL_AUGMENT = PolicySpace(shear=0.99, translation=(0, 32), rotation=135, factor=0.99, bits=6)


class Policy(IntEnum):
    """The operations that a policy chooses from, all with the same probability."""

    IDENTITY = 0
    SHEAR_X = 1
    SHEAR_Y = 2
    TRANSLATE_X = 3
    TRANSLATE_Y = 4
    ROTATE = 5
    BRIGHTNESS = 6
    SATURATION = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10
    SOLARIZE = 11
    AUTOCONTRAST = 12
    EQUALIZE = 13


def filled(values: np.ndarray, fill: Color) -> np.ndarray:
    """Append the fill as bytes, whole numbers, to each row."""
    color = np.round(255 * np.asarray(fill))
    return np.concatenate([values, np.broadcast_to(color, (len(values), 3))], axis=1)


def rotation_maps(degrees: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return affine maps (N, 6) that rotate counterclockwise about the center."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = width / 2, height / 2
    return np.stack(
        [cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y],
        axis=1,
    )


def gaussian(sigma: np.ndarray, radius: int) -> np.ndarray:
    """Return the weights (N, radius + 1) of Gaussian kernels at distance 0, 1, 2, ... pixels, from sigma (N, 1)."""
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    return weights / (2 * weights.sum(axis=1, keepdims=True) - 1)  # all but the center count twice


def shift(draw: Draw, padding: float, height: int, width: int) -> list[Step]:
    """Move each image by up to ``padding`` of its sides in either direction."""
    limits = np.round(padding * np.array([width, height])).clip(max=np.array([width, height]) - 1)
    moves = np.floor(draw(Stream.SHIFT, 2) * (2 * limits + 1)) - limits
    return [Step.of(operations.shift, moves.any(axis=1), moves)]


def rotation(draw: Draw, limit: float, height: int, width: int, fill: Color) -> list[Step]:
    """Rotate each image by up to ``limit`` degrees in either direction."""
    degrees = limit * (2 * draw(Stream.ROTATION, 1)[:, 0] - 1)
    return [Step.of(operations.affine, degrees != 0, filled(rotation_maps(degrees, height, width), fill))]


def color_jitter(draw: Draw, strengths: tuple[float, float, float, float]) -> list[Step]:
    """Change each image's brightness, contrast, saturation and hue by up to the given strengths."""
    changes = (2 * draw(Stream.COLOR, 4) - 1) * strengths
    factors = (1 + changes[:, :3]).clip(min=0)
    return [
        Step.of(operations.enhance, (factors != 1).any(axis=1), factors),
        Step.of(operations.hue, changes[:, 3] != 0, changes[:, 3:]),
    ]


def rand_augment(draw: Draw, layers: int, magnitude: float, height: int, width: int, fill: Color) -> list[Step]:
    """Apply ``layers`` operations of one magnitude, drawn anew for each image."""
    draws = draw(Stream.POLICY, 2 * layers)
    steps = []
    for layer in range(layers):
        policies = np.floor(draws[:, 2 * layer] * len(Policy))
        signs = np.where(draws[:, 2 * layer + 1] < 0.5, -1, 1)
        levels = np.full(len(draws), magnitude / STRONGEST)
        steps += policy_steps(policies, levels, signs, RAND_AUGMENT, height, width, fill)
    return steps


def trivial_augment(draw: Draw, magnitude: float, height: int, width: int, fill: Color) -> list[Step]:
    """Apply one operation to each image, its magnitude one of 31 steps from 0 to ``magnitude``."""
    draws = draw(Stream.POLICY, 3)
    policies = np.floor(draws[:, 0] * len(Policy))
    signs = np.where(draws[:, 1] < 0.5, -1, 1)
    levels = np.floor(draws[:, 2] * (STRONGEST + 1)) / STRONGEST * (magnitude / STRONGEST)
    return policy_steps(policies, levels, signs, TRIVIAL_AUGMENT, height, width, fill)


def policy_steps(
    policies: np.ndarray,
    levels: np.ndarray,
    signs: np.ndarray,
    space: PolicySpace,
    height: int,
    width: int,
    fill: Color,
) -> list[Step]:
    """Turn one chosen operation for each image into steps.

    Args:
        policies: (N,), a Policy each.
        levels: (N,), magnitude as a fraction of the largest.
        signs: (N,), -1 or 1, for the operations that have a direction.
    """
    signed = signs * levels

    def at(policy: Policy, value: np.ndarray | float, otherwise: float) -> np.ndarray:
        return np.where(policies == policy, value, otherwise)

    fraction, pixels = space.translation
    maps = np.stack(
        [
            np.ones(len(policies)),
            at(Policy.SHEAR_X, signed * space.shear, 0),
            at(Policy.TRANSLATE_X, -np.trunc(signed * (fraction * width + pixels)), 0),
            at(Policy.SHEAR_Y, signed * space.shear, 0),
            np.ones(len(policies)),
            at(Policy.TRANSLATE_Y, -np.trunc(signed * (fraction * height + pixels)), 0),
        ],
        axis=1,
    )
    rotated = policies == Policy.ROTATE
    maps[rotated] = rotation_maps(signed[rotated] * space.rotation, height, width)
    factor = 1 + signed * space.factor
    factors = np.stack([at(p, factor, 1) for p in (Policy.BRIGHTNESS, Policy.CONTRAST, Policy.SATURATION)], axis=1)
    masks = 256 - 2 ** np.round(levels * space.bits)
    thresholds = 255 - np.floor(255 * levels + 1e-6)  # whole numbers stay whole
    none = np.empty((len(policies), 0))
    return [
        Step.of(operations.affine, (policies >= Policy.SHEAR_X) & (policies <= Policy.ROTATE), filled(maps, fill)),
        Step.of(operations.enhance, (policies >= Policy.BRIGHTNESS) & (policies <= Policy.CONTRAST), factors),
        Step.of(operations.sharpness, policies == Policy.SHARPNESS, factor[:, None]),
        Step.of(operations.posterize, policies == Policy.POSTERIZE, masks[:, None]),
        Step.of(operations.solarize, policies == Policy.SOLARIZE, thresholds[:, None]),
        Step.of(operations.autocontrast, policies == Policy.AUTOCONTRAST, none),
        Step.of(operations.equalize, policies == Policy.EQUALIZE, none),
    ]


def blur(draw: Draw, probability: float, height: int, width: int) -> list[Step]:
    """Blur some images by a Gaussian, cut off at three times the largest standard deviation."""
    draws = draw(Stream.BLUR, 2)
    low, high = _BLUR_SIGMA
    weights = gaussian(low + (high - low) * draws[:, 1:], min(_BLUR_RADIUS, height - 1, width - 1))
    return [Step.of(operations.blur, draws[:, 0] < probability, weights)]


def grayscale(draw: Draw, probability: float) -> list[Step]:
    """Remove the color of some images."""
    draws = draw(Stream.GRAYSCALE, 1)
    return [Step.of(operations.grayscale, draws[:, 0] < probability, draws[:, :0])]


def erasing(draw: Draw, probability: float, height: int, width: int) -> np.ndarray:
    """Draw rectangles to erase; a shape that does not fit is drawn again, ten times at most.

    Returns:
        int32 (N, 4): left, top, right and bottom in pixels, right and bottom excluded; empty where nothing is erased.
    """
    draws = draw(Stream.ERASING, 3 + 2 * _ERASING_ATTEMPTS)
    chosen, corner = draws[:, 0] < probability, draws[:, 1:3]
    shapes = draws[:, 3:].reshape(-1, _ERASING_ATTEMPTS, 2)
    area = height * width * (_ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * shapes[:, :, 0])
    log_low, log_high = np.log(_ERASED_RATIO)
    ratio = np.exp(log_low + (log_high - log_low) * shapes[:, :, 1])
    heights, widths = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (heights < height) & (widths < width)
    attempt = fits.argmax(axis=1)[:, None]
    sides = np.concatenate([np.take_along_axis(side, attempt, axis=1) for side in (widths, heights)], axis=1)
    corners = np.floor(corner * (np.array([width, height]) - sides + 1))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    return np.where((chosen & fits.any(axis=1))[:, None], boxes, 0).astype(np.int32)
