"""A program in the terms of the loaders' plan: what a View does, and what is left for the device."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from kernels.device import Color
from loaders.plan import Crop
from loaders.transforms.geometry import CenterCrop, HorizontalFlip, RandomResizedCrop, Resize
from loaders.transforms.legality import Swap, classify, swap
from loaders.transforms.planner import Plan
from loaders.transforms.program import Untyped
from loaders.transforms.types import Operation, Point, Range, Spatial
from loaders.transforms.values import Normalize


class SplitError(ValueError):
    """A program that loaders and device cannot do between them; the message names the operation."""


@dataclass(frozen=True)
class Rest:
    """An operation that no loader does.

    Attributes:
        number: in the program as written, by which its parameters are drawn.
        place: where it is done: on the device, to batches of bytes after the loader.
    """

    operation: Operation
    number: int
    place: Literal["device"] = "device"


@dataclass(frozen=True)
class EngineSplit:
    """What a View takes (see `loaders.plan.View`), how batches are normalized, and what is done in between.

    Attributes:
        mean, std: of the normalization; None where the program has none.
        rest: in the order in which it is to be done.
        swap: what the order differs in from the program as written, at worst.
    """

    crop: Crop
    resolution: int
    scale: Range
    ratio: Range
    crop_fraction: float
    flip: float
    mean: Color | None
    std: Color | None
    rest: tuple[Rest, ...]
    swap: Swap


def split_for_engine(plan: Plan, most: Swap = Swap.EXACT) -> EngineSplit:
    """Split a plan into what loaders do and what the device does behind them.

    The loader's part is a random resized crop, or a resize of the shorter side with a centered crop, to a square, and a
    horizontal flip; conversion and normalization are the last on the device. Everything else happens there, to bytes.
    A loader's resize looks beyond the window as far as its filter reaches, unlike torchvision's.

    Args:
        plan: of a program.
        most: what may change when an operation is moved behind the crop.

    Raises:
        SplitError: there is no such crop, or an operation cannot be done behind it.
    """
    operations, numbers = plan.program.operations, plan.numbers
    ordered = [(number, operations[number]) for number in numbers]
    for _, operation in ordered:
        if isinstance(operation, Untyped):
            raise SplitError(
                f"{operation.name} is a function of your own, of which nothing is known: it cannot be done"
            )
    crops = [(n, o) for n, o in ordered if o.spatial in (Spatial.RESIZED_CROP, Spatial.RESIZE, Spatial.CROP)]
    crop, resolution, scale, ratio, fraction = _crop([operation for _, operation in crops])
    flips = [(n, o) for n, o in ordered if isinstance(o, HorizontalFlip)]
    if len(flips) > 1:
        raise SplitError("HorizontalFlip comes twice: leave one out")
    tail = [(n, o) for n, o in ordered if o.point in (Point.TO_FLOAT, Point.NORMALIZE)]
    done = {n for n, _ in crops + flips + tail}
    between = [(n, o) for n, o in ordered if n not in done]
    arranged = [*crops, *flips, *between, *tail]
    _check_moves(arranged, most)
    worst = classify(operations, [number for number, _ in arranged], plan.backend)
    if worst > most:
        jumps = next(operation.name for operation in operations if operation.point is Point.DISCONTINUOUS)
        raise SplitError(
            f"{jumps} has jumps, which show what is rounded otherwise before it: pixels would change visibly"
        )
    normalize = next((o for _, o in tail if isinstance(o, Normalize)), None)
    return EngineSplit(
        crop,
        resolution,
        scale,
        ratio,
        fraction,
        flips[0][1].probability if flips else 0.0,
        normalize.mean if normalize else None,
        normalize.std if normalize else None,
        tuple(Rest(operation, number) for number, operation in between),
        worst,
    )


def _crop(crops: list[Operation]) -> tuple[Crop, int, Range, Range, float]:
    """Return kind, resolution, scale, ratio and fraction of the loader's crop."""
    for one in crops:
        if one.probability < 1:
            raise SplitError(f"{one.name} with a probability below 1 would give images of several sizes")
        if isinstance(one, Resize | RandomResizedCrop) and one.interpolation != "bilinear":
            raise SplitError(f"{one.name} is {one.interpolation}; loaders resize bilinearly")
    match crops:
        case [RandomResizedCrop(size=(height, width)) as only]:
            _square(only.name, height, width)
            return "random-resized", height, only.scale, only.ratio, 1.0
        case [Resize(size=int(shorter)), CenterCrop(size=(height, width))] if shorter >= height:
            _square("CenterCrop", height, width)
            return "center", height, (0.25, 1.0), (3 / 4, 4 / 3), height / shorter
    names = ", ".join(one.name for one in crops) or "none"
    raise SplitError(
        f"a loader takes one RandomResizedCrop, or a Resize of the shorter side with a CenterCrop; here: {names}"
    )


def _square(name: str, height: int, width: int) -> None:
    if height != width:
        raise SplitError(f"{name} makes {width} x {height} pixels; loaders make squares")


def _check_moves(arranged: list[tuple[int, Operation]], most: Swap) -> None:
    """Raise a SplitError if bringing operations, with their numbers, into an order changes more than allowed."""
    for (later_number, later), (number, operation) in itertools.combinations(arranged, 2):
        change = swap(operation, later) if number < later_number else Swap.SAME
        if change > most:
            raise SplitError(
                f"{operation.name} stands before {later.name} and cannot be moved behind it: "
                + ("that would change pixels visibly" if change is Swap.APPROX else "that is another program")
            )
