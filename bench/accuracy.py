"""Whether accuracy depends on the loader: whole training runs over loaders and seeds, alike in all else.

    python bench/accuracy.py --data DIR --loaders torch,roi --seeds 0,1,2 --model resnet10t --epochs 6 --output DIR

Loaders take turns, seed by seed. What is compared is the validation accuracy at the end of the last epoch; a loader
makes no difference where that between the means is small beside its standard error. With ``--output`` the runs are
kept, and a command that is repeated there makes only those that are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/accuracy.py`

from bench.options import (
    add_device,
    add_reports,
    command_line,
    installed_loaders,
    listed,
    not_negative,
    positive,
    shown_command,
)
from bench.page import Section
from bench.program import run_program
from bench.reports import Report, write_reports
from bench.resources import describe_machine
from bench.tables import Sheet
from bench.training_charts import Dots, dot_chart
from bench.training_curves import Statistics, difference
from bench.training_options import add_engine, check_runs, engine_arguments, model_for
from bench.training_runs import Outcome, Run, Runner, oldest, runs_folder
from bench.variants import USUAL_LOADERS

Runs = Mapping[str, Sequence[Run]]  # of each loader, one for each seed


@dataclass(frozen=True)
class Result:
    """One loader over its seeds.

    Attributes:
        loader: its name.
        outcomes: one for each seed.
        first: the accuracy of the first loader; None for that loader itself.
    """

    loader: str
    outcomes: Sequence[Outcome]
    first: Statistics | None

    @property
    def values(self) -> list[float]:
        """Validation top-1 at the end of the last epoch of each seed, percent."""
        return [float(outcome.epochs[-1]["top1"]) for outcome in self.outcomes]

    @property
    def accuracy(self) -> Statistics:
        return Statistics.of(self.values)

    @property
    def loss(self) -> Statistics:
        """Training loss of the last epoch."""
        return Statistics.of([float(outcome.epochs[-1]["train_loss"]) for outcome in self.outcomes])

    @property
    def difference(self) -> tuple[float, float | None] | None:
        """The mean's difference from the first loader's and its standard error, in points; None for that loader."""
        return difference(self.accuracy, self.first, len(self.outcomes)) if self.first else None

    def record(self, machine: str) -> dict[str, Any]:
        """Return a record of the JSON file."""
        config = self.outcomes[0].config
        difference, error = self.difference or (None, None)
        return {
            "loader": self.loader,
            "model": config.model.model,
            "epochs": len(self.outcomes[0].epochs),
            "batch_size": config.optimizer.batch_size,
            "amp": config.model.amp,
            "device": config.run.device,
            "num_workers": config.loader.num_workers,
            "threads": config.run.threads,
            "top1": asdict(self.accuracy),
            "train_loss": asdict(self.loss),
            "difference": difference,
            "standard_error": error,
            "seconds": asdict(Statistics.of([outcome.seconds for outcome in self.outcomes])),
            "seeds": [outcome.config.run.seed for outcome in self.outcomes],
            "rounds": self.values,
            "machine": machine,
        }


def plan(options: argparse.Namespace) -> Runs:
    """Return the runs to make."""
    sizes = ",".join(map(str, options.resolutions))

    def run(loader: str, seed: int) -> Run:
        given = ("--loader", loader, "--resolutions", sizes, "--epochs", str(options.epochs), "--seed", str(seed))
        return Run(f"{loader}, seed {seed}", (*options.arguments, *given), options.epochs)

    return {loader: [run(loader, seed) for seed in options.seeds] for loader in options.loaders}


def results(runs: Runs, outcomes: Mapping[Run, Outcome]) -> list[Result]:
    """Return a result for each loader, of the seeds that all loaders have done."""
    done = {loader: [outcomes[run] for run in of_it if run in outcomes] for loader, of_it in runs.items()}
    seeds = min(map(len, done.values()))
    found: list[Result] = []
    for loader, mine in done.items() if seeds else ():
        found.append(Result(loader, mine[:seeds], found[0].accuracy if found else None))
    return found


def report(found: Sequence[Result], machine: str) -> Report:
    """Return the table, the chart and the records."""
    seeds = [str(outcome.config.run.seed) for outcome in found[0].outcomes]
    title = f"Validation top-1 at the end, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
    headings = ("loader", "top-1, %", "mean", "standard deviation", f"to {found[0].loader}, points", "training loss")
    sheets = [Sheet(title, headings, [_row(result) for result in found])]
    dots = [Dots(result.loader, result.values) for result in found]
    caption = "Validation top-1 at the end of training: a dot for each seed, a line for the mean"
    charts = [(caption, dot_chart(dots, title=caption))] if len(seeds) > 1 else []
    section = Section("Accuracy by loader", (), charts, sheets)
    outcomes = (outcome for result in found for outcome in result.outcomes)
    return Report(sheets, [result.record(machine) for result in found], section, legend(), oldest(outcomes))


def _row(result: Result) -> list[str]:
    several = len(result.values) > 1
    difference = ""
    if result.difference is not None:
        points, error = result.difference
        difference = f"{points:+.2f}" + ("" if error is None else f" ± {error:.2f}")
    return [
        result.loader,
        ", ".join(f"{value:.2f}" for value in result.values),
        f"{result.accuracy.mean:.2f}",
        f"{result.accuracy.deviation:.2f}" if several else "",
        difference,
        f"{result.loss.mean:.3f}",
    ]


def legend() -> str:
    """Return what the columns mean."""
    return (
        "top-1: of each seed, on the validation images after the last epoch. to ...: the difference of the means ± its "
        "standard error.\ntraining loss: of the last epoch, mean over the seeds."
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ``arguments`` are those of engine.train that all runs have."""
    parser = command_line("accuracy", __doc__)
    parser.epilog = "The runs under --output are named by all their options and the machine, and not repeated."
    add_engine(parser)
    add = parser.add_argument
    add("--loaders", type=listed(str, USUAL_LOADERS), help=f"of {', '.join(USUAL_LOADERS)}; without it those that are")
    add("--seeds", type=listed(not_negative), default="0,1,2", help="a run of each loader for each")
    add("--epochs", type=positive, default=10, help="of a run")
    add("--resolutions", type=listed(positive), default="96", help="sizes that a run goes through, pixels")
    add_device(parser)
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("accuracy", argv)
    options.loaders = list(dict.fromkeys(options.loaders or installed_loaders()))
    options.seeds = list(dict.fromkeys(options.seeds))
    options.model = options.model or model_for(options.resolutions, options)
    options.arguments = engine_arguments(options)
    return options


def run(options: argparse.Namespace) -> list[Report]:
    """Make the runs that the command line asks for, writing the files as results come in.

    Raises:
        ConfigError: engine.train refuses the options.
        DataError: there are no such data.
        RunError: a run failed.
    """
    runs = plan(options)
    check_runs(of_loader[0].options for of_loader in runs.values())
    machine = describe_machine()
    reports: list[Report] = []

    def save(outcomes: dict[Run, Outcome]) -> None:
        reports[:] = [report(results(runs, outcomes), machine)]
        write_reports(options, "Accuracy by loader", reports, machine)

    with runs_folder(options.output, "accuracy") as root:
        runner = Runner(root, machine)
        runner.make("accuracy", list(zip(*runs.values(), strict=True)), save)
    return reports


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs, print the table, write the files; return the exit code."""
    return run_program(parse(argv), run)


if __name__ == "__main__":
    sys.exit(main())
