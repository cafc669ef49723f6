"""The order that costs least among those that change no more than allowed.

Between two of the user's own functions, every legal order is priced where there are few. Where there are many, the
order follows the rank (ratio - 1) / cost for each byte of input, ascending, which is optimal for operations that all
commute and whose costs are proportional to the bytes they take: of two neighbors, the one that shrinks more for its
cost goes first. Then single operations are moved as long as that lowers the price.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from loaders.transforms.cost import Costs, Form
from loaders.transforms.fusion import fuse
from loaders.transforms.legality import Swap, classify, swap, tolerance
from loaders.transforms.program import Program, Untyped
from loaders.transforms.steps import Size, reorder
from loaders.transforms.types import Operation

Reorder = Literal["exact", "approx", "off"]
Order = tuple[int, ...]

MOST_ORDERS = 1000  # that are priced; more are left to the rank
MOST_CHANGE: dict[Reorder, Swap] = {"off": Swap.SAME, "exact": Swap.EXACT, "approx": Swap.APPROX}
TYPICAL_SIZE: Size = (375, 500)  # of a photo


@dataclass(frozen=True)
class Plan:
    """A program and the order to do it in.

    Attributes:
        orders: for each segment of the program, the numbers of its operations in order, counted from its first.
        swap: what the order changes.
        tolerance: levels by which a pixel can differ at most from the program as written, for EXACT orders, unless a
            function of the user's enlarges differences.
        cost_before, cost_after: predicted CPU time for an image of ``size``, in milliseconds.
    """

    program: Program
    backend: str
    orders: tuple[Order, ...]
    swap: Swap
    tolerance: float
    size: Size
    cost_before: float
    cost_after: float

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations in the plan's order."""
        return tuple(self.program.operations[number] for number in self.numbers)

    @property
    def numbers(self) -> Order:
        """The operations' numbers in the program as written, in the plan's order."""
        segments = zip(self.program.segments(), self.orders, strict=True)
        return tuple(segment.start + number for segment, order in segments for number in order)


def plan(
    program: Program,
    costs: Costs,
    size: Size = TYPICAL_SIZE,
    backend: str = "torchvision",
    mode: Reorder = "exact",
    chosen: Sequence[Order] | None = None,
) -> Plan:
    """Choose the order of a program.

    Args:
        costs: of this machine.
        size: of a typical image.
        backend: of ``loaders.transforms.apply.BACKENDS``.
        mode: ``exact`` allows what changes nothing beyond rounding, ``approx`` also what changes pixels at edges and
            where values clip, ``off`` nothing.
        chosen: the orders, where they were chosen before; None to choose them.
    """
    orders: list[Order] = []
    worst, error = Swap.SAME, 0.0
    before = after = 0.0
    form, at = Form(), size
    for place, segment in enumerate(program.segments()):
        operations = [program.operations[number] for number in segment]
        written = tuple(range(len(operations)))
        price = Pricing(operations, costs, at, backend, form)
        later = program.operations[segment.stop :]
        rounds = mode == "approx" or not any(operation.has_jumps for operation in later)
        if chosen is not None:
            best = chosen[place]
        else:
            best = written if mode == "off" else cheapest(operations, price, MOST_CHANGE[mode] if rounds else Swap.SAME)
        orders.append(best)
        worst = max(worst, classify(operations, best, backend))
        error = error * math.prod(operation.gain for operation in operations) + tolerance(operations, best, backend)
        before, after = before + price(written), after + price(best)
        form = price.leaves(best)
        for operation in operations:
            at = operation.typical(at).output_size(at)
    return Plan(program, backend, tuple(orders), worst, error, size, before, after)


def ordered(program: Program, order: Order, costs: Costs, size: Size, backend: str) -> Plan:
    """Return the plan with a given order, whatever its class, of a program without untyped functions."""
    price = Pricing(program.operations, costs, size, backend)
    operations = program.operations
    written = tuple(range(len(operations)))
    class_ = classify(operations, order, backend)
    return Plan(
        program, backend, (order,), class_, tolerance(operations, order, backend), size, price(written), price(order)
    )


class Pricing:
    """The predicted cost of a segment's orders, each operation with typical parameters.

    Args:
        operations: of the segment.
        size: of the image as it comes to them.
        form: of that image.
    """

    def __init__(
        self, operations: Sequence[Operation], costs: Costs, size: Size, backend: str, form: Form | None = None
    ) -> None:
        self.operations = operations
        self.costs, self.size, self.backend, self.form = costs, size, backend, form or Form()
        drawn, at = [], size
        for operation in operations:
            drawn.append(operation.typical(at))
            at = drawn[-1].output_size(at)
        self.drawn = tuple(drawn)

    def __call__(self, order: Order, without: int = 0) -> float:
        """Return the CPU time of an order in milliseconds; a random operation counts as often as it happens.

        Args:
            order: of all operations.
            without: how many of the last are left out.
        """
        return self._follow(order, without)[0]

    def leaves(self, order: Order) -> Form:
        """Return the form of the image behind all operations."""
        return self._follow(order)[1]

    def _follow(self, order: Order, without: int = 0) -> tuple[float, Form]:
        size, form, total = self.size, self.form, 0.0
        arranged = reorder(self.drawn, order, size)[: len(order) - without]
        chances = {id(step): self.operations[n].probability for n, step in zip(order, arranged, strict=False)}
        for step in fuse(arranged, size, self.backend, form.is_float):  # what is fused is new, and always done
            total += chances.get(id(step), 1.0) * self.costs.of(step, size, self.backend, form)
            size, form = step.output_size(size), self.costs.leaves(step, self.backend, form)
        return total, form

    def rank(self, number: int, size: Size, form: Form) -> float:
        """Return (ratio - 1) / cost for each byte of an operation that takes an image of this size."""
        step = self.drawn[number]
        height, width = step.output_size(size)
        made = 4 if step.makes_float and not form.is_float else 1
        ratio = made * height * width / (size[0] * size[1])
        cost = self.costs.of(step, size, self.backend, form) * self.operations[number].probability
        taken = size[0] * size[1] * (12 if form.is_float else 3)
        return (ratio - 1) * taken / max(cost, 1e-9)


def legal_orders(operations: Sequence[Operation], most: Swap, backend: str) -> Iterator[Order]:
    """Yield the orders that change no more than allowed, the one as written first.

    Args:
        operations: without untyped functions, or one such function alone.
        most: what may change at most.
    """
    return (order for order in _candidates(operations, most) if classify(operations, order, backend) <= most)


def _candidates(operations: Sequence[Operation], most: Swap) -> Iterator[Order]:
    """Yield all legal orders, the one as written first, and few others.

    Orders that would be illegal whatever follows are left off where they begin, so that the first of many come at once.
    """
    count = len(operations)
    changes = {pair: swap(*(operations[n] for n in pair)) for pair in itertools.combinations(range(count), 2)}
    after = [{later for later in range(count) if changes.get((number, later), most) > most} for number in range(count)]
    jumps = [number for number, operation in enumerate(operations) if operation.has_jumps]
    # What rounds otherwise changes places behind jumps alone; see `classify`.
    rounding = (
        [pair for pair, change in changes.items() if change is Swap.EXACT] if jumps and most is Swap.EXACT else []
    )
    for _ in rounding:  # as each of them may keep others in place
        follow = _closure(after)
        for number, later in rounding:
            if any(jump > later or (jump != later and jump in follow[number]) for jump in jumps):
                after[number].add(later)

    def extend(done: Order, left: tuple[int, ...]) -> Iterator[Order]:
        if not left:
            yield done
        for number in left:
            others = tuple(other for other in left if other != number)
            if any(number in after[other] for other in others):
                continue
            if any((number, other) in rounding for other in done) and any(jump in others for jump in jumps):
                continue
            yield from extend((*done, number), others)

    return extend((), tuple(range(count)))


def _closure(after: Sequence[set[int]]) -> list[set[int]]:
    """Return for each number all that come after it, and after those."""
    found: list[set[int]] = [set() for _ in after]
    for number in reversed(range(len(after))):  # what comes after has a larger number
        found[number] = set().union(after[number], *(found[later] for later in after[number]))
    return found


def cheapest(operations: Sequence[Operation], price: Pricing, most: Swap) -> Order:
    """Return the legal order that costs least; the one as written where none is cheaper by a hundredth."""
    written = tuple(range(len(operations)))
    if len(operations) < 2 or isinstance(operations[0], Untyped):
        return written
    orders = list(itertools.islice(_candidates(operations, most), MOST_ORDERS + 1))
    if len(orders) > MOST_ORDERS:
        orders = [improved(by_rank(operations, price, most), operations, price, most)]
    orders = [order for order in orders if classify(operations, order, price.backend) <= most]
    best = min(orders, key=price)
    return best if price(best) < 0.99 * price(written) else written


def by_rank(operations: Sequence[Operation], price: Pricing, most: Swap) -> Order:
    """Return an order in which no two neighbors that may change places are out of the order of their ranks."""
    order = list(range(len(operations)))
    for _ in range(len(order) ** 2):
        size, form, moved = price.size, price.form, False
        for place in range(len(order) - 1):
            first, second = order[place : place + 2]
            exchanged = (*order[:place], second, first, *order[place + 2 :])
            if classify(operations, exchanged, price.backend) <= most and (
                price.rank(second, size, form) < price.rank(first, size, form)
            ):
                order[place : place + 2] = second, first
                moved = True
            step = price.drawn[order[place]]
            size, form = step.output_size(size), price.costs.leaves(step, price.backend, form)
        if not moved:
            break
    return tuple(order)


def improved(order: Order, operations: Sequence[Operation], price: Pricing, most: Swap) -> Order:
    """Return an order from which moving no single operation to another place, as far as legal, is cheaper."""
    best, cost = order, price(order)
    while True:
        moved = [
            (*left[:place], number, *left[place:])
            for number in best
            for left in [tuple(other for other in best if other != number)]
            for place in range(len(best))
        ]
        legal = [one for one in dict.fromkeys(moved) if classify(operations, one, price.backend) <= most]
        cheapest_move = min(legal, key=price)
        if not price(cheapest_move) < cost:
            return best
        best, cost = cheapest_move, price(cheapest_move)
