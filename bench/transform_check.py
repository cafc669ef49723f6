"""The planner against every legal order of random programs: what its choice costs, whether results stay the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from bench.charts import Bar, bar_chart
from bench.measure import Spread
from bench.page import Section
from bench.reports import Report
from bench.tables import Sheet
from bench.transform_measure import Contender, Photos, difference, measure_in_turns, planned
from bench.transform_programs import random_program
from loaders.transforms.apply import BACKENDS
from loaders.transforms.cost import Costs
from loaders.transforms.legality import Swap
from loaders.transforms.planner import Plan, legal_orders, ordered, plan

MARGIN = 1.1  # of the best measured cost
AIM = 0.9  # share of the programs that are to be within it
MOST_OPERATIONS = 5
MOST_ORDERS = 24


@dataclass(frozen=True)
class Outcome:
    """What came of one program.

    Attributes:
        chosen: the planner's plan.
        orders: how many are legal.
        cheapest: of all orders, as names of operations.
        cost: CPU time per image of the plan, in milliseconds.
        written, best, worst: those of the order as written, and of the cheapest and dearest of all.
        difference: from the result as written, at most, in levels; None where the sizes differ.
    """

    chosen: Plan
    orders: int
    cheapest: tuple[str, ...]
    cost: float
    written: float
    best: float
    worst: float
    difference: float | None

    @property
    def ratio(self) -> float:
        """The plan's cost over the best."""
        return self.cost / self.best

    @property
    def stays_in_class(self) -> bool:
        return self.difference is not None and self.difference <= self.chosen.tolerance

    def record(self, machine: str) -> dict[str, Any]:
        """Return the record of the JSON file."""
        return {
            "backend": self.chosen.backend,
            "program": [operation.name for operation in self.chosen.program.operations],
            "planned": [operation.name for operation in self.chosen.operations],
            "cheapest": list(self.cheapest),
            "orders": self.orders,
            "cpu_ms_per_image": {
                "planned": self.cost,
                "written": self.written,
                "best": self.best,
                "worst": self.worst,
            },
            "ratio_to_best": self.ratio,
            "difference": self.difference,
            "tolerance": self.chosen.tolerance,
            "stays_in_class": self.stays_in_class,
            "machine": machine,
        }


def check(photos: Photos, costs: Costs, programs: int, rounds: int, seed: int = 0) -> Iterator[Outcome]:
    """Yield the outcomes of random programs, the backends in turn.

    All orders are measured to find the cheapest. That one and the plan's are then measured again, in turns of their
    own: of many times that differ by chance the least is too low.

    Args:
        photos: to measure on.
        rounds: turns of each order; the least of each order's times counts.
        seed: of the programs.
    """
    size = (
        round(float(np.mean([one.shape[0] for one in photos]))),
        round(float(np.mean([one.shape[1] for one in photos]))),
    )
    for number in range(programs):
        backend = BACKENDS[number % len(BACKENDS)]
        program = random_program(np.random.default_rng((seed, number)), MOST_OPERATIONS, MOST_ORDERS, backend)
        chosen = plan(program, costs, size, backend)
        orders = list(legal_orders(program.operations, Swap.EXACT, backend))
        contenders = [planned(ordered(program, order, costs, size, backend), photos) for order in orders]
        place, written = orders.index(chosen.numbers), orders.index(tuple(range(len(program))))
        reference = contenders[written].results()
        differs = difference(contenders[place].results(), reference)
        times = _times(contenders, photos, rounds)
        best = times.index(min(times))
        if best != place:
            times[place], times[best] = _times([contenders[place], contenders[best]], photos, rounds)
            best = min(place, best, key=times.__getitem__)
        names = tuple(program.operations[operation].name for operation in orders[best])
        yield Outcome(
            chosen, len(orders), names, times[place], times[written], times[best], max(times), differs and differs[0]
        )


def _times(contenders: Sequence[Contender], photos: Photos, rounds: int) -> list[float]:
    """Return the least CPU time of each per image, in milliseconds."""
    return [timing.cpu_ms.min for timing in measure_in_turns(contenders, len(photos), rounds)]


def summary(outcomes: Sequence[Outcome]) -> Sheet:
    """Return a row for each backend and one for all."""
    groups = {backend: [one for one in outcomes if one.chosen.backend == backend] for backend in BACKENDS}
    rows = []
    for name, group in [*groups.items(), ("all", list(outcomes))]:
        if not group:
            continue
        ratios = np.array([one.ratio for one in group])
        gains = np.array([one.written / one.cost for one in group])
        used = [one.difference / one.chosen.tolerance for one in group if one.difference is not None]
        rows.append(
            [
                name,
                str(len(group)),
                f"{(ratios <= MARGIN).mean():.0%}",
                f"{np.median(ratios):.3f} ({ratios.max():.2f})",
                f"{np.median(gains):.2f} ({gains.max():.1f})",
                f"{np.median([one.worst / one.best for one in group]):.2f}",
                f"{max(used):.0%}",
                str(sum(not one.stays_in_class for one in group)),
            ]
        )
    headings = (
        "backend",
        "programs",
        f"within {MARGIN - 1:.0%}",
        "cost / best (max)",
        "written / cost (max)",
        "worst / best",
        "of tolerance",
        "outside class",
    )
    return Sheet("The planner's order against all legal orders", headings, rows)


def by_class(outcomes: Sequence[Outcome]) -> Sheet:
    """Return how far results move, a row for each class of the orders chosen."""
    rows = []
    for swap, name in ((Swap.SAME, "same"), (Swap.EXACT, "exact")):
        group = [one for one in outcomes if one.chosen.swap is swap and one.difference is not None]
        if group:
            worst = max(group, key=lambda one: one.difference or 0.0)
            rows.append([name, str(len(group)), f"{worst.difference:.3f}", f"{worst.chosen.tolerance:.3f}"])
    return Sheet("How far the results move", ("class", "programs", "largest difference", "allowed there"), rows)


def report(outcomes: Sequence[Outcome], machine: str) -> Report:
    """Return the tables, the chart and the records."""
    sheets = [summary(outcomes), by_class(outcomes)]
    caption = "CPU time over that of the cheapest legal order: median and quartiles over the programs"
    chart = bar_chart(_bars(outcomes), title=caption, unit="times the cheapest order")
    section = Section("The planner against all legal orders", (), [(caption, chart)], sheets)
    return Report(sheets, [outcome.record(machine) for outcome in outcomes], section, legend())


def _bars(outcomes: Sequence[Outcome]) -> list[Bar]:
    bars = []
    for backend in BACKENDS:
        group = [one for one in outcomes if one.chosen.backend == backend]
        costs = {
            "the planner's": [one.ratio for one in group],
            "as written": [one.written / one.best for one in group],
            "the dearest": [one.worst / one.best for one in group],
        }
        for (name, ratios), color in zip(costs.items(), (2, 0, 7), strict=True):
            if ratios:
                lower, median, upper = (float(value) for value in np.quantile(ratios, (0.25, 0.5, 0.75)))
                bars.append(Bar(name, Spread(median, lower, upper), color, backend))
    return bars


def legend() -> str:
    """Return what the columns mean."""
    return (
        f"within {MARGIN - 1:.0%}: programs whose planned order costs at most that much more than the cheapest.\n"
        "cost / best, written / cost, worst / best: medians over the programs (the largest). Where another order than "
        "the planner's was the cheapest, these two were measured once more, in turns of their own, and that counts.\n"
        "of tolerance: the largest difference from the order as written, as a share of what its class allows.\n"
        "largest difference: in levels of 255."
    )


def run(photos: Photos, costs: Costs, programs: int, rounds: int) -> list[Outcome]:
    """Check so many programs, with a progress bar."""
    outcomes: list[Outcome] = []
    with tqdm(total=programs, unit="program", disable=None, leave=False, dynamic_ncols=True) as progress:
        for outcome in check(photos, costs, programs, rounds):
            outcomes.append(outcome)
            within = np.mean([one.ratio <= MARGIN for one in outcomes])
            progress.set_postfix_str(f"{within:.0%} within {MARGIN - 1:.0%} of the best")
            progress.update()
    return outcomes
