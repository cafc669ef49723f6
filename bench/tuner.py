"""Does --num-workers auto choose well? Training with each number of workers and with the tuner's, in turns.

    python bench/tuner.py --data DIR --loaders torch,dali,roi --cores 2,1 --rounds 3 --output RUNS --html tuner.html

In one situation loading is the limit, with a model that is hardly any; in the other one the model is. Every run is one
of ``python -m engine.train`` in a process of its own, on so many cores. Those that are compared are there at the same
time and take turns, epoch by epoch. What counts are the epochs after the tuner has settled, and of fixed numbers those
between them; a round ends when each has some seconds of them. ``roi`` reads the files as they are: from a packed set it
is so quick that any model is the limit. With ``--output`` the runs are kept, and a command that is repeated there makes
only those that are missing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/tuner.py`

from bench.options import add_device, add_reports, command_line, listed, positive, seconds, shown_command
from bench.program import run_program
from bench.reports import Report, write_reports
from bench.resources import describe_machine
from bench.training_options import check_runs
from bench.training_runs import Outcome, Run, Runner, runs_folder
from bench.tuner_choices import AUTO, SITUATIONS, Case, Situation, in_turns, plan, report, results
from bench.variants import why_missing
from engine.tuner import TUNED_LOADERS
from loaders.cores import usable_cores
from loaders.registry import workers_used


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ``arguments`` are those of engine.train that all runs have."""
    usable = max(1, int(usable_cores()))
    parser = command_line("tuner", __doc__)
    parser.epilog = (
        "The runs under --output are named by all their options and the machine: whatever is finished is not repeated. "
        "After a change of the engine itself, take another folder."
    )
    add = parser.add_argument
    add("--data", default="demo", help="a folder, demo, or a known data set's name")
    add("--loaders", type=listed(str, list(TUNED_LOADERS)), help="without it those that are installed")
    add(
        "--cores",
        type=listed(positive),
        default=",".join(map(str, sorted({usable, 1}, reverse=True))),
        help="how many of the cores a run may use",
    )
    add(
        "--num-workers",
        type=listed(positive),
        help="numbers to compare with; without it 1 to the number of cores, and where loading is the limit one more "
        "for torch, as the others use no more than there are cores",
    )
    add(
        "--situations",
        type=listed(str, list(SITUATIONS)),
        default=",".join(SITUATIONS),
        help="what is the limit; the model only with the largest of --cores",
    )
    add("--fast-model", default="test_byobnet", metavar="MODEL", help="where loading is to be the limit")
    add("--fast-resolution", type=positive, default=32, help="side of its images, pixels")
    add("--slow-model", default="resnet18", metavar="MODEL", help="where the model is to be the limit")
    add("--slow-resolution", type=positive, default=64, help="side of its images, pixels")
    add("--batch-size", type=positive, default=32, help="images of a batch")
    add("--limit-train", type=positive, help="use so many training images, drawn by the seed")
    add("--options", type=shlex.split, default="", help="further options of engine.train, in one pair of quotes")
    add("--seconds", type=seconds, default=6.0, help="of training that have to count of each run")
    add("--settling", type=seconds, default=60.0, help="or of training more, though the tuner has not settled")
    add("--rounds", type=positive, default=3, help="runs of each setting")
    add("--output", type=Path, metavar="DIR", help="keep the runs here, and go on with those that are there")
    add_device(parser)
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("tuner", argv)
    options.loaders = list(dict.fromkeys(options.loaders or [n for n in TUNED_LOADERS if not why_missing(n)]))
    options.cores = sorted(set(options.cores), reverse=True)
    if options.cores[0] > usable:
        parser.error(f"there are {usable} cores to use, not {options.cores[0]}: lower --cores")
    options.arguments = engine_arguments(options)
    return options


def engine_arguments(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the options of engine.train that all runs have."""
    folder = Path(options.data).expanduser()
    named = {
        "batch-size": options.batch_size,
        "limit-train": options.limit_train or 0,
        "limit-val": options.batch_size,  # evaluation is no part of this
        "device": options.device,
        "pack": "off",
    }
    pairs = (word for name, value in named.items() for word in (f"--{name}", str(value)))
    return (str(folder.resolve()) if folder.is_dir() else options.data, *pairs, *options.options)


def cases(options: argparse.Namespace) -> list[Case]:
    """Return where the tuner is to choose."""
    models: dict[Situation, tuple[str, int]] = {
        "loading": (options.fast_model, options.fast_resolution),
        "model": (options.slow_model, options.slow_resolution),
    }
    return [
        Case(situation, *models[situation], loader, cores, _numbers(options, situation, loader, cores))
        for situation in dict.fromkeys(options.situations)
        for cores in (options.cores if situation == "loading" else options.cores[:1])
        for loader in options.loaders
    ]


def _numbers(options: argparse.Namespace, situation: Situation, loader: str, cores: int) -> tuple[int, ...]:
    """Return the numbers of workers to compare with, each as a loader on so many cores uses it."""
    asked = options.num_workers or range(1, cores + 1 + (situation == "loading"))
    return tuple(sorted({workers_used(loader, number, cores) for number in asked}))


def run(options: argparse.Namespace) -> list[Report]:
    """Make the runs, writing the files as results come in.

    Raises:
        ConfigError: engine.train refuses the options.
        DataError: there are no such data.
        RunError: a run failed.
    """
    compared = cases(options)
    cells = plan(compared, options.arguments, options.seconds, options.seconds + options.settling, options.rounds)
    check_runs(cells[case, AUTO][0].arguments for case in compared)
    machine = describe_machine()
    reports: list[Report] = []

    def save(outcomes: dict[Run, Outcome]) -> None:
        reports[:] = [report(results(cells, outcomes), machine)]
        write_reports(options, "Does --num-workers auto choose well?", reports, machine)

    with runs_folder(options.output, "tuner") as root:
        Runner(root, machine).make("tuner", in_turns(cells), save)
    return reports


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs, print the tables, write the files; return the exit code."""
    return run_program(parse(argv), run)


if __name__ == "__main__":
    sys.exit(main())
