"""Ready-made transform lists whose order matters, and which of their orders are measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from bench.transform_programs import MEAN, STD
from loaders.transforms.cost import Costs
from loaders.transforms.geometry import GaussianBlur, HorizontalFlip, RandomResizedCrop, Resize, Rotation
from loaders.transforms.legality import Swap
from loaders.transforms.planner import Order, Plan, Reorder, legal_orders, ordered, plan
from loaders.transforms.program import Program
from loaders.transforms.steps import Size
from loaders.transforms.values import Grayscale, Normalize, ToFloat, color_jitter

_SHORT = {
    "RandomResizedCrop": "crop+resize",
    "HorizontalFlip": "flip",
    "GaussianBlur": "blur",
    "ToFloat": "to float",
    "Brightness": "bright",
    "Saturation": "satur",
    "Grayscale": "gray",
}
_SCALE = (0.25, 1.0)
_FACTORS = (0.6, 1.4)


@dataclass(frozen=True)
class Case:
    """A transform list and what to look at.

    Attributes:
        title: of its table and chart.
        program: as written.
        most: the class of the orders that are called legal.
        illegal: orders that are common all the same, by the operations' numbers.
        pictures: show what the orders make of a photo.
    """

    title: str
    program: Program
    most: Swap
    illegal: tuple[Order, ...] = ()
    pictures: bool = False


CASES = {
    "default": Case(
        "ToTensor, Normalize, flip, random resized crop",
        Program((ToFloat(), Normalize(MEAN, STD), HorizontalFlip(), RandomResizedCrop((224, 224), _SCALE))),
        Swap.EXACT,
    ),
    "blur-resize": Case(
        "Blur before or after resizing",
        Program((GaussianBlur(13, (2.0, 2.0)), Resize((224, 224)), ToFloat())),
        Swap.EXACT,
        illegal=((1, 0, 2),),
        pictures=True,
    ),
    "geometry": Case(
        "Rotation, flip and random resized crop",
        Program(
            (Rotation((20.0, 30.0)), HorizontalFlip(probability=1.0), RandomResizedCrop((224, 224), (0.4, 0.6))),
        ),
        Swap.EXACT,
        illegal=((2, 0, 1), (2, 1, 0), (1, 2, 0)),
        pictures=True,
    ),
    "jitter": Case(
        "Color jitter, grayscale, random resized crop, flip",
        Program(
            (
                *color_jitter(_FACTORS, _FACTORS, _FACTORS, (-0.1, 0.1)),
                Grayscale(probability=0.2),
                RandomResizedCrop((224, 224), _SCALE),
                HorizontalFlip(),
            )
        ),
        Swap.APPROX,
        illegal=((5, 0, 1, 2, 3, 4, 6), (5, 6, 0, 1, 2, 3, 4), (4, 0, 1, 2, 3, 5, 6)),
    ),
}


def in_short(plan: Plan) -> str:
    """Return the operations in the plan's order, their names shortened."""
    return " → ".join(_SHORT.get(operation.name, operation.name.lower()) for operation in plan.operations)


def orders_of(case: Case, costs: Costs, size: Size, backend: str, most_orders: int) -> list[tuple[Plan, bool]]:
    """Return the orders to measure: the one as written, then by predicted cost, then the illegal ones.

    Args:
        most_orders: of the legal ones; where there are more, these are spread evenly over their predicted costs.

    Returns:
        Plans, and whether each is the planner's choice.
    """
    program = case.program
    mode: Reorder = "exact" if case.most <= Swap.EXACT else "approx"
    chosen = plan(program, costs, size, backend, mode).numbers
    written = tuple(range(len(program)))
    legal = [ordered(program, order, costs, size, backend) for order in _first_legal(case, backend)]
    others = sorted((one for one in legal if one.numbers not in (written, chosen)), key=lambda one: one.cost_after)
    kept = [ordered(program, order, costs, size, backend) for order in dict.fromkeys([written, chosen])]
    kept += _spread(others, most_orders - len(kept))
    kept[1:] = sorted(kept[1:], key=lambda one: one.cost_after)
    kept += [ordered(program, order, costs, size, backend) for order in case.illegal]
    return [(one, one.numbers == chosen) for one in kept]


def _first_legal(case: Case, backend: str) -> list[Order]:
    return list(itertools.islice(legal_orders(case.program.operations, case.most, backend), 2000))


def _spread(plans: Sequence[Plan], count: int) -> list[Plan]:
    """Return ``count`` of some plans, evenly spaced, the first and the last among them."""
    if len(plans) <= count:
        return list(plans)
    if count < 2:
        return list(plans[: max(count, 0)])
    return [plans[round(place * (len(plans) - 1) / (count - 1))] for place in range(count)]
