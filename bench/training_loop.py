"""What the engine's training loop costs: synthetic images through it, against a bare PyTorch loop.

    python bench/training_loop.py --models resnet10t --resolutions 64,96

Both loops train the same model in the same number format and layout, with the same fused optimizer. The bare one is
handed one ready batch again and again; the engine's has the plan, the synthetic loader, the transfer to the device,
normalization, the learning-rate schedule and its own bookkeeping to do as well.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/training_loop.py`

from bench.charts import Bar, bar_chart
from bench.measure import Batches, Cell, Measurement, Ratio, measure
from bench.options import add_measuring, add_reports, command_line, listed, positive, shown_command
from bench.page import Section
from bench.peers import MEAN, STD
from bench.program import run_program
from bench.reports import Report, write_reports
from bench.resources import describe_machine
from bench.tables import Sheet
from engine.checkpoint import Position
from engine.distributed import process
from engine.learner import Learner, LossOptions, StepOptions
from engine.loop import Epoch, train_epoch
from engine.model import create_model
from engine.optim import create_optimizer, learning_rate_factor, parameter_groups
from engine.precision import AmpChoice, autocast, grad_scaler, resolve_amp
from loaders.augment import PRESETS
from loaders.bad_samples import BadSamples
from loaders.dataset import ImageDataset, PixelForm, StringColumn
from loaders.plan import EpochPlan, View
from loaders.synthetic_backend import SyntheticLoader
from loaders.transfer import Transfer

NUM_CLASSES = 10
LEARNING_RATE = 0.01
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
SMOOTHING = 0.1
STEPS = {"cpu": 2, "cuda": 100}  # of an epoch; a turn is a number of whole epochs


@dataclass(frozen=True)
class Work:
    """What both loops do."""

    model: str
    resolution: int
    batch_size: int
    amp: AmpChoice
    device: str

    @property
    def images(self) -> int:
        """Images of an epoch."""
        return STEPS[self.device] * self.batch_size


def _model(work: Work, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(work.model, NUM_CLASSES, resolution=work.resolution).to(device)
    return model.to(memory_format=torch.channels_last).train()


def bare_loop(work: Work) -> Batches:
    """Train as PyTorch's documentation does, on one batch that lies ready on the device."""
    device = torch.device(work.device)
    model = _model(work, device)
    precision = resolve_amp(work.amp, device)
    scaler = grad_scaler(precision, device)
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True, fused=True
    )
    shape = (work.batch_size, 3, work.resolution, work.resolution)
    images = torch.randn(shape, device=device).to(precision.dtype or torch.float32, memory_format=torch.channels_last)
    labels = torch.arange(work.batch_size, device=device) % NUM_CLASSES
    while True:
        for _ in range(STEPS[work.device]):
            optimizer.zero_grad(set_to_none=True)
            with autocast(precision, device):
                logits = model(images)
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        yield work.images


def engine_loop(work: Work) -> Batches:
    """Train with the engine's loop on the synthetic loader."""
    with process(work.device) as this:
        model = _model(work, this.device)
        precision = resolve_amp(work.amp, this.device)
        groups = parameter_groups(model, WEIGHT_DECAY)
        optimizer = create_optimizer("sgd", groups, lr=LEARNING_RATE, momentum=MOMENTUM)
        learner = Learner(model, optimizer, this, precision, LossOptions(SMOOTHING), StepOptions())
        transfer = Transfer(this.device, MEAN, STD, dtype=precision.dtype or torch.float32)
        dataset = _dataset(work.images)
        view = View(work.resolution, work.batch_size)
        position = Position()
        with SyntheticLoader([dataset], BadSamples(), this.device) as loader:
            for number in itertools.count():
                epoch = Epoch(
                    EpochPlan(dataset, number, view), PRESETS["none"], partial(learning_rate_factor, "constant")
                )
                train_epoch(learner, loader.run, transfer, epoch, position, after_step=lambda batch: False)
                yield work.images


def _dataset(count: int) -> ImageDataset:
    """Return a data set of which only the sizes and labels are used."""
    return ImageDataset(
        name="synthetic",
        classes=tuple(map(str, range(NUM_CLASSES))),
        paths=StringColumn.of([""] * count),
        labels=np.arange(count) % NUM_CLASSES,
        widths=np.full(count, 500, np.int32),
        heights=np.full(count, 375, np.int32),
        orientations=np.ones(count, np.uint8),
        forms=np.full(count, PixelForm.RGB, np.uint8),
        sizes=np.zeros(count, np.int64),
    )


HEADINGS = ("model", "px", "loop", "images/s", "engine / bare", "cpu-ms", "others")
LOOPS = {"bare": bare_loop, "engine": engine_loop}
_COLORS = {"bare": 7, "engine": 0}


@dataclass(frozen=True)
class Result:
    """One loop's figures; the ratio is that of the engine's to the bare one."""

    loop: str
    work: Work
    measurement: Measurement
    ratio: Ratio | None

    def record(self, machine: str) -> dict[str, Any]:
        """Return a record of the JSON file."""
        return {
            "loop": self.loop,
            **asdict(self.work),
            **self.measurement.record(),
            "ratio": asdict(self.ratio) if self.ratio else None,
            "machine": machine,
        }


def compare(work: Work, rounds: int, seconds: float) -> list[Result]:
    """Measure both loops in turns."""
    cells = [
        Cell(f"{name} loop, {work.model}, {work.resolution} px", partial(run, work)) for name, run in LOOPS.items()
    ]
    bare, engine = measure(cells, rounds=rounds, seconds=seconds)
    return [Result("bare", work, bare, None), Result("engine", work, engine, Ratio.between(engine, bare))]


def report(results: Sequence[Result], machine: str) -> Report:
    """Return the table and the chart of the results."""
    sheets = [Sheet("Training on synthetic images", HEADINGS, [row(result) for result in results])]
    several = len({result.work.model for result in results}) > 1
    bars = [
        Bar(
            result.loop,
            result.measurement.images_per_second,
            _COLORS[result.loop],
            f"{result.work.model}, " * several + f"{result.work.resolution} px",
        )
        for result in results
    ]
    caption = "Images per second of both loops on synthetic images"
    chart = bar_chart(bars, title=caption, unit="images/s")
    records = [result.record(machine) for result in results]
    return Report(sheets, records, Section("The training loop", (), [(caption, chart)], sheets))


def row(result: Result) -> list[str]:
    """Return a result's row of the table."""
    measured, ratio = result.measurement, result.ratio
    rate = measured.images_per_second
    return [
        result.work.model,
        str(result.work.resolution),
        result.loop,
        f"{rate.median:.1f} ({rate.min:.1f}-{rate.max:.1f})",
        f"{ratio.of_medians:.3f} ({ratio.min:.3f}-{ratio.max:.3f})" if ratio else "",
        f"{measured.cpu_ms_per_image:.2f}",
        f"{measured.foreign_cpu.max:.0%}" + "*" * (measured.disturbed_rounds > 0),
    ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line("training_loop", __doc__)
    add = parser.add_argument
    add("--models", type=listed(str), default="resnet10t", help="models to train")
    add("--resolutions", type=listed(positive), default="64,96", help="sides of the images, pixels")
    add("--batch-size", type=positive, default=64, help="images of a batch")
    add("--amp", choices=("auto", "bf16", "fp16", "off"), default="auto", help="number format")
    add_measuring(parser)
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("training_loop", argv)
    return options


def run(options: argparse.Namespace) -> list[Report]:
    """Measure what the command line asks for, writing the files as results come in.

    Raises:
        CellError: a loop failed.
    """
    machine = describe_machine()
    results: list[Result] = []
    for model, resolution in itertools.product(options.models, options.resolutions):
        work = Work(model, resolution, options.batch_size, options.amp, options.device)
        results += compare(work, options.rounds, options.seconds)
        write_reports(options, "What the training loop costs", [report(results, machine)], machine)
    return [report(results, machine)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the files; return the exit code."""
    return run_program(parse(argv), run)


if __name__ == "__main__":
    sys.exit(main())
