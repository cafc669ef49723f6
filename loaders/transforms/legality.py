"""Which operations may change places, and what that changes.

SAME changes nothing; EXACT nothing beyond rounding; APPROX changes pixels visibly, at edges or where values clip; NO
changes what the program means. Parameters are drawn before anything moves, and boxes, angles and sizes are adapted to
what they pass (`loaders.transforms.steps.exchange`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import IntEnum

from loaders.transforms.geometry import (
    Affine,
    Erasing,
    GaussianBlur,
    PaddedRandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate90,
    Rotation,
)
from loaders.transforms.program import Untyped
from loaders.transforms.types import Operation, Point, Spatial
from loaders.transforms.values import Brightness, Contrast, Grayscale, Hue, Invert, Saturation


class Swap(IntEnum):
    """What the exchange of two operations changes; the larger, the more."""

    SAME = 0  # nothing; in floating point, the last bits
    EXACT = 1  # nothing beyond rounding
    APPROX = 2
    NO = 3


# What bytes lose in an operation, in levels: the result is rounded, or cut off as torchvision and Pillow do.
_BYTE_ERRORS: dict[type[Operation], float] = {
    Resize: 1.5,  # two passes, and weights of few bits
    RandomResizedCrop: 1.5,
    Rotation: 1.0,
    Affine: 1.0,
    GaussianBlur: 1.0,
    Brightness: 1.0,
    Contrast: 2.0,  # the mean's fraction goes, too
    Saturation: 2.0,  # the luma's fraction goes, too
    Hue: 1.5,
    Grayscale: 1.0,
    Erasing: 0.5,
    PaddedRandomCrop: 0.5,
}
_PILLOW_ERRORS: dict[type[Operation], float] = {Hue: 14.0}  # its HSV has 8 bits, the hue among them
ROTATIONS = (Spatial.ROTATE, Spatial.AFFINE)
_COLORED = (*ROTATIONS, Spatial.PADDED_CROP, Spatial.ERASE)
_FLOAT_ERROR = 0.02  # what float32 loses in any operation, in levels


def swap(first: Operation, second: Operation) -> Swap:
    """Return what it changes to do the second operation first."""
    if isinstance(first, Untyped) or isinstance(second, Untyped) or Spatial.ANY in (first.spatial, second.spatial):
        return Swap.NO
    if first.spatial is not Spatial.NONE and second.spatial is not Spatial.NONE:
        return _both_spatial(first, second)
    if first.spatial is Spatial.NONE and second.spatial is Spatial.NONE:
        return _both_pointwise(first, second)
    return _mixed(first, second) if first.spatial is not Spatial.NONE else _mixed(second, first)


def _both_spatial(first: Operation, second: Operation) -> Swap:
    kinds = {first.spatial, second.spatial}
    if kinds == {Spatial.PERMUTE}:
        return Swap.SAME
    if Spatial.PERMUTE in kinds:
        (other,) = kinds - {Spatial.PERMUTE}
        if other is Spatial.AFFINE and (isinstance(first, Rotate90) or isinstance(second, Rotate90)):
            return Swap.NO
        if is_nearest(first) or is_nearest(second):
            return Swap.APPROX  # the nearest pixel, where two are as near, is another in a mirrored image
        if any(map(_turns, (first, second))) and any(map(_overshoots, (first, second))):
            return Swap.APPROX  # what overshoots is clipped between the two passes, of which the other comes first
        return Swap.SAME if other in (Spatial.CROP, Spatial.PADDED_CROP, Spatial.ERASE) else Swap.EXACT
    if kinds == {Spatial.CROP, Spatial.ERASE}:
        return Swap.SAME
    return Swap.NO


def _turns(operation: Operation) -> bool:
    return isinstance(operation, Rotate90) and operation.quarters % 2 == 1


def _overshoots(operation: Operation) -> bool:
    """Return whether a resize makes values outside the range of those that it takes."""
    return isinstance(operation, Resize | RandomResizedCrop) and operation.interpolation != "bilinear"


def is_nearest(operation: Operation) -> bool:
    """Return whether an operation takes pixels from between others as the nearest of them is."""
    inside = getattr(operation, "operations", ())
    return getattr(operation, "interpolation", None) == "nearest" or any(map(is_nearest, inside))


def _mixed(spatial: Operation, point: Operation) -> Swap:
    """Return the class of an operation on places and one on values, which commute unless values are mixed."""
    kind = spatial.spatial
    if kind is Spatial.PERMUTE:
        return Swap.EXACT if point.uses_statistics else Swap.SAME
    if kind is Spatial.CROP or (isinstance(spatial, PaddedRandomCrop) and spatial.border == "reflect"):
        return Swap.NO if point.uses_statistics else Swap.SAME
    if point.point is Point.DISCONTINUOUS:
        return Swap.NO
    if kind in _COLORED:  # the color that they bring would have to pass the other as well
        if point.point not in (Point.TO_FLOAT, Point.NORMALIZE):
            return Swap.NO
        return Swap.APPROX if kind in ROTATIONS else Swap.EXACT  # backends blend a rotated edge differently
    if point.uses_statistics:
        return Swap.APPROX if kind is Spatial.RESIZE else Swap.NO
    if point.point is Point.NORMALIZE:
        return Swap.EXACT
    if _overshoots(spatial) or point.point in (Point.CLIPPING, Point.NONLINEAR):
        return Swap.APPROX
    return Swap.EXACT


def _both_pointwise(first: Operation, second: Operation) -> Swap:
    points = {first.point, second.point}
    if Point.NORMALIZE in points or Point.DISCONTINUOUS in points:
        return Swap.NO
    if Point.TO_FLOAT in points:
        return Swap.APPROX if Point.NONLINEAR in points else Swap.EXACT
    without_clipping = Swap.APPROX if Point.CLIPPING in points else Swap.EXACT
    types = {type(first), type(second)}
    if len(types) < 2:
        return Swap.NO
    if types <= {Brightness, Contrast, Saturation}:
        return without_clipping
    if Grayscale in types and types & {Brightness, Contrast, Invert}:
        return without_clipping
    if types == {Brightness, Hue}:
        return Swap.APPROX
    return Swap.NO


def classify(operations: Sequence[Operation], order: Sequence[int], backend: str) -> Swap:
    """Return what it changes to bring operations into another order.

    Args:
        order: the numbers of the operations, each once, in the order in which they are to be done.
        backend: that does them; some do a resize and the crop right behind it in one.
    """
    worst = Swap.SAME
    places = {number: place for place, number in enumerate(order)}
    jumps = [number for number, operation in enumerate(operations) if operation.has_jumps]
    for number, later in itertools.combinations(range(len(operations)), 2):
        if places[later] > places[number]:
            continue
        change = swap(operations[number], operations[later])
        both_before_jump = (later < jump or max(places[number], places[later]) < places[jump] for jump in jumps)
        if change is Swap.EXACT and any(both_before_jump):
            change = Swap.APPROX  # a level more or less before a jump is more behind it
        worst = max(worst, change)
    if backend != "torchvision" and _joins(operations, range(len(operations))) != _joins(operations, order):
        worst = max(worst, Swap.APPROX if jumps else Swap.EXACT)
    return worst


def _joins(operations: Sequence[Operation], order: Sequence[int]) -> set[int]:
    """Return the numbers of the crops that stand right behind a resize."""
    return {
        number
        for before, number in itertools.pairwise(order)
        if operations[before].spatial is Spatial.RESIZE and operations[number].spatial is Spatial.CROP
    }


def rounding_error(operations: Sequence[Operation], order: Sequence[int], backend: str) -> float:
    """Return a bound on what is lost to rounding in an order, in levels: 1/255 of white, normalization undone.

    What each operation loses, times what the following can make of it. Jumps do not count: orders that round otherwise
    before a jump are not of the class EXACT.
    """
    byte_errors = _BYTE_ERRORS | (_PILLOW_ERRORS if backend == "pillow" else {})
    error, is_float = 0.0, False
    for number in order:
        operation = operations[number]
        error *= operation.gain
        is_float = is_float or operation.point is Point.TO_FLOAT
        error += _FLOAT_ERROR * operation.gain if is_float else byte_errors.get(type(operation), 0.0)
    return error


def tolerance(operations: Sequence[Operation], order: Sequence[int], backend: str) -> float:
    """Return by how many levels a pixel can differ at most from the order as written, for orders of class EXACT."""
    written = range(len(operations))
    if classify(operations, order, backend) is Swap.SAME:
        return _FLOAT_ERROR
    return sum(rounding_error(operations, one, backend) for one in (written, order))
