"""A program in the terms of the engine: what a View does while decoding, and what is left for the device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from kernels.device import Color
from loaders.augment import Augmentation
from loaders.transforms.device import DeviceOperation, why_not
from loaders.transforms.geometry import (
    Affine,
    Erasing,
    HorizontalFlip,
    PaddedRandomCrop,
    RandomResizedCrop,
    Rotate90,
    Rotation,
    VerticalFlip,
)
from loaders.transforms.legality import ROTATIONS, Swap, is_nearest, swap
from loaders.transforms.planner import MOST_CHANGE, Plan, Reorder
from loaders.transforms.policies import Together
from loaders.transforms.program import Program, Untyped
from loaders.transforms.steps import Size
from loaders.transforms.types import Operation, Point, Spatial
from loaders.transforms.values import Normalize
from loaders.transforms.windows import SplitError, windows_of

_CROPS = (Spatial.RESIZED_CROP, Spatial.RESIZE, Spatial.CROP)
_CONVERSIONS = (Point.TO_FLOAT, Point.NORMALIZE)

Numbered = tuple[int, Operation]  # by its place in the program as written


@dataclass(frozen=True)
class EngineSplit:
    """What loaders and device do of a program.

    Attributes:
        augmentation: the windows and flips that a loader does, and the operations of the device in their order;
            everything else is off.
        resolution: side of the images, pixels.
        mean, std: of the normalization: 0 and 1 where the program converts without it, None where it does neither.
        swap: what this differs in from the program as written, at worst; decoding and resizing apart.
        decoded: names of what the loader does.
        converted: names of what conversion and normalization do at the end.
        order: numbers of all operations, as written, in the order in which they are done.
        notes: what is done otherwise than the program says, in words.
    """

    augmentation: Augmentation
    resolution: int
    mean: Color | None
    std: Color | None
    swap: Swap
    decoded: tuple[str, ...]
    converted: tuple[str, ...]
    order: tuple[int, ...]
    notes: tuple[str, ...] = ()


def split_for_engine(plan: Plan | Program, most: Swap = Swap.EXACT, image_size: Size | None = None) -> EngineSplit:
    """Split a plan into what loaders do and what the device does behind them.

    A loader cuts out one window of each image, resizes it and mirrors it. Conversion and normalization are the last on
    the device. Everything else happens there, to batches of bytes, in the plan's order. Crops and flips are drawn as
    `loaders.plan` draws them: with the program's distributions, not with its own draws. A loader's resize looks beyond
    the window as far as its filter reaches, unlike torchvision's, and centers are not rounded to whole pixels.

    Args:
        plan: of a program; or the program, for the order as written.
        most: what may change when operations change places for this.
        image_size: (height, width) of all images, where they have the same.

    Raises:
        SplitError: there is no such window, or an operation cannot be done behind it; the message says what to do.
    """
    program = plan.program if isinstance(plan, Plan) else plan
    numbers = plan.numbers if isinstance(plan, Plan) else range(len(program))
    written = list(enumerate(program.operations))
    for operation in program.operations:
        if isinstance(operation, Untyped) and operation.instead:
            raise SplitError(f"{operation.title}: {operation.instead}")
    crops = [(n, o) for n, o in written if o.spatial in _CROPS]
    try:
        windows = windows_of([operation for _, operation in crops], most, image_size)
    except SplitError as error:
        called = [o.title for o in program.operations if isinstance(o, Untyped) and o.reason]
        raise SplitError(f"{error}; {_listed(called)} only keeps their size" if called else str(error)) from error
    tail = [(n, o) for n, o in written if o.point in _CONVERSIONS]
    rest = [(n, o) for n, o in written if (n, o) not in crops + tail]
    flips = _flips_of_the_loader(rest, most)
    left = [(n, o) for n, o in rest if (n, o) not in flips]
    between = [(n, program.operations[n]) for n in numbers if (n, program.operations[n]) in left]
    if any(change > most for _, _, change in _moves(between)):
        between = left
    arranged = [*crops, *flips, *between, *tail]
    for before, after, change in _moves(arranged):
        if change > most:
            raise SplitError(_refusal(before, after, change))
    for _, operation in between:
        _check(operation, windows.resolution)
    normalize = next((o for _, o in tail if isinstance(o, Normalize)), None)
    mean, std = (normalize.mean, normalize.std) if normalize else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return EngineSplit(
        Augmentation(
            crop=windows.crop,
            scale=windows.scale,
            ratio=windows.ratio,
            crop_fraction=windows.crop_fraction,
            flip=flips[0][1].probability if flips else 0.0,
            operations=tuple(DeviceOperation(operation, number) for number, operation in between),
        ),
        windows.resolution,
        mean if tail else None,
        std if tail else None,
        max((change for _, _, change in _moves(arranged)), default=Swap.SAME),
        tuple(operation.name for _, operation in crops + flips),
        tuple(operation.name for _, operation in tail),
        tuple(number for number, _ in arranged),
        windows.notes,
    )


def split_by_mode(plan: Plan | Program, mode: Reorder, image_size: Size | None, option: str) -> EngineSplit:
    """Split a plan, changing as little as it takes and at most what a mode allows.

    Args:
        image_size: see `split_for_engine`.
        option: how a mode is chosen, "{}" in the mode's place, for the message.

    Raises:
        SplitError: as from `split_for_engine`; it also says whether another mode would allow it.
    """
    refusal: SplitError | None = None
    for tried, most in MOST_CHANGE.items():
        if most < MOST_CHANGE[mode]:
            continue
        try:
            split = split_for_engine(plan, most, image_size)
        except SplitError as error:
            refusal = refusal or error
            continue
        if refusal is None:
            return split
        raise SplitError(f"{refusal}; or allow it by {option.format(tried)}") from refusal
    assert refusal is not None
    raise refusal


def describe(split: EngineSplit) -> list[str]:
    """Return in lines of words who does what, in order."""
    lines = [f"{_listed(split.decoded)}: by the loader, while decoding"] if split.decoded else []
    operations = [one.operation for one in split.augmentation.operations if isinstance(one, DeviceOperation)]
    for is_own, group in itertools.groupby(operations, lambda operation: isinstance(operation, Untyped)):
        names = ", ".join(map(_title, group))
        lines.append(
            f"{names}: by a call for each image in the training process, which is slow"
            if is_own
            else f"{names}: on the device, in batches"
        )
    if split.converted:
        lines.append(f"{', '.join(split.converted)}: on the device, in one pass")
    return lines + [f"note: {note}" for note in split.notes]


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _flips_of_the_loader(rest: list[Numbered], most: Swap) -> list[Numbered]:
    """Return the first horizontal flip, if it may be done before all else that stands before it."""
    for place, (_, operation) in enumerate(rest):
        if isinstance(operation, HorizontalFlip):
            passes = all(_change(before, operation) <= most for _, before in rest[:place])
            return [rest[place]] if passes else []
    return []


def _moves(arranged: list[Numbered]) -> list[tuple[Operation, Operation, Swap]]:
    """Return the pairs that are done the other way round than written, in the order as written, and what it changes."""
    return [
        (before, after, _change(before, after))
        for (after_number, after), (number, before) in itertools.combinations(arranged, 2)
        if number < after_number
    ]


def _change(before: Operation, after: Operation) -> Swap:
    """Return what it changes to do ``after`` first, each being drawn for the image that it then gets.

    The device converts at the end, and rounds but once in a turn of the hue or a rotation, so these lose nothing.
    """
    if not (_is_symmetric(before, after) and _is_symmetric(after, before)):
        return Swap.NO
    if isinstance(before, Erasing) and after.spatial in _CROPS:
        return Swap.NO
    change = swap(before, after)
    converted = before.point in _CONVERSIONS and (after.point is Point.NONLINEAR or after.spatial in ROTATIONS)
    if before.spatial is Spatial.ANY and isinstance(after, HorizontalFlip):
        # What has a direction has either with the same probability.
        return Swap.APPROX if is_nearest(before) else Swap.EXACT
    return Swap.EXACT if change is Swap.APPROX and converted else change


def _is_symmetric(operation: Operation, move: Operation) -> bool:
    """Return whether what is drawn for mirrored or turned images is distributed as what is drawn, mirrored or turned.

    Args:
        move: the mirror or the turn; anything else leaves images as they are.
    """
    if not isinstance(move, HorizontalFlip | VerticalFlip | Rotate90):
        return True
    across, down = isinstance(move, HorizontalFlip), isinstance(move, VerticalFlip)
    turns = isinstance(move, Rotate90) and move.quarters % 2 == 1
    match operation:
        case Rotation(degrees=(low, high)):
            return isinstance(move, Rotate90) or low == -high
        case Affine():
            return all(low == -high for low, high in (operation.degrees, operation.shear_x, operation.shear_y))
        case Together(operations=operations):
            return all(_is_symmetric(one, move) for one in operations)
        case Rotate90(quarters=quarters):
            return isinstance(move, Rotate90) or quarters % 2 == 0
        case PaddedRandomCrop(padding=(left, top, right, bottom)):
            return (down or left == right) and (across or top == bottom) and not (turns and left != top)
        case RandomResizedCrop(ratio=(low, high)) | Erasing(ratio=(low, high)):
            return not turns or abs(low * high - 1) < 1e-3
    return True


def _refusal(before: Operation, after: Operation, change: Swap) -> str:
    """Return why ``after`` cannot be done first, and what can be done about it."""
    if after.spatial in _CROPS:
        stands = f"{_title(before)} stands before {after.name}, which loaders do first, while they decode"
        if isinstance(before, Untyped):
            return (
                f"{stands}; {_unknown(before)}: put it behind {after.name}, where it gets a tensor of "
                "uint8 (3, H, W), or leave it out if it converts to RGB, which images are"
            )
        if isinstance(before, PaddedRandomCrop):
            return f"{stands}: put it behind {after.name}, its size and padding in pixels of what comes out there"
        return f"{stands}, and cannot be moved behind it, {_WHY[change]}: put it there if you mean that"
    if before.point in _CONVERSIONS:
        stands = f"{_title(after)} stands behind {before.name}, which the device does last"
        if isinstance(after, Untyped):
            return f"{stands}; {_unknown(after)}: put it before ToTensor, where it gets a tensor of uint8 (3, H, W)"
        return f"{stands}, and cannot be moved before it, {_WHY[change]}: put it before ToTensor if you mean that"
    return f"{_title(after)} stands behind {_title(before)} and cannot be moved before it, {_WHY[change]}"


def _title(operation: Operation) -> str:
    return operation.title if isinstance(operation, Untyped) else operation.name


def _unknown(operation: Untyped) -> str:
    return "it is called as it is" if operation.reason else "nothing is known of what it does"


_WHY = {
    Swap.EXACT: "where no order may change",
    Swap.APPROX: "as that would change pixels visibly",
    Swap.NO: "as that is another program",
}


def _check(operation: Operation, resolution: int) -> None:
    """Raise a SplitError if the device cannot do an operation to the images that it gets."""
    problem = why_not(operation)
    if problem is not None:
        raise SplitError(f"{operation.name} {problem}")
    if isinstance(operation, PaddedRandomCrop) and operation.size != (resolution, resolution):
        height, width = operation.size
        raise SplitError(
            f"{operation.name} makes {width} x {height} pixels of {resolution} x {resolution}; with padding, images "
            f"can only be moved within their size: resize to {width} x {height} before it"
        )
