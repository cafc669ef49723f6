"""How fast loaders deliver images: loaders x workers x resolutions x output, measured in turns.

    python bench/throughput.py --data DIR --loaders torch,roi --num-workers 0,1,2 --resolutions 128,224 --peers
    python bench/throughput.py --data DIR --loaders roi,roi:keep,roi:plain,roi:256,roi:renditions,ffcv,ffcv:raw256

All loaders read the same images, from memory once warm, and draw crops from the same distribution. A set of few images
is repeated so that epochs are long: what is measured is the steady rate. A variant behind a colon says how the images
are stored: ``roi`` packs them at most 500 pixels large (``roi:256``: 256; ``roi:renditions``, ``roi:renditions-256``:
with a version of 320 or 256 pixels beside it; ``roi:keep``: the original JPEG data; ``roi:plain``: the files), ``ffcv``
writes JPEGs of at most 500 pixels (``ffcv:raw256``: raw pixels, at most 256). That is done first and not measured.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from rich.console import Console

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
from bench.options import add_measuring, command_line, listed, not_negative, positive
from bench.peers import FLIP, MEAN, PEERS, RATIO, SCALE, STD, Images, Output, Work, is_installed
from bench.resources import describe_machine
from bench.tables import Sheet
from bench.variants import (
    OWN_LOADERS,
    PREPARATION_ERRORS,
    USUAL_LOADERS,
    open_loader,
    prepare,
    split_name,
    why_missing,
    without_records,
)
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.opening import open_data
from loaders.packed import open_packed
from loaders.packed_manifest import is_packed
from loaders.plan import EpochPlan, View
from loaders.transfer import Transfer

Dataset = TypeVar("Dataset", bound=ImageDataset)

MIN_EPOCH_IMAGES = 50_000
_REGION_PEERS = ("peer:ffcv", "peer:dali", "peer:dali-windows")
COMPARED_WITH = {
    "torch": ("peer:torchvision", "peer:torchvision-v2"),
    "dali": ("peer:dali-windows", "peer:dali"),
    "ffcv": ("peer:ffcv",),
    "ffcv:raw256": ("peer:ffcv-raw256",),
    **dict.fromkeys(("roi", "roi:keep", "roi:plain", "roi:renditions", "roi:renditions-256"), _REGION_PEERS),
    "roi:256": ("peer:ffcv-raw256",),
}
HEADINGS = ("loader", "workers", "images/s", "ratio", "to", "cpu-ms", "MB", "first s", "others")
_INSTALLED = "installed"
OUTPUTS: tuple[Output, ...] = get_args(Output)


def own_images(name: str, work: Work, packed: Path | None = None) -> Images:
    """Run one of our loaders without end, one epoch after another.

    Args:
        name: of the loader, with its variant.
        work: what it is to do.
        packed: the folder of a packed set to read in place of the work's data set.
    """
    device = torch.device(work.device)
    view = View(work.resolution, work.batch_size, scale=SCALE, ratio=RATIO, flip=FLIP)
    dataset = work.dataset if packed is None else long_epoch(open_packed(packed).train)
    with open_loader(name, dataset, work.num_workers, device) as loader:
        transfer = Transfer(device, MEAN, STD)
        for epoch in itertools.count():
            batches = loader.run(EpochPlan(dataset, epoch, view))
            for batch in batches if work.output == "uint8" else transfer.batches(batches):
                yield batch.images


def deliver(name: str, work: Work, packed: Path | None) -> Batches:
    """Run a loader of ours or a peer and count its images."""
    with closing(PEERS[name](work) if name in PEERS else own_images(name, work, packed)) as batches:
        for images in batches:
            yield len(images)


def cell(name: str, work: Work, packed: Path | None) -> Cell:
    """Return a loader and its work as something to measure."""
    title = f"{name}, {work.num_workers} workers, {work.resolution} px, {work.output}"
    return Cell(title, partial(deliver, name, work, packed))


@dataclass(frozen=True)
class Result:
    """One loader's figures for one piece of work, with its ratio to each peer measured beside it."""

    loader: str
    work: Work
    measurement: Measurement
    ratios: dict[str, Ratio]

    def record(self, machine: str) -> dict[str, Any]:
        """Return a record of the JSON file."""
        loader, variant = split_name(self.loader)
        return {
            "loader": loader,
            "variant": variant,
            "num_workers": self.work.num_workers,
            "resolution": self.work.resolution,
            "batch_size": self.work.batch_size,
            "output": self.work.output,
            "device": self.work.device,
            **self.measurement.record(),
            "ratios": {peer: asdict(ratio) for peer, ratio in self.ratios.items()},
            "machine": machine,
        }


def compare(
    loaders: Mapping[str, Path | None],
    works: Sequence[Work],
    rounds: int,
    seconds: float,
    report: Callable[[list[Result]], None],
) -> list[Result]:
    """Measure each loader on each piece of work.

    Loaders and worker counts are measured in turns; each combination of resolution and output is a run of its own,
    because open cells take memory.

    Args:
        loaders: names, those of PEERS included, with the folders of the packed sets that they read.
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
            cells = [cell(name, work, loaders[name]) for name, work in group]
            measured = dict(zip(group, measure(cells, rounds=rounds, seconds=seconds, progress=progress), strict=True))
            for (name, work), figures in measured.items():
                peers = [peer for peer in COMPARED_WITH.get(name, ()) if (peer, work) in measured]
                ratios = {peer: Ratio.between(figures, measured[peer, work]) for peer in peers}
                results.append(Result(name, work, figures, ratios))
            report(results)
    return results


def long_epoch(dataset: Dataset) -> Dataset:
    """Return the images whose header is readable, repeated to MIN_EPOCH_IMAGES."""
    good = np.setdiff1d(np.arange(len(dataset)), list(dataset.problems))
    repeats = -(-MIN_EPOCH_IMAGES // len(good))
    return dataset if repeats == 1 and not dataset.problems else dataset.select(np.tile(good, repeats))


def sheets(results: Sequence[Result]) -> list[Sheet]:
    """Return a table for each output and resolution: fewest workers first, then the fastest loader."""
    order = sorted(
        results,
        key=lambda r: (r.work.output, r.work.resolution, r.work.num_workers, -r.measurement.images_per_second.median),
    )
    return [
        Sheet(f"{output}, {resolution} px", HEADINGS, [line for result in group for line in lines(result)])
        for (output, resolution), group in itertools.groupby(order, key=lambda r: (r.work.output, r.work.resolution))
    ]


def lines(result: Result) -> list[list[str]]:
    """Return a result's row of its table, and one more for each further peer that it is compared with."""
    measured = result.measurement
    rate = measured.images_per_second
    ratios = [
        [f"{ratio.of_medians:.2f} ({ratio.min:.2f}-{ratio.max:.2f})", peer] for peer, ratio in result.ratios.items()
    ] or [["", ""]]
    first = [
        result.loader,
        str(result.work.num_workers),
        f"{rate.median:.0f} ({rate.min:.0f}-{rate.max:.0f})",
        *ratios[0],
        f"{measured.cpu_ms_per_image:.2f}",
        f"{measured.peak_rss_mb:.0f}",
        f"{measured.seconds_to_first_batch:.1f}",
        f"{measured.foreign_cpu.max:.0%}" + "*" * (measured.disturbed_rounds > 0),
    ]
    return [first, *(["", "", "", *ratio, "", "", "", ""] for ratio in ratios[1:])]


def disturbance(results: Sequence[Result]) -> str:
    """Return a sentence on the rounds in which other processes took the CPU; empty where there were none."""
    disturbed = sum(result.measurement.disturbed_rounds for result in results)
    if not disturbed:
        return ""
    total = sum(len(result.measurement.rounds) for result in results)
    return (
        f"*: in {disturbed} of {total} turns other processes took more than {FOREIGN_CPU_LIMIT:.0%} of the machine: "
        "the rates are too low there; ratios and cpu-ms hold better."
    )


def legend() -> str:
    """Return what the columns of the tables mean."""
    return (
        "images/s: median (smallest-largest) over the rounds.\n"
        "ratio: of the medians, to the peer named beside it (smallest-largest within a round).\n"
        "cpu-ms: of all processes, per image. MB: peak resident memory. first s: from opening to the first batch.\n"
        "others: largest share of the machine's CPU time that went to other processes in a round."
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    known = [*OWN_LOADERS, *PEERS]
    parser = command_line("throughput", __doc__)
    add = parser.add_argument
    add("--data", default="demo", help="a folder, demo, or a known data set's name; its training split is read")
    add(
        "--loaders",
        type=listed(str, [*known, _INSTALLED]),
        default=_INSTALLED,
        help=f"of {', '.join(known)}; {_INSTALLED}: {', '.join(USUAL_LOADERS)} where they are, roi for a packed set",
    )
    add("--peers", action="store_true", help="also measure other loaders in their own plain form")
    add("--num-workers", type=listed(not_negative), default=f"{int(usable_cores())}", help="processes or threads")
    add("--resolutions", type=listed(positive), default="128,224", help="sides of the images delivered, pixels")
    add("--batch-size", type=positive, default=64, help="images of a batch")
    add(
        "--output",
        type=listed(str, OUTPUTS),
        default="uint8,float32",
        help="as delivered; or normalized, on the device",
    )
    add_measuring(parser)
    options = parser.parse_args(argv)
    usual = ["roi"] if is_packed(Path(options.data).expanduser()) else [n for n in USUAL_LOADERS if not why_missing(n)]
    peers = [name for name in PEERS if options.peers and is_installed(name)]
    named = [usual if name == _INSTALLED else [name] for name in options.loaders]
    options.loaders = list(dict.fromkeys(itertools.chain(*named, peers)))
    return options


def run(options: argparse.Namespace) -> list[Result]:
    """Measure what the command line asks for, writing the JSON file as results come in.

    Raises:
        CellError: a loader failed.
        DataError, PackError, LoaderError, ImportError: there are no data, or they cannot be had in the form that a
            loader reads.
    """
    data = open_data(options.data)
    dataset = long_epoch(without_records(data.train))
    loaders = {name: prepare(name, data, dataset) for name in options.loaders}
    works = [
        Work(dataset, resolution, options.batch_size, num_workers, output, options.device)
        for output in options.output
        for resolution in options.resolutions
        for num_workers in options.num_workers
    ]
    machine = describe_machine()

    def save(results: list[Result]) -> None:
        if options.json:
            write_records(options.json, [result.record(machine) for result in results])

    return compare(loaders, works, options.rounds, options.seconds, save)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON; return the exit code."""
    options = parse(argv)
    try:
        results = run(options)
    except (*PREPARATION_ERRORS, CellError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped" + (f"; finished tables are in {options.json}" if options.json else ""), file=sys.stderr)
        return 130
    tables = [sheet.terminal() for sheet in sheets(results)]
    Console().print(*tables, legend(), disturbance(results), describe_machine(), sep="\n", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
