"""Random transform programs, for checking the planner against all legal orders."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from loaders.transforms.geometry import (
    Affine,
    CenterCrop,
    Erasing,
    GaussianBlur,
    HorizontalFlip,
    PaddedRandomCrop,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate90,
    Rotation,
    VerticalFlip,
)
from loaders.transforms.legality import Swap
from loaders.transforms.planner import legal_orders
from loaders.transforms.policies import Together
from loaders.transforms.program import Program
from loaders.transforms.steps import Border, RotationInterpolation
from loaders.transforms.types import Operation, Point, Spatial
from loaders.transforms.values import (
    Brightness,
    Contrast,
    Grayscale,
    Hue,
    Invert,
    Normalize,
    Posterize,
    Saturation,
    Solarize,
    ToFloat,
)

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Draw = Callable[[float, float], float]
_MAKERS: tuple[Callable[[Draw], Operation], ...] = (
    lambda _: HorizontalFlip(),
    lambda _: VerticalFlip(),
    lambda draw: Rotate90(int(draw(1, 4))),
    lambda draw: Rotation((-draw(5, 45), draw(5, 45)), (0.5, 0.5, 0.5)),
    lambda draw: Rotation((-draw(5, 45), draw(5, 45)), (0.5, 0.5, 0.5), "nearest"),
    lambda draw: _affine(draw, "bilinear"),
    lambda draw: _affine(draw, "nearest"),
    lambda draw: _padded(draw, "constant"),
    lambda draw: _padded(draw, "reflect"),
    lambda draw: Resize(_side(draw)),
    lambda draw: Resize(_side(draw), "bicubic"),
    lambda draw: RandomResizedCrop((_side(draw), _side(draw)), (draw(0.1, 0.5), 1.0)),
    lambda draw: RandomResizedCrop((_side(draw), _side(draw)), (draw(0.1, 0.5), 1.0), interpolation="bicubic"),
    lambda draw: RandomCrop((_small(draw), _small(draw))),
    lambda draw: CenterCrop((_small(draw), _small(draw))),
    lambda draw: GaussianBlur(2 * int(draw(1, 4)) + 1),
    lambda _: Erasing(probability=1.0, fill=MEAN),
    lambda draw: Brightness((draw(0.4, 0.8), draw(0.8, 1.6))),
    lambda draw: Contrast((draw(0.4, 0.8), draw(0.8, 1.6))),
    lambda draw: Saturation((draw(0.4, 0.8), draw(0.8, 1.6))),
    lambda draw: Hue((-draw(0, 0.1), draw(0, 0.1))),
    lambda _: Grayscale(),
    lambda _: Invert(),
    lambda draw: Solarize(int(draw(64, 192)) / 255),
    lambda draw: Posterize(int(draw(2, 6))),
    lambda draw: Together((Contrast((draw(0.4, 0.8), draw(0.8, 1.6))), GaussianBlur(3)), probability=0.5),
)
_CONVERSION_CHANCE = 0.7
_NORMALIZATION_CHANCE = 0.7


def _side(draw: Draw) -> int:
    return int(draw(64, 257))


def _small(draw: Draw) -> int:
    return int(draw(32, 65))


def _affine(draw: Draw, interpolation: RotationInterpolation) -> Affine:
    return Affine(
        degrees=(-draw(0, 30), draw(0, 30)),
        translation=(draw(0, 0.3), draw(0, 0.3)),
        scale=(draw(0.7, 1.0), draw(1.0, 1.3)),
        shear_x=(-draw(0, 10), draw(0, 10)),
        fill=MEAN,
        interpolation=interpolation,
    )


def _padded(draw: Draw, border: Border) -> PaddedRandomCrop:
    left, top, right, bottom = (int(draw(0, 12)) for _ in range(4))
    return PaddedRandomCrop((_small(draw), _small(draw)), (left, top, right, bottom), border, MEAN)


def random_program(random: np.random.Generator, most_operations: int, most_orders: int, backend: str) -> Program:
    """Return a program with at least two orders up to class EXACT, and at most ``most_orders``."""
    while True:
        operations = _random_operations(random, int(random.integers(2, most_operations + 1)))
        if sum(operation.spatial in (Spatial.CROP, Spatial.PADDED_CROP) for operation in operations) > 1:
            continue  # the second might be the larger
        orders = sum(1 for _ in itertools.islice(legal_orders(operations, Swap.EXACT, backend), most_orders + 1))
        if 2 <= orders <= most_orders:
            return Program(tuple(operations))


def _random_operations(random: np.random.Generator, count: int) -> list[Operation]:
    def draw(low: float, high: float) -> float:
        return float(random.uniform(low, high))

    converts = random.random() < _CONVERSION_CHANCE
    normalizes = converts and count > 2 and random.random() < _NORMALIZATION_CHANCE
    kinds = random.choice(len(_MAKERS), count - converts - normalizes, replace=False)
    operations = [_MAKERS[kind](draw) for kind in kinds]
    if converts:
        # Behind what counts in bytes.
        first = max((n + 1 for n, one in enumerate(operations) if one.has_jumps), default=0)
        place = int(random.integers(first, len(operations) + 1))
        operations.insert(place, ToFloat())
    if normalizes:
        # Behind all that takes values from 0 to 1.
        first = 1 + max(n for n, one in enumerate(operations) if one.point is not Point.NONE)
        operations.insert(int(random.integers(first, len(operations) + 1)), Normalize(MEAN, STD))
    return operations
