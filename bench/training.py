"""Whole training runs: what loaders cost a model, what size schedules bring, what the engine's loop costs.

    python bench/training.py --experiment stall --loaders torch,dali,roi --resolutions 96
    python bench/training.py --experiment schedules --schedules 96 64,96 64,80,96 --seeds 0,1,2 --output DIR
    python bench/training.py --experiment loop --resolutions 64,96

``stall`` trains on synthetic images and on those of each loader, in turns, and compares the rates. ``schedules`` trains
at a fixed size and through schedules of sizes, at equal epochs and at equal time, over several seeds, and compares
accuracy and the time to an accuracy. ``loop`` compares the engine's loop with a bare PyTorch loop, as
bench/training_loop.py does, which has more options for it.

Each run is one of ``python -m engine.train`` in a process of its own. With ``--output`` the runs are kept, and a
command that is repeated there makes only those that are missing.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/training.py`

from bench import training_loop, training_schedules, training_stall
from bench.charts import Bar, bar_chart
from bench.measure import FOREIGN_CPU_LIMIT, CellError, write_records
from bench.options import add_measuring, add_reports, command_line, listed, not_negative, positive, shown_command
from bench.page import Section, write_page
from bench.resources import describe_machine
from bench.tables import Sheet, write_csv
from bench.training_runs import Outcome, Run, RunError, Runner
from bench.variants import USUAL_LOADERS, why_missing
from engine.command import load_config
from engine.model import auto_model
from engine.values import ConfigError, Target, parse_target
from loaders.contract import LoaderError

_INSTALLED = "installed"
_USUAL_SCHEDULES = ((96,), (64, 96), (64, 80, 96))
_WIDTH = 120  # columns of what is printed into a file


@dataclass(frozen=True)
class Report:
    """What an experiment has found so far."""

    sheets: Sequence[Sheet]
    records: Sequence[dict[str, Any]]
    section: Section
    legend: str


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
        save(Report(training_stall.sheets(results), records, section, training_stall.legend()))

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
        save(Report(training_schedules.sheets(found), records, section, training_schedules.legend()))

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


def loop(options: argparse.Namespace, runner: Runner, save: Save) -> None:
    """Compare the engine's loop with a bare one at each size."""
    results: list[training_loop.Result] = []
    for resolution in options.resolutions:
        work = training_loop.Work(options.model, resolution, options.batch_size, options.amp, options.device)
        results += training_loop.compare(work, options.rounds, options.seconds)
        sheets = training_loop.sheets(results)
        rates = [
            Bar(result.loop, result.measurement.images_per_second, number % 2, f"{result.work.resolution} px")
            for number, result in enumerate(results)
        ]
        chart = bar_chart(rates, title="Images per second of both loops", unit="images/s")
        section = Section("The training loop", (), [("Images per second on synthetic images", chart)], sheets)
        records = [{"experiment": "loop", **result.record(runner.machine)} for result in results]
        save(Report(sheets, records, section, ""))


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
    add("--data", default="demo", help="a folder, demo, or a known data set's name")
    add("--model", help="network; without it the one that engine.train takes for the largest size")
    add("--batch-size", type=positive, default=64, help="images of a batch")
    add("--amp", choices=("auto", "bf16", "fp16", "off"), default="auto", help="number format")
    add("--limit-train", type=not_negative, default=0, help="use so many training images, drawn by the seed; 0: all")
    add("--limit-val", type=not_negative, default=0, help="use so many validation images, drawn by the seed; 0: all")
    add("--threads", type=not_negative, default=0, help="threads of PyTorch on the CPU; 0: by the cores")
    add("--num-workers", type=not_negative, help="processes or threads of a loader; without it by the cores")
    add("--options", type=shlex.split, default="", help="further options of engine.train, in one pair of quotes")
    add(
        "--loaders",
        type=listed(str, [*USUAL_LOADERS, _INSTALLED]),
        default=_INSTALLED,
        help=f"stall: of {', '.join(USUAL_LOADERS)}; {_INSTALLED}: those that are. schedules: the first of them",
    )
    add("--resolutions", type=listed(positive), default="96", help="stall, loop: sides of the images, pixels")
    add("--stall-epochs", type=positive, default=3, help="stall: epochs of a run; the first does not count")
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
    add("--output", type=Path, metavar="DIR", help="keep the runs here, and go on with those that are there")
    add_measuring(parser)
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("training", argv)
    usual = [name for name in USUAL_LOADERS if not why_missing(name)]
    named = [usual if name == _INSTALLED else [name] for name in options.loaders]
    options.loaders = list(dict.fromkeys(chain(*named)))
    options.schedules = list(dict.fromkeys(options.schedules or _USUAL_SCHEDULES))
    options.resolutions, options.seeds = list(dict.fromkeys(options.resolutions)), list(dict.fromkeys(options.seeds))
    largest = max([*options.resolutions, *chain(*options.schedules)])
    options.model = options.model or auto_model(largest, torch.device(options.device))
    options.arguments = engine_arguments(options)
    return options


def engine_arguments(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the options of engine.train that all runs have."""
    folder = Path(options.data).expanduser()
    workers = "auto" if options.num_workers is None else str(options.num_workers)
    named = {
        "model": options.model,
        "batch-size": options.batch_size,
        "amp": options.amp,
        "limit-train": options.limit_train,
        "limit-val": options.limit_val,
        "threads": options.threads,
        "num-workers": workers,
        "device": options.device,
    }
    pairs = chain(*((f"--{name}", str(value)) for name, value in named.items()))
    return (str(folder.resolve()) if folder.is_dir() else options.data, *pairs, *options.options)


def check(options: argparse.Namespace) -> None:
    """Refuse what engine.train would refuse, before the first run.

    Raises:
        ConfigError: the message says what to change.
    """
    fixed = [(resolution,) for resolution in options.resolutions] if "stall" in options.experiment else []
    schedules = options.schedules if "schedules" in options.experiment else []
    for sizes in dict.fromkeys([*fixed, *schedules]):
        load_config([*options.arguments, "--resolutions", training_schedules.name_of(sizes)])


def run(options: argparse.Namespace) -> list[Report]:
    """Make the experiments that the command line asks for, writing the files as results come in.

    Raises:
        ConfigError: engine.train refuses the options.
        RunError: a run failed.
        CellError: a loop failed.
    """
    check(options)
    reports: dict[str, Report] = {}
    machine = describe_machine()
    with ExitStack() as stack:
        root = options.output or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-training-")))
        runner = Runner(root.expanduser().resolve(), machine)
        for name in options.experiment:

            def save(report: Report, name: str = name) -> None:
                reports[name] = report
                _write(options, list(reports.values()), machine)

            EXPERIMENTS[name](options, runner, save)
    return list(reports.values())


def _write(options: argparse.Namespace, reports: Sequence[Report], machine: str) -> None:
    records = [record for report in reports for record in report.records]
    if options.json:
        write_records(options.json, records)
    if options.csv:
        write_csv(options.csv, records)
    if options.html:
        sections = [report.section for report in reports]
        notes = [*(report.legend for report in reports), disturbance(records)]
        write_page(options.html, "Whole training runs", options.command, machine, sections, notes)


def disturbance(records: Sequence[dict[str, Any]]) -> str:
    """Return a sentence on runs beside which other processes took the CPU; empty where there were none."""
    disturbed = sum(record["disturbed_rounds"] for record in records)
    if not disturbed:
        return ""
    return (
        f"*: beside {disturbed} runs or turns other processes took more than {FOREIGN_CPU_LIMIT:.0%} of the machine: "
        "seconds are too many there, and rates too low."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs, print the tables, write the files; return the exit code."""
    options = parse(argv)
    try:
        reports = run(options)
    except (CellError, ConfigError, LoaderError, OSError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = f"; finished runs are kept in {options.output}" if options.output else ""
        print(f"stopped{kept}", file=sys.stderr)
        return 130
    tables = [sheet.terminal() for report in reports for sheet in report.sheets]
    sentences = [sentence for report in reports for sentence in report.section.sentences]
    legends = [report.legend for report in reports if report.legend]
    records = [record for report in reports for record in report.records]
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(
        *tables, *sentences, *legends, disturbance(records), describe_machine(), sep="\n", highlight=False
    )
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the run under way is ended too
    sys.exit(main())
