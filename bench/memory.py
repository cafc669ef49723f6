"""Whether a loader's memory stays flat over epochs that change size.

    python bench/memory.py --data DIR --loaders torch,dali --resolutions 96,128,160,224 --epochs 10
    python bench/memory.py --data DIR --model resnet10t

With ``--model`` the engine's loop trains on the batches; otherwise they are only brought to the device. Each loader
runs in a process of its own, which reports its resident memory, that of its workers included, after each epoch. The
first round through the sizes fills caches and buffers; what is added after it is the growth.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/memory.py`

from bench.charts import Line, count_chart
from bench.measure import Spread
from bench.options import add_device, add_reports, command_line, listed, not_negative, positive, shown_command
from bench.own_process import call_apart
from bench.page import Section
from bench.peers import MEAN, STD
from bench.program import run_program
from bench.reports import Report, write_reports
from bench.resources import describe_machine, tree_resident_mb
from bench.tables import Sheet
from engine.checkpoint import Position
from engine.distributed import Process, process
from engine.learner import Learner, LossOptions, StepOptions
from engine.loop import Epoch, train_epoch
from engine.model import create_model
from engine.optim import create_optimizer, learning_rate_factor, parameter_groups
from engine.precision import resolve_amp
from loaders.augment import PRESETS
from loaders.bad_samples import BadSamples
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.opening import open_data
from loaders.plan import EpochPlan, View
from loaders.registry import LOADER_NAMES, create_loader
from loaders.transfer import Transfer


@dataclass(frozen=True)
class Course:
    """Resident memory of a loader after each epoch.

    Attributes:
        model: trained on the batches; empty if none was.
        resolutions: of the epochs, pixels.
        resident_mb: of the process and its workers after each epoch, in 10**6 bytes.
        cycle: epochs of the first round through the sizes.
    """

    loader: str
    model: str
    num_workers: int
    batch_size: int
    images: int
    resolutions: tuple[int, ...]
    resident_mb: tuple[float, ...]
    cycle: int

    @property
    def growth_mb(self) -> float:
        """What the last epoch has above the largest of the first round through the sizes."""
        return self.resident_mb[-1] - max(self.resident_mb[: self.cycle])


def observe(
    loader: str,
    dataset: ImageDataset,
    num_workers: int,
    batch_size: int,
    resolutions: Sequence[int],
    epochs: int,
    device: str,
    model: str,
) -> Course:
    """Run a loader and its transfer to the device, and train if a model is named, over epochs of changing size."""
    sizes = tuple(itertools.islice(itertools.cycle(resolutions), epochs))
    resident = []
    transfer = Transfer(torch.device(device), MEAN, STD)
    with (
        process(device) as this,
        create_loader(loader, [dataset], num_workers, BadSamples(), device) as source,
        tqdm(sizes, desc=loader, unit="epoch", disable=None, leave=False) as progress,
    ):
        learner = create_learner(model, len(dataset.classes), this) if model else None
        for number, resolution in enumerate(progress):
            plan = EpochPlan(dataset, number, View(resolution, batch_size))
            if learner is None:
                for _ in transfer.batches(source.run(plan)):
                    pass
            else:
                epoch = Epoch(plan, PRESETS["none"], partial(learning_rate_factor, "constant"))
                train_epoch(learner, source.run, transfer, epoch, Position(), after_step=lambda batch: False)
            resident.append(tree_resident_mb())
            progress.set_postfix_str(f"{resolution} px, {resident[-1]:.0f} MB")
    cycle = min(epochs, len(resolutions))
    return Course(loader, model, num_workers, batch_size, len(dataset), sizes, tuple(resident), cycle)


def create_learner(model: str, num_classes: int, this: Process) -> Learner:
    """Return what trains a model from scratch."""
    network = create_model(model, num_classes).to(memory_format=torch.channels_last).to(this.device)
    optimizer = create_optimizer("sgd", parameter_groups(network, weight_decay=5e-4), lr=0.01, momentum=0.9)
    return Learner(network, optimizer, this, resolve_amp("off", this.device), LossOptions(), StepOptions())


def courses(dataset: ImageDataset, options: argparse.Namespace) -> Iterator[Course]:
    """Observe each loader in a fresh process."""
    for loader in options.loaders:
        yield call_apart(
            loader,
            observe,
            loader,
            dataset,
            options.num_workers,
            options.batch_size,
            options.resolutions,
            options.epochs,
            options.device,
            options.model,
        )


def report(observed: Sequence[Course], machine: str) -> Report:
    """Return the table and the chart of the courses, a column and a line each."""
    rows = [
        [str(epoch + 1), str(resolution), *(f"{course.resident_mb[epoch]:.0f}" for course in observed)]
        for epoch, resolution in enumerate(observed[0].resolutions)
    ]
    rows.append(["growth", "", *(f"{course.growth_mb:+.0f}" for course in observed)])
    headings = ("epoch", "px", *(course.loader for course in observed))
    sheets = [Sheet("Resident memory after each epoch, MB", headings, rows)]
    lines = [
        Line(course.loader, [(epoch, Spread.of([mb])) for epoch, mb in enumerate(course.resident_mb, start=1)], number)
        for number, course in enumerate(observed)
    ]
    sizes = ", ".join(map(str, observed[0].resolutions[: observed[0].cycle]))
    caption = f"Resident memory after each epoch, the sizes being {sizes} px in turn"
    chart = count_chart(lines, title=caption, x_name="epoch", unit="MB")
    records = [asdict(course) | {"growth_mb": course.growth_mb, "machine": machine} for course in observed]
    return Report(sheets, records, Section("Memory over epochs", (), [(caption, chart)], sheets))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    installed = ["torch"] + ["dali"] * (find_spec("nvidia.dali") is not None)
    parser = command_line("memory", __doc__)
    add = parser.add_argument
    add("--data", default="demo", help="a folder, demo, or a known data set's name; its training split is read")
    add("--loaders", type=listed(str, LOADER_NAMES), default=",".join(installed), help=f"of {', '.join(LOADER_NAMES)}")
    add("--num-workers", type=not_negative, default=int(usable_cores()), help="worker processes or threads")
    add("--resolutions", type=listed(positive), default="96,128,160,224", help="sizes that the epochs go through")
    add("--epochs", type=positive, default=10, help="epochs of each loader")
    add("--images", type=positive, default=1000, help="images of an epoch, at most")
    add("--batch-size", type=positive, default=64, help="images of a batch")
    add("--model", default="", help="a model to train on the batches; none by default")
    add_device(parser)
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("memory", argv)
    return options


def run(options: argparse.Namespace) -> list[Report]:
    """Observe what the command line asks for and write the files.

    Raises:
        DataError: there are no data.
        CellError: a loader's process ended.
    """
    dataset = open_data(options.data).train
    dataset = dataset.select(np.arange(min(options.images, len(dataset))))
    machine = describe_machine()
    found = [report(list(courses(dataset, options)), machine)]
    write_reports(options, "Memory over epochs that change size", found, machine)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Observe, print the table, write the files; return the exit code."""
    return run_program(parse(argv), run)


if __name__ == "__main__":
    sys.exit(main())
