"""A plan in words: before and after, what was moved, what it saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loaders.transforms.cost import Costs
from loaders.transforms.legality import Swap
from loaders.transforms.planner import Plan, Pricing
from loaders.transforms.types import Operation, Point, Spatial

_CLASSES = {
    Swap.SAME: "the same result to the bit",
    Swap.EXACT: "the same result but for rounding",
    Swap.APPROX: "pixels differ at edges or where values clip",
    Swap.NO: "another program",
}


@dataclass(frozen=True)
class Measured:
    """What was measured of a plan on some images.

    Attributes:
        before, after: CPU time of one image, in milliseconds, as written and as planned.
        images: how many.
        mean, largest: difference of pixels between the two, in levels of 255; None where the sizes differ.
    """

    before: float
    after: float
    images: int
    mean: float | None
    largest: float | None


def explain(
    plan: Plan,
    costs: Costs | None = None,
    measured: Measured | None = None,
    on_device: Sequence[int] | None = None,
) -> str:
    """Return some lines on a plan.

    Args:
        costs: of this machine, to say what a move to the device leaves; None leaves that out.
        measured: on images, of the order as written and the plan's.
        on_device: numbers, as written, of what is done on the device at the end; None to say what could be done there
            and while decoding.
    """
    written, arranged = plan.program.operations, plan.operations
    lines = [f"before: {_line(written)}", f"after:  {_line(arranged)}"]
    moved = moves(plan)
    change = f"{plan.cost_before:.2f} -> {plan.cost_after:.2f} cpu-ms predicted"
    if measured is not None:
        change += f", {measured.before:.2f} -> {measured.after:.2f} measured"
    lines.append(f"{'; '.join(moved) if moved else 'nothing moved'}: {change}")
    numbers = plan.numbers
    tail = numbers[len(numbers) - len(device_tail(arranged)) :] if on_device is None else tuple(on_device)
    if tail and costs is not None:
        order = (*(number for number in numbers if number not in tail), *tail)
        left = Pricing(written, costs, plan.size, plan.backend)(order, without=len(tail))
        names = _listed([written[number].name for number in tail]) + " can be" * (on_device is None)
        lines.append(f"{names} moved to the device: {plan.cost_after:.2f} -> {left:.2f} cpu-ms predicted")
    if plan.swap is Swap.EXACT:
        lines.append(f"{_CLASSES[plan.swap]}: at most {plan.tolerance:.1f} levels of 255")
    elif moved:
        lines.append(_CLASSES[plan.swap])
    if measured is not None and measured.mean is not None and plan.swap > Swap.SAME:
        counted = f"{measured.images} image" + "s" * (measured.images != 1)
        lines.append(f"measured on {counted}: mean {measured.mean:.1f}, largest {measured.largest:.0f} of 255")
    if on_device is None:
        lines += fusions(arranged)
    return "\n".join(lines)


def moves(plan: Plan) -> list[str]:
    """Return what moved behind what: of all that an operation let pass, the last."""
    numbers, operations = plan.numbers, plan.program.operations
    behind: dict[int, list[str]] = {}
    for place, number in enumerate(numbers):
        passed = [other for other in numbers[:place] if other > number]
        if passed:
            behind.setdefault(passed[-1], []).append(operations[number].name)
    return [f"{_listed(names)} moved after {operations[number].name}" for number, names in behind.items()]


def device_tail(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """Return the conversion and normalization at the end, which a device does while it changes the layout."""
    start = len(operations)
    while start and operations[start - 1].point in (Point.TO_FLOAT, Point.NORMALIZE):
        start -= 1
    return operations[start:]


def fusions(operations: tuple[Operation, ...]) -> list[str]:
    """Return what loaders that decode by themselves can do together."""
    said = []
    for first, second in zip(operations, (*operations[1:], None), strict=True):
        if first.spatial is Spatial.RESIZED_CROP and first is operations[0]:
            said.append(f"{first.name} can be done while decoding: window and scale")
        if second is None:
            continue
        if first.spatial is Spatial.RESIZE and second.spatial is Spatial.CROP:
            said.append(f"{first.name} and {second.name} are one resize of a window with fractions")
        if first.spatial in (Spatial.RESIZE, Spatial.RESIZED_CROP) and second.spatial is Spatial.PERMUTE:
            said.append(f"{second.name} can be done while {first.name} writes")
    return said


def _line(operations: tuple[Operation, ...]) -> str:
    return " -> ".join(operation.name for operation in operations) or "nothing"


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
