"""What the order of transforms costs and changes: every legal order of a list, and the common illegal ones.

    python bench/transform_order.py --data DIR --case default,blur-resize,geometry,jitter --html orders.html
    python bench/transform_order.py --data DIR --check 200

Photos are decoded beforehand; a turn does one order to all of them in one thread, by Pillow, by torchvision's tensors,
by our own kernels and, where it can express the list, by DALI on the CPU. Random parameters are drawn for each photo
before anything is reordered, so all orders do the same work. Beside each measurement stands what the planner predicts,
and by how much the pixels differ from those of the order as written. ``--check`` holds the planner's choice against all
legal orders of random lists, and fails where a result leaves its class.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/transform_order.py`

from bench import transform_check, transform_dali
from bench.measure import Spread, write_records
from bench.options import command_line, listed, positive
from bench.resources import describe_machine
from bench.tables import Sheet
from bench.transform_cases import CASES, Case, in_short, orders_of
from bench.transform_measure import Contender, Photos, Timing, difference, measure_in_turns, planned, read_photos
from bench.transform_report import Bar, Chart, Page, Pictures, write_page
from loaders.opening import DataError, open_data
from loaders.transforms.apply import BACKENDS, machine_costs
from loaders.transforms.cost import Costs
from loaders.transforms.legality import Swap
from loaders.transforms.planner import Plan
from loaders.transforms.steps import Size

MEASURED = (*BACKENDS, "dali")
HEADINGS = ("order", "class", "cpu-ms", "predicted", "images/s", "max diff", "mean diff")
_WIDTH = 150  # columns that the tables need
_LABELS = {Swap.SAME: "same", Swap.EXACT: "exact", Swap.APPROX: "approx", Swap.NO: "illegal"}


@dataclass(frozen=True)
class Result:
    """One order's figures.

    Attributes:
        backend: of MEASURED.
        chosen: this is the order that the planner chooses.
        difference: largest and mean difference from the order as written, by the same backend, in levels; None where
            the sizes differ.
        sample: what becomes of the first photo, in levels, float32 (H, W, 3).
    """

    case: str
    backend: str
    plan: Plan
    chosen: bool
    timing: Timing
    difference: tuple[float, float] | None
    sample: np.ndarray

    @property
    def order(self) -> str:
        return in_short(self.plan)

    @property
    def label(self) -> str:
        """The class, or that this is the order as written."""
        if self.plan.numbers == tuple(range(len(self.plan.program))):
            return "as written"
        return _LABELS[self.plan.swap]

    @property
    def predicted(self) -> float | None:
        """CPU time per image, in milliseconds; none for DALI, which has no planner."""
        return None if self.backend == "dali" else self.plan.cost_after

    def record(self, machine: str) -> dict[str, Any]:
        """Return the record of the JSON file."""
        return {
            "case": self.case,
            "backend": self.backend,
            "order": [operation.name for operation in self.plan.operations],
            "class": self.label,
            "planned": self.chosen,
            "cpu_ms_per_image": asdict(self.timing.cpu_ms),
            "predicted_cpu_ms": self.predicted,
            "images_per_second": asdict(self.timing.images_per_second),
            "max_difference": self.difference[0] if self.difference else None,
            "mean_difference": self.difference[1] if self.difference else None,
            "tolerance": self.plan.tolerance if self.plan.swap <= Swap.EXACT else None,
            "machine": machine,
        }


def mean_size(photos: Photos) -> Size:
    """Return the mean (height, width)."""
    height, width = np.mean([photo.shape[:2] for photo in photos], axis=0)
    return round(float(height)), round(float(width))


def measure_case(
    name: str, backends: Sequence[str], photos: Photos, costs: Costs, rounds: int, most_orders: int
) -> tuple[list[Result], list[str]]:
    """Measure the orders of a case, all backends in turns.

    Returns:
        The results, and why backends were left out.
    """
    case = CASES[name]
    left_out: list[str] = []
    cells: list[tuple[str, Plan, bool, Contender]] = []
    for backend in backends:
        if backend == "dali" and (reason := transform_dali.why_left_out(case.program.operations)):
            left_out.append(f"{name}: {reason}")
            continue
        make = transform_dali.contender if backend == "dali" else planned
        ours = "torchvision" if backend == "dali" else backend
        for plan, chosen in orders_of(case, costs, mean_size(photos), ours, most_orders):
            cells.append((backend, plan, chosen and backend != "dali", make(plan, photos)))
    results: list[Result] = []
    with tqdm(total=len(cells) * (rounds + 1), unit="turn", disable=None, leave=False, dynamic_ncols=True) as progress:
        compared: list[tuple[tuple[float, float] | None, np.ndarray]] = []
        for place, (backend, _, _, contender) in enumerate(cells):
            progress.set_postfix_str(f"{name}, {contender.name}"[:70])
            made = contender.results()
            if not place or cells[place - 1][0] != backend:
                reference = made  # the order as written comes first
            compared.append((difference(made, reference), made[0]))
            progress.update()
        timings = measure_in_turns([cell[-1] for cell in cells], len(photos), rounds, progress)
    for (backend, plan, chosen, _), timing, (differs, sample) in zip(cells, timings, compared, strict=True):
        results.append(Result(name, backend, plan, chosen, timing, differs, sample))
    return results, left_out


def sheets(results: Sequence[Result]) -> list[Sheet]:
    """Return a table for each case and backend."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.case, result.backend), []).append(result)
    return [
        Sheet(f"{CASES[case].title}: {backend}", HEADINGS, [_row(result) for result in group])
        for (case, backend), group in groups.items()
    ]


def _row(result: Result) -> list[str]:
    return [
        ("* " if result.chosen else "  ") + result.order,
        result.label,
        _spread(result.timing.cpu_ms, 2),
        "" if result.predicted is None else f"{result.predicted:.2f}",
        _spread(result.timing.images_per_second, 0),
        f"{result.difference[0]:.2f}" if result.difference else "size",
        f"{result.difference[1]:.3f}" if result.difference else "size",
    ]


def _spread(spread: Spread, digits: int) -> str:
    return f"{spread.median:.{digits}f} ({spread.min:.{digits}f}-{spread.max:.{digits}f})"


def legend(results: Sequence[Result]) -> str:
    """Return what the columns mean."""
    images = "DALI's pipeline holds all photos as one batch. " if any(r.backend == "dali" for r in results) else ""
    return (
        "*: the planner's choice. class: same, exact (rounding alone), approx (edges, clipping), illegal (another "
        "result).\ncpu-ms, images/s: of one thread, per image, median (smallest-largest) over the rounds; decoding is "
        f"not counted.\n{images}max, mean diff: from the order as written, in levels of 255, normalization undone."
    )


def page(results: Sequence[Result], left_out: Sequence[str]) -> Page:
    """Return the report's content."""
    charts, pictures = [], []
    for name in dict.fromkeys(result.case for result in results):
        case = CASES[name]
        for backend in MEASURED:
            group = [result for result in results if (result.case, result.backend) == (name, backend)]
            if group:
                charts.append(Chart(name, case.title, backend, [_bar(result) for result in group]))
        if case.pictures:
            pictures += _pictures(name, case, results)
    return Page(charts, pictures, [*left_out, legend(results)], describe_machine())


def _bar(result: Result) -> Bar:
    return Bar(result.order, result.label, result.chosen, result.timing.cpu_ms, result.predicted, result.difference)


def _pictures(name: str, case: Case, results: Sequence[Result]) -> list[Pictures]:
    """Return what the orders of one of our backends make of a photo: one picture for each class of results."""
    backend = next((b for b in ("torchvision", "kernels", "pillow") if any(r.backend == b for r in results)), None)
    group = [result for result in results if (result.case, result.backend) == (name, backend)]
    kept: list[Result] = []
    for result in group:
        seen = (difference([result.sample], [other.sample]) for other in kept)
        if not any(differs is not None and differs[0] <= 2 for differs in seen):
            kept.append(result)
    return (
        [Pictures(name, case.title, [(f"{one.order} ({one.label})", one.sample) for one in kept], group[0].sample)]
        if group
        else []
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line("transform_order", __doc__)
    add = parser.add_argument
    add("--data", default="demo", help="a folder, demo, or a known data set's name; its training split is read")
    add("--case", type=listed(str, list(CASES)), default=",".join(CASES), help=f"of {', '.join(CASES)}")
    add("--backends", type=listed(str, MEASURED), default=",".join(MEASURED), help=f"of {', '.join(MEASURED)}")
    add("--images", type=positive, default=32, help="photos to work on")
    add("--rounds", type=positive, default=5, help="turns of each order")
    add("--orders", type=positive, default=12, help="legal orders of a list to measure, spread over their cost")
    add("--check", type=positive, metavar="N", help="check the planner on N random lists instead")
    add("--json", type=Path, metavar="FILE", help="write the records here")
    add("--html", type=Path, metavar="FILE", help="write a report with charts and pictures here")
    options = parser.parse_args(argv)
    if options.check and options.html:
        parser.error("--check makes no report: leave --html out")
    return options


def run(options: argparse.Namespace) -> tuple[list[Result], list[str]]:
    """Measure the cases that the command line asks for, and write the files.

    Returns:
        The results, and why backends were left out.

    Raises:
        DataError: there are no photos.
    """
    photos, costs = read_photos(open_data(options.data).train, options.images), machine_costs()
    results: list[Result] = []
    left_out: list[str] = []
    for name in options.case:
        measured, reasons = measure_case(name, options.backends, photos, costs, options.rounds, options.orders)
        results += measured
        left_out += reasons
    if options.json:
        machine = describe_machine()
        write_records(options.json, [result.record(machine) for result in results])
    if options.html:
        write_page(options.html, page(results, left_out))
    return results, left_out


def run_check(options: argparse.Namespace) -> list[transform_check.Outcome]:
    """Check the planner, and write the JSON file.

    Raises:
        DataError: there are no photos.
    """
    photos = read_photos(open_data(options.data).train, options.images)
    outcomes = transform_check.run(photos, machine_costs(), options.check, options.rounds)
    if options.json:
        machine = describe_machine()
        write_records(options.json, [outcome.record(machine) for outcome in outcomes])
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the files; return the exit code: 1 if a checked result leaves its class."""
    options = parse(argv)
    console = Console(width=max(Console().width, _WIDTH))
    try:
        if options.check:
            outcomes = run_check(options)
            console.print(transform_check.summary(outcomes).terminal(), describe_machine(), sep="\n", highlight=False)
            return int(not all(outcome.stays_in_class for outcome in outcomes))
        results, left_out = run(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    tables = [sheet.terminal() for sheet in sheets(results)]
    console.print(*tables, *left_out, legend(results), describe_machine(), sep="\n", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
