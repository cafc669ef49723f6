"""Whole training runs: what loaders cost a model, what size schedules bring, what the engine's loop costs.

    python bench/training.py --experiment stall --loaders torch,dali,roi --resolutions 96
    python bench/training.py --experiment schedules --schedules 96 64,96 64,80,96 --seeds 0,1,2 --output DIR
    python bench/training.py --experiment loop --resolutions 64,96

``stall`` trains on synthetic images and on those of each loader, in processes that are there at the same time and take
turns epoch by epoch, and compares the rates. ``schedules`` trains at a fixed size and through schedules of sizes, at
equal epochs and at equal time, over several seeds, and compares accuracy and the time to an accuracy. ``loop`` compares
the engine's loop with a bare PyTorch loop, as bench/training_loop.py does, which has more options for it.

Each run is one of ``python -m engine.train`` in a process of its own. With ``--output`` the runs are kept, and a
command that is repeated there makes only those that are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/training.py`

from bench import training_loop, training_schedules, training_stall
from bench.options import (
    add_measuring,
    add_reports,
    command_line,
    installed_loaders,
    listed,
    not_negative,
    positive,
    shown_command,
)
from bench.program import run_program
from bench.reports import Report, write_reports
from bench.resources import describe_machine
from bench.training_options import add_engine, check_runs, engine_arguments, model_for
from bench.training_runs import Outcome, Run, Runner, oldest, runs_folder
from bench.variants import USUAL_LOADERS
from engine.values import ConfigError, Target, parse_target

_USUAL_SCHEDULES = ((96,), (64, 96), (64, 80, 96))


Save = Callable[[Report], None]


def stall(options: argparse.Namespace, runner: Runner, save: Save) -> None:
    """Train on synthetic images and on those of each loader."""
    cells = training_stall.plan(
        options.arguments, options.loaders, options.resolutions, options.rounds, options.stall_epochs
    )

    def report(outcomes: dict[Run, Outcome]) -> None:
        results = training_stall.results(cells, outcomes)
        records = [result.record(runner.machine) for result in results]
        section = training_stall.section(results)
        save(Report(training_stall.sheets(results), records, section, training_stall.legend(), _since(results)))

    runner.make("data stall", training_stall.in_turns(cells), report)


def schedules(options: argparse.Namespace, runner: Runner, save: Save) -> None:
    """Train through each schedule, at equal epochs and then at equal time."""
    largest = max(chain(*options.schedules))
    arguments = (*options.arguments, "--loader", options.loaders[0], "--val-resolution", str(largest))
    runs = {
        schedule: training_schedules.plan(arguments, schedule, options.epochs, options.seeds)
        for schedule in options.schedules
    }

    def report(found: list[training_schedules.Result]) -> None:
        records = [result.record(runner.machine) for result in found]
        section = training_schedules.section(found)
        save(Report(training_schedules.sheets(found), records, section, training_schedules.legend(), _since(found)))

    def at_equal_epochs(outcomes: dict[Run, Outcome]) -> list[training_schedules.Result]:
        return training_schedules.results("epochs", runs, outcomes, options.target)

    turns = list(zip(*runs.values(), strict=True))
    results = at_equal_epochs(runner.make("equal epochs", turns, lambda outcomes: report(at_equal_epochs(outcomes))))
    first, *others = results
    timed = {first.schedule: runs[first.schedule]}
    for result in others:
        epochs = training_schedules.epochs_in(runs[result.schedule], result.outcomes, first.seconds.mean)
        timed[result.schedule] = training_schedules.plan(arguments, result.schedule, epochs, options.seeds)

    def report_all(outcomes: dict[Run, Outcome]) -> None:
        report([*results, *training_schedules.results("time", timed, outcomes, options.target)])

    runner.make("equal time", list(zip(*timed.values(), strict=True)), report_all)


def _since(results: Iterable[training_stall.Result | training_schedules.Result]) -> date | None:
    return oldest(outcome for result in results for outcome in result.outcomes)


def loop(options: argparse.Namespace, runner: Runner, save: Save) -> None:
    """Compare the engine's loop with a bare one at each size."""
    results: list[training_loop.Result] = []
    for resolution in options.resolutions:
        work = training_loop.Work(options.model, resolution, options.batch_size, options.amp, options.device)
        results += training_loop.compare(work, options.rounds, options.seconds)
        report = training_loop.report(results, runner.machine)
        save(replace(report, records=[{"experiment": "loop", **record} for record in report.records]))


EXPERIMENTS: dict[str, Callable[[argparse.Namespace, Runner, Save], None]] = {
    "stall": stall,
    "schedules": schedules,
    "loop": loop,
}


def sizes(text: str) -> tuple[int, ...]:
    """Convert a schedule, sizes with commas between them."""
    return tuple(listed(positive)(text))


def target(text: str) -> Target:
    """Convert a target such as ``top1=90``."""
    try:
        return parse_target(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ``arguments`` are those of engine.train that all runs have."""
    parser = command_line("training", __doc__)
    parser.epilog = (
        "The runs under --output are named by all their options and the machine: whatever is finished is not repeated. "
        "After a change of the engine itself, take another folder."
    )
    add = parser.add_argument
    every = ",".join(EXPERIMENTS)
    add("--experiment", type=listed(str, list(EXPERIMENTS)), default=every, help=f"of {every}")
    add_engine(parser)
    add(
        "--loaders",
        type=listed(str, USUAL_LOADERS),
        help=f"stall: of {', '.join(USUAL_LOADERS)}; without it those that are. schedules: the first of them",
    )
    add("--resolutions", type=listed(positive), default="96", help="stall, loop: sides of the images, pixels")
    add("--stall-epochs", type=positive, default=5, help="stall: epochs of a run; the first does not count")
    add(
        "--schedules",
        type=sizes,
        nargs="+",
        metavar="N,N,...",
        help="schedules: sizes to train at, the first being what the others are compared with; without it "
        + " ".join(map(training_schedules.name_of, _USUAL_SCHEDULES)),
    )
    add("--epochs", type=positive, default=10, help="schedules: epochs of the runs at equal epochs")
    add("--seeds", type=listed(not_negative), default="0,1,2", help="schedules: a run for each")
    add("--target", type=target, help="schedules: such as top1=90; without it what the first schedule always reaches")
    add_measuring(parser)
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("training", argv)
    options.loaders = list(dict.fromkeys(options.loaders or installed_loaders()))
    options.schedules = list(dict.fromkeys(options.schedules or _USUAL_SCHEDULES))
    options.resolutions, options.seeds = list(dict.fromkeys(options.resolutions)), list(dict.fromkeys(options.seeds))
    options.model = options.model or model_for([*options.resolutions, *chain(*options.schedules)], options)
    options.arguments = engine_arguments(options)
    return options


def check(options: argparse.Namespace) -> None:
    """Refuse before the first run what engine.train would refuse; see `check_runs`."""
    fixed = [(resolution,) for resolution in options.resolutions] if "stall" in options.experiment else []
    schedules = options.schedules if "schedules" in options.experiment else []
    named = dict.fromkeys(training_schedules.name_of(sizes) for sizes in [*fixed, *schedules])
    check_runs([*options.arguments, "--resolutions", name] for name in named)


def run(options: argparse.Namespace) -> list[Report]:
    """Make the experiments that the command line asks for, writing the files as results come in.

    Raises:
        ConfigError: engine.train refuses the options.
        DataError: there are no such data.
        RunError: a run failed.
        CellError: a loop failed.
    """
    check(options)
    reports: dict[str, Report] = {}
    machine = describe_machine()
    with runs_folder(options.output, "training") as root:
        runner = Runner(root, machine)
        for name in options.experiment:

            def save(report: Report, name: str = name) -> None:
                reports[name] = report
                write_reports(options, "Whole training runs", list(reports.values()), machine)

            EXPERIMENTS[name](options, runner, save)
    return list(reports.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs, print the tables, write the files; return the exit code."""
    return run_program(parse(argv), run)


if __name__ == "__main__":
    sys.exit(main())
