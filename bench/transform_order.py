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
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/transform_order.py`

from bench import transform_check, transform_dali
from bench.options import add_reports, command_line, listed, positive, shown_command
from bench.program import run_program
from bench.reports import Report, write_reports
from bench.resources import describe_machine
from bench.transform_cases import CASES, orders_of
from bench.transform_measure import Contender, Photos, difference, measure_in_turns, planned, read_photos
from bench.transform_report import MEASURED, Result, report
from loaders.opening import open_data
from loaders.transforms.apply import machine_costs
from loaders.transforms.cost import Costs
from loaders.transforms.planner import Plan
from loaders.transforms.steps import Size


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
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("transform_order", argv)
    return options


def run(options: argparse.Namespace) -> list[Report]:
    """Measure the cases that the command line asks for, or check the planner, and write the files.

    Raises:
        DataError: there are no photos.
    """
    photos, costs, machine = (
        read_photos(open_data(options.data).train, options.images),
        machine_costs(),
        describe_machine(),
    )
    if options.check:
        found = [transform_check.report(transform_check.run(photos, costs, options.check, options.rounds), machine)]
        write_reports(options, "The planner against all legal orders", found, machine)
        return found
    found = []
    for name in options.case:
        measured, left_out = measure_case(name, options.backends, photos, costs, options.rounds, options.orders)
        found.append(report(name, measured, left_out, machine))
        write_reports(options, "What the order of transforms costs and changes", found, machine)
    return found


def leaves_class(reports: Sequence[Report]) -> bool:
    """Whether a checked program's result is not what its class of order allows."""
    return any(record.get("stays_in_class") is False for report in reports for record in report.records)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the files; return the exit code: 1 if a checked result leaves its class."""
    return run_program(parse(argv), run, leaves_class)


if __name__ == "__main__":
    sys.exit(main())
