"""How fast loaders deliver images: loaders x workers x resolutions x output, measured in turns.

    python bench/throughput.py --data DIR --loaders torch,dali --num-workers 0,1,2 --resolutions 128,224 --peers

All loaders read the same files, from memory once warm, and draw crops from the same distribution. A set of few images
is repeated so that epochs are long: what is measured is the steady rate.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/throughput.py`

from bench.measure import (
    FOREIGN_CPU_LIMIT,
    Batches,
    Cell,
    CellError,
    Measurement,
    Ratio,
    measure,
    progress_bar,
    turns,
    write_records,
)
from bench.peers import FLIP, MEAN, PEERS, RATIO, SCALE, STD, Output, Work
from bench.resources import describe_machine
from loaders.bad_samples import BadSamples
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.opening import DataError, open_data
from loaders.plan import EpochPlan, View
from loaders.registry import LOADER_NAMES, create_loader

MIN_EPOCH_IMAGES = 50_000
COMPARED_WITH = {"torch": "peer:torchvision", "dali": "peer:dali"}
OUTPUTS: tuple[Output, ...] = get_args(Output)

Item = TypeVar("Item")


def deliver(name: str, work: Work) -> Batches:
    """Run one of our loaders without end, one epoch after another."""
    device = torch.device(work.device)
    view = View(work.resolution, work.batch_size, scale=SCALE, ratio=RATIO, flip=FLIP)
    with create_loader(name, [work.dataset], work.num_workers, BadSamples("raise"), device) as loader:
        if work.output == "float32":
            from loaders.transfer import Transfer

            transfer = Transfer(device, MEAN, STD)
        for epoch in itertools.count():
            batches = loader.run(EpochPlan(work.dataset, epoch, view))
            for batch in batches if work.output == "uint8" else transfer(batches):
                yield len(batch)


@dataclass(frozen=True)
class Result:
    """One loader's figures for one piece of work."""

    loader: str
    work: Work
    measurement: Measurement
    ratio: Ratio | None

    def record(self, machine: str) -> dict[str, Any]:
        """Return a record of the JSON file."""
        return {
            "loader": self.loader,
            "num_workers": self.work.num_workers,
            "resolution": self.work.resolution,
            "batch_size": self.work.batch_size,
            "output": self.work.output,
            "device": self.work.device,
            **self.measurement.record(),
            "ratio": asdict(self.ratio) | {"to": COMPARED_WITH[self.loader]} if self.ratio else None,
            "machine": machine,
        }


def compare(
    loaders: Sequence[str], works: Sequence[Work], rounds: int, seconds: float, report: Callable[[list[Result]], None]
) -> list[Result]:
    """Measure each loader on each piece of work.

    Loaders and worker counts are measured in turns; each combination of resolution and output is a run of its own,
    because open cells take memory.

    Args:
        loaders: names, those of PEERS included.
        works: what each loader is to do.
        rounds: turns of each.
        seconds: length of a turn.
        report: called with all results so far after each run.
    """
    groups = [
        [(name, work) for work in group for name in loaders]
        for _, group in itertools.groupby(works, key=lambda work: (work.output, work.resolution))
    ]
    results: list[Result] = []
    with progress_bar(sum(turns(len(group), rounds) for group in groups)) as progress:
        for group in groups:
            cells = [Cell(label(*pair), partial(opener(pair[0]), pair[1])) for pair in group]
            measured = dict(zip(group, measure(cells, rounds=rounds, seconds=seconds, progress=progress), strict=True))
            for (name, work), figures in measured.items():
                other = measured.get((COMPARED_WITH.get(name, ""), work))
                results.append(Result(name, work, figures, Ratio.between(figures, other) if other else None))
            report(results)
    return results


def opener(name: str) -> Callable[[Work], Batches]:
    """Return what runs a loader of ours or a peer."""
    return PEERS[name] if name in PEERS else partial(deliver, name)


def label(name: str, work: Work) -> str:
    """Return what to call a cell in messages."""
    return f"{name}, {work.num_workers} workers, {work.resolution} px, {work.output}"


def readable(dataset: ImageDataset) -> ImageDataset:
    """Return the images whose header is readable, repeated to MIN_EPOCH_IMAGES."""
    good = np.setdiff1d(np.arange(len(dataset)), list(dataset.problems))
    repeats = -(-MIN_EPOCH_IMAGES // len(good))
    return dataset if repeats == 1 and not dataset.problems else dataset.select(np.tile(good, repeats))


def table(results: Sequence[Result]) -> Table:
    """Return the results for the terminal: work by work, the fastest loader first."""
    texts = ("output", "px", "workers", "loader")
    figures = ("images/s", "min to max", "ratio", "cpu-ms/image", "memory MB", "first batch s", "others' CPU")
    shown = Table(*texts, *figures, title="Images per second: median and spread over the rounds")
    for column in shown.columns[len(texts) :]:
        column.justify = "right"
    order = sorted(
        results,
        key=lambda r: (r.work.output, r.work.resolution, r.work.num_workers, -r.measurement.images_per_second.median),
    )
    for work, of_work in itertools.groupby(order, key=lambda result: result.work):
        for result in of_work:
            measured, ratio = result.measurement, result.ratio
            rate, others = measured.images_per_second, f"{measured.foreign_cpu.max:.0%}"
            shown.add_row(
                work.output,
                str(work.resolution),
                str(work.num_workers),
                result.loader,
                f"{rate.median:.0f}",
                f"{rate.min:.0f} to {rate.max:.0f}",
                f"{ratio.of_medians:.2f} ({ratio.min:.2f} to {ratio.max:.2f})" if ratio else "",
                f"{measured.cpu_ms_per_image:.2f}",
                f"{measured.peak_rss_mb:.0f}",
                f"{measured.seconds_to_first_batch:.1f}",
                f"[red]{others}[/red]" if measured.disturbed_rounds else others,
            )
        shown.add_section()
    return shown


def notes(results: Sequence[Result]) -> str:
    """Return what a reader of the table has to know."""
    pairs = ", ".join(f"{name} to {peer}" for name, peer in COMPARED_WITH.items())
    lines = [f"ratio: {pairs}; of the medians, in brackets the smallest and largest of one round."]
    disturbed = sum(result.measurement.disturbed_rounds for result in results)
    if disturbed:
        total = sum(len(result.measurement.rounds) for result in results)
        lines.append(
            f"In {disturbed} of {total} turns other processes took more than {FOREIGN_CPU_LIMIT:.0%} of the machine "
            "(the largest share stands in red): rates are too low there, ratios and cpu-ms hold better."
        )
    return "\n".join(lines)


def listed(convert: Callable[[str], Item], allowed: Sequence[Item] = ()) -> Callable[[str], list[Item]]:
    """Return a converter of a comma-separated option."""

    def parse(text: str) -> list[Item]:
        try:
            items = [convert(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        unknown = [str(item) for item in items if allowed and item not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(unknown)}; choose from {', '.join(map(str, allowed))}"
            )
        if not items:
            raise argparse.ArgumentTypeError("the list is empty")
        return items

    return parse


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    installed = ["torch"] + ["dali"] * (find_spec("nvidia.dali") is not None)
    parser = argparse.ArgumentParser(
        prog="python bench/throughput.py",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", default="demo", help="a folder of images, demo, or a known data set's name; the training split")
    add(
        "--loaders",
        type=listed(str, [*LOADER_NAMES, *PEERS]),
        default=",".join(installed),
        help=f"of {', '.join([*LOADER_NAMES, *PEERS])}",
    )
    add("--peers", action="store_true", help="also measure other loaders in their own plain form")
    add("--num-workers", type=listed(int), default=f"{int(usable_cores())}", help="worker processes or threads")
    add("--resolutions", type=listed(int), default="128,224", help="sides of the images delivered, pixels")
    add("--batch-size", type=int, default=64, help="images of a batch")
    add("--seconds", type=float, default=5.0, help="length of a turn")
    add("--rounds", type=int, default=3, help="turns of each cell")
    add(
        "--output",
        type=listed(str, OUTPUTS),
        default="uint8,float32",
        help="as delivered; or normalized, on the device",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where the batches are needed")
    add("--json", type=Path, metavar="FILE", help="write the records here")
    options = parser.parse_args(argv)
    if options.peers:
        peers = [name for name in PEERS if name != "peer:dali" or "dali" in installed]
        options.loaders = list(dict.fromkeys([*options.loaders, *peers]))
    numbers = (options.batch_size, options.rounds, options.seconds, *options.resolutions)
    if min(numbers) <= 0 or min(options.num_workers) < 0:
        parser.error("--batch-size, --rounds, --seconds and --resolutions must be positive, --num-workers not negative")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; return the exit code."""
    options = parse(argv)
    machine = describe_machine()
    try:
        dataset = readable(open_data(options.data).train)
        works = [
            Work(dataset, resolution, options.batch_size, num_workers, output, options.device)
            for output in options.output
            for resolution in options.resolutions
            for num_workers in options.num_workers
        ]

        def save(results: list[Result]) -> None:
            if options.json:
                write_records(options.json, [result.record(machine) for result in results])

        results = compare(options.loaders, works, options.rounds, options.seconds, save)
    except (DataError, CellError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped" + (f"; finished runs are in {options.json}" if options.json else ""), file=sys.stderr)
        return 130
    console = Console()
    console.print(table(results))
    console.print(notes(results), machine, sep="\n", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
