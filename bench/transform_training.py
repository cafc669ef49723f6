"""Training with a well and a badly ordered list of transforms: whether the engine makes them equally fast.

    python bench/transform_training.py --loaders torch,dali,ffcv,roi --resolutions 96 --rounds 3

Both lists hold the same transforms. One crops first and converts last; the other converts and normalizes whole photos
before it crops them. ``python -m engine.train --transforms`` trains with each of them, in two processes that take turns
epoch by epoch, with every loader. Below the tables stands what the lists cost by themselves as they are written, of
which bench/transform_order.py has more.

With ``--output`` the runs are kept, and a command that is repeated there makes only those that are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/transform_training.py`

from bench.charts import Bar, bar_chart
from bench.measure import Spread
from bench.options import (
    add_device,
    add_reports,
    command_line,
    installed_loaders,
    listed,
    positive,
    shown_command,
)
from bench.page import Section
from bench.program import run_program
from bench.reports import Report, write_reports
from bench.resources import describe_machine
from bench.tables import Sheet
from bench.training_options import add_engine, check_runs, engine_arguments, model_for
from bench.training_runs import Outcome, Run, Runner, oldest, runs_folder
from bench.transform_programs import MEAN, STD
from bench.variants import USUAL_LOADERS
from engine.config import AugmentConfig
from engine.defaults import default_workers
from engine.transform_costs import transform_costs
from engine.transforms import read_transforms
from loaders.cores import usable_cores
from loaders.files import atomic_file
from loaders.opening import open_data
from loaders.transforms import machine_costs
from loaders.transforms import plan as plan_order

WELL, BADLY = "well ordered", "badly ordered"
LISTS = {
    WELL: "RandomResizedCrop({size}), RandomHorizontalFlip(), ToTensor(), Normalize({mean}, {std})",
    BADLY: "ToTensor(), Normalize({mean}, {std}), RandomHorizontalFlip(), RandomResizedCrop({size})",
}
HEADINGS = ("loader", "well ordered, images/s", "badly ordered, images/s", "ratio", "CPU time", "waiting", "others")
_TITLE = "Training with a list of transforms in two orders"

Costs = dict[int, dict[str, float]]  # CPU milliseconds for an image, by resolution and list
Cell = tuple[int, str, str]  # resolution, loader, and which of LISTS


@dataclass(frozen=True)
class Result:
    """One loader at one resolution.

    Attributes:
        well, badly: the outcomes with each list, one for each round.
    """

    loader: str
    resolution: int
    well: Sequence[Outcome]
    badly: Sequence[Outcome]

    @property
    def ratio(self) -> Spread:
        """Of each round: the rate with the badly ordered list over that with the other."""
        return Spread.of([badly.images_per_second / well.images_per_second for badly, well in self._pairs])

    @property
    def cpu_ratio(self) -> Spread:
        """Of each round: the CPU time of the whole run with the badly ordered list over that with the other."""
        return Spread.of([badly.cpu_seconds / well.cpu_seconds for badly, well in self._pairs])

    @property
    def wait(self) -> Spread:
        """Share of the training time in which the badly ordered list's training waited for data."""
        return Spread.of([outcome.data_wait_fraction for outcome in self.badly])

    @property
    def _pairs(self) -> list[tuple[Outcome, Outcome]]:
        return list(zip(self.badly, self.well, strict=True))

    @property
    def outcomes(self) -> list[Outcome]:
        return [*self.well, *self.badly]

    def record(self, machine: str) -> dict[str, Any]:
        """Return a record of the JSON file."""
        config = self.well[0].config
        return {
            "loader": self.loader,
            "resolution": self.resolution,
            "model": config.model.model,
            "batch_size": config.optimizer.batch_size,
            "num_workers": config.loader.num_workers,
            "device": config.run.device,
            "well_ordered_images_per_second": asdict(rates(self.well)),
            "badly_ordered_images_per_second": asdict(rates(self.badly)),
            "ratio": asdict(self.ratio),
            "cpu_ratio": asdict(self.cpu_ratio),
            "data_wait_fraction": asdict(self.wait),
            "foreign_cpu": asdict(Spread.of([outcome.foreign_cpu for outcome in self.outcomes])),
            "disturbed_rounds": sum(outcome.is_disturbed for outcome in self.outcomes),
            "machine": machine,
        }


def rates(outcomes: Sequence[Outcome]) -> Spread:
    """Return the images per second of some runs."""
    return Spread.of([outcome.images_per_second for outcome in outcomes])


def write_list(folder: Path, name: str, resolution: int) -> Path:
    """Write a file for ``--transforms`` that defines one of LISTS; return its path."""
    listed = LISTS[name].format(size=resolution, mean=MEAN, std=STD)
    path = folder / f"{name.replace(' ', '-')}-{resolution}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(f"from torchvision.transforms import *\n\ntransforms = Compose([{listed}])\n")
    return path


def plan(
    arguments: Sequence[str], folder: Path, loaders: Sequence[str], resolutions: Sequence[int], rounds: int, epochs: int
) -> dict[Cell, list[Run]]:
    """Write the lists, and return the runs to make with each, one for each round.

    Args:
        arguments: of engine.train, for all runs.
        folder: of the lists.
        epochs: of a run; the first does not count.
    """
    cells: dict[Cell, list[Run]] = {}
    for resolution in resolutions:
        files = {name: write_list(folder, name, resolution) for name in LISTS}
        for loader in loaders:
            for name, file in files.items():
                options = (*arguments, "--loader", loader, "--transforms", str(file), "--epochs", str(epochs))
                cells[resolution, loader, name] = [
                    Run(
                        f"{loader}, {resolution} px, {name}, round {turn + 1}",
                        (*options, "--seed", str(turn)),
                        epochs,
                        group=f"{loader}, {resolution} px, round {turn + 1}",
                    )
                    for turn in range(rounds)
                ]
    return cells


def in_turns(cells: Mapping[Cell, Sequence[Run]]) -> list[list[Run]]:
    """Return the runs of each round, every other one in the opposite order."""
    rounds = [list(turn) for turn in zip(*cells.values(), strict=True)]
    return [turn[::-1] if number % 2 else turn for number, turn in enumerate(rounds)]


def results(cells: Mapping[Cell, Sequence[Run]], outcomes: Mapping[Run, Outcome]) -> list[Result]:
    """Return a result for each loader and resolution, of the rounds that are done."""
    done = {cell: [outcomes[run] for run in runs if run in outcomes] for cell, runs in cells.items()}
    rounds = min(map(len, done.values()))
    return [
        Result(loader, resolution, mine[:rounds], done[resolution, loader, BADLY][:rounds])
        for (resolution, loader, name), mine in done.items()
        if name == WELL and rounds
    ]


def costs_alone(data: str, folder: Path, resolutions: Sequence[int]) -> Costs:
    """Return what the two lists cost an image as they are written, in torchvision, measured on some of the data's."""
    train = open_data(data).train
    costs: Costs = {}
    for resolution in resolutions:
        read = read_transforms(AugmentConfig(transforms=write_list(folder, BADLY, resolution)))
        assert read is not None
        measured = transform_costs(plan_order(read.program, machine_costs()), train)
        if measured is not None:
            costs[resolution] = {BADLY: measured.before, WELL: measured.after}
    return costs


def report_of(found: Sequence[Result], costs: Costs, machine: str) -> Report:
    """Return the tables, the chart and the records of some results."""
    sizes = dict.fromkeys(result.resolution for result in found)
    sheets = [
        Sheet(f"{_TITLE}, {size} px", HEADINGS, [_row(result) for result in found if result.resolution == size])
        for size in sizes
    ]
    bars = [
        Bar(f"{result.loader}, {name}", rates(outcomes), color, f"{result.resolution} px" * (len(sizes) > 1))
        for result in found
        for color, (name, outcomes) in enumerate(((WELL, result.well), (BADLY, result.badly)))
    ]
    title = "Images per second of training"
    section = Section(_TITLE, sentences(found, costs), [(title, bar_chart(bars, title=title, unit="images/s"))], sheets)
    records = [result.record(machine) | {"cpu_ms_alone": costs.get(result.resolution)} for result in found]
    return Report(sheets, records, section, _LEGEND, oldest(outcome for result in found for outcome in result.outcomes))


def _row(result: Result) -> list[str]:
    well, badly = rates(result.well), rates(result.badly)
    others = max(outcome.foreign_cpu for outcome in result.outcomes)
    return [
        result.loader,
        *(f"{rate.median:.1f} ({rate.min:.1f}-{rate.max:.1f})" for rate in (well, badly)),
        *(f"{ratio.median:.3f} ({ratio.min:.3f}-{ratio.max:.3f})" for ratio in (result.ratio, result.cpu_ratio)),
        f"{result.wait.median:.1%}",
        f"{others:.0%}" + "*" * any(outcome.is_disturbed for outcome in result.outcomes),
    ]


def sentences(found: Sequence[Result], costs: Costs) -> list[str]:
    """Say what the lists cost by themselves, and how fast the badly ordered one trains at worst."""
    if not found:
        return []
    worst = min(found, key=lambda result: result.ratio.median)
    alone = [
        f"Done by torchvision as written, the lists take {of[WELL]:.2f} (well ordered) and {of[BADLY]:.2f} ms of CPU "
        f"time for an image at {resolution} px."
        for resolution, of in costs.items()
    ]
    disturbed = any(outcome.is_disturbed for result in found for outcome in result.outcomes)
    return [
        *alone,
        f"With {worst.loader} at {worst.resolution} px the badly ordered list trains at {worst.ratio.median:.2f} times "
        "the rate of the well-ordered one, elsewhere at no less"
        + (", as far as other processes let it be seen." if disturbed else "."),
    ]


_LEGEND = (
    "images/s: of training steps, without evaluation and without the first epoch; median (smallest-largest) over the "
    "rounds.\n"
    "ratio: badly over well ordered, of two runs that take turns epoch by epoch; median (smallest-largest) of the "
    "ratios within rounds. CPU time: likewise, of whole runs.\n"
    "waiting: share of the training time in which a step of the badly ordered list waited for its batch."
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ``arguments`` are those of engine.train that all runs have."""
    parser = command_line("transform_training", __doc__)
    add = parser.add_argument
    add_engine(parser)
    add("--loaders", type=listed(str, USUAL_LOADERS), help=f"of {', '.join(USUAL_LOADERS)}; without it the installed")
    add("--resolutions", type=listed(positive), default="96", help="sides of the crops, pixels")
    add("--rounds", type=positive, default=3, help="runs of each loader, size and order")
    add("--epochs", type=positive, default=8, help="epochs of a run; the first does not count")
    add_device(parser)
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("transform_training", argv)
    options.loaders = list(dict.fromkeys(options.loaders or installed_loaders()))
    options.resolutions = list(dict.fromkeys(options.resolutions))
    options.model = options.model or model_for(options.resolutions, options)
    if options.num_workers is None:  # the same in all runs, not found anew in each
        options.num_workers = default_workers(usable_cores(), torch.device(options.device))
    options.arguments = engine_arguments(options)
    return options


def run(options: argparse.Namespace) -> list[Report]:
    """Make the runs that the command line asks for, writing the files as results come in.

    Raises:
        ConfigError: engine.train refuses the options.
        DataError: there are no such data.
        RunError: a run failed.
    """
    machine = describe_machine()
    reports: list[Report] = []
    with runs_folder(options.output, "transforms") as root:
        runner = Runner(root, machine)
        cells = plan(
            options.arguments, runner.root, options.loaders, options.resolutions, options.rounds, options.epochs
        )
        check_runs(runs[0].options for runs in cells.values())
        costs = costs_alone(options.data, runner.root, options.resolutions)

        def report(outcomes: dict[Run, Outcome]) -> None:
            reports[:] = [report_of(results(cells, outcomes), costs, machine)]
            write_reports(options, _TITLE, reports, machine)

        runner.make("two orders", in_turns(cells), report)
    return reports


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs, print the tables, write the files; return the exit code."""
    return run_program(parse(argv), run)


if __name__ == "__main__":
    sys.exit(main())
