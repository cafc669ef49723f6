"""How many workers are enough: rate, memory and CPU time against workers and prefetch, alone and beside training.

    python bench/num_workers.py --data DIR --loaders torch,dali,roi --num-workers 0,1,2,3 --train resnet10t
    python bench/num_workers.py --data DIR --loaders torch --prefetch 1,2,4 --train off --html workers.html

Each loader delivers normalized batches to the device, alone and, with ``--train``, to a model that trains on them in
the same process, as the engine's loop does. The knee is the smallest number of workers whose median rate is within 5 %
of the best, or within the best one's spread over the rounds and 10 % of it; what it costs to have fewer or more stands
in a sentence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/num_workers.py`

from bench.measure import measure, progress_bar, turns
from bench.options import (
    add_loaders,
    add_measuring,
    add_reports,
    command_line,
    listed,
    named_loaders,
    not_negative,
    positive,
    shown_command,
)
from bench.program import run_program
from bench.reports import Report, write_reports
from bench.resources import describe_machine
from bench.throughput import long_epoch
from bench.variants import OWN_LOADERS, prepare, without_records, workers_of
from bench.worker_cells import Setting, cell
from bench.worker_results import Result, reports
from engine.model import create_model
from loaders.cores import usable_cores
from loaders.opening import open_data

LOADERS = tuple(name for name in OWN_LOADERS if name != "ffcv:raw256")  # whose prefetch depth can be chosen
ALONE = "off"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line("num_workers", __doc__)
    add = parser.add_argument
    add_loaders(parser, LOADERS)
    counts = ",".join(map(str, range(int(usable_cores()) + 2)))
    add("--num-workers", type=listed(not_negative), default=counts, help="numbers of processes or threads")
    add("--prefetch", type=listed(positive), default="2", help="batches in flight, for each worker (torch) or in all")
    add("--resolutions", type=listed(positive), default="96", help="sides of the images, pixels")
    add("--batch-size", type=positive, default=64, help="images of a batch")
    add("--train", default="resnet10t", metavar="MODEL", help=f"a model that trains; {ALONE}: measure loaders alone")
    add_measuring(parser)
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("num_workers", argv)
    options.loaders = named_loaders(options)
    return options


def settings(options: argparse.Namespace) -> list[list[Setting]]:
    """Return what is to be measured; what belongs to one loader at one resolution is measured in turns."""
    models = ["", *([options.train] if options.train != ALONE else [])]
    return [
        [
            Setting(loader, num_workers, prefetch, resolution, options.batch_size, model, options.device)
            for prefetch in sorted(set(options.prefetch))
            for num_workers in sorted({workers_of(loader, asked) for asked in options.num_workers})
        ]
        for resolution in options.resolutions
        for model in models
        for loader in options.loaders
    ]


def measured_as(options: argparse.Namespace) -> str:
    """Say which numbers of workers loaders take for others, so that these are not measured; empty where none are."""
    same: dict[tuple[str, ...], list[str]] = {}
    for loader in options.loaders:
        used = {asked: workers_of(loader, asked) for asked in sorted(set(options.num_workers))}
        replaced = tuple(f"{asked} is {number}" for asked, number in used.items() if number != asked)
        if replaced:
            same.setdefault(replaced, []).append(loader)
    return "; ".join(f"of {', '.join(loaders)} {', '.join(replaced)}" for replaced, loaders in same.items())


def run(options: argparse.Namespace) -> list[Report]:
    """Measure what the command line asks for, writing the files as results come in.

    Raises:
        ModelError: there is no such model, or it cannot take images of a resolution.
        CellError: a loader or a model failed.
        DataError, PackError, LoaderError, ImportError: there are no data, or they cannot be had in the form that a
            loader reads.
    """
    if options.train != ALONE:
        for resolution in options.resolutions:  # before anything takes long
            create_model(options.train, 2, resolution=resolution)
    data = open_data(options.data)
    dataset = long_epoch(without_records(data.train))
    folders = {name: prepare(name, data, dataset) for name in options.loaders}
    machine = describe_machine()
    groups, same = settings(options), measured_as(options)
    note = f"workers: as many as are used; {same}." if same else ""
    results: list[Result] = []
    with progress_bar(sum(turns(len(group), options.rounds) for group in groups)) as progress:
        for group in groups:
            cells = [cell(setting, dataset, folders[setting.loader]) for setting in group]
            measured = measure(cells, rounds=options.rounds, seconds=options.seconds, progress=progress)
            results += map(Result, group, measured)
            found = reports(results, machine, note)
            write_reports(options, "How many workers are enough", found, machine)
    return reports(results, machine, note)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables and what they say, write the files; return the exit code."""
    return run_program(parse(argv), run)


if __name__ == "__main__":
    sys.exit(main())
