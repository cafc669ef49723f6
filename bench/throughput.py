"""How fast loaders deliver images: loaders x workers x resolutions x batch sizes x output, measured in turns.

    python bench/throughput.py --data DIR --loaders torch,roi --num-workers 0,1,2 --resolutions 128,224 --peers
    python bench/throughput.py --data DIR --loaders roi,roi:keep,roi:plain,roi:256,roi:renditions,ffcv,ffcv:raw256

All loaders read the same images, from memory once warm, and draw crops from the same distribution. A set of few images
is repeated so that epochs are long: what is measured is the steady rate. A variant behind a colon says how the images
are stored: ``roi`` packs them at most 500 pixels large (``roi:256``: 256; ``roi:renditions``, ``roi:renditions-256``:
with a version of 320 or 256 pixels beside it; ``roi:keep``: the original JPEG data; ``roi:plain``: the files), ``ffcv``
writes JPEGs of at most 500 pixels (``ffcv:raw256``: raw pixels, at most 256). That is done first and not measured.
``--html FILE`` writes a page with charts.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/throughput.py`

from bench.bytes_read import bytes_per_image
from bench.measure import (
    Batches,
    Cell,
    Ratio,
    measure,
    progress_bar,
    turns,
)
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
from bench.peers import FLIP, MEAN, PEERS, RATIO, SCALE, STD, Images, Output, Work, is_installed
from bench.program import run_program
from bench.reports import Report, write_reports
from bench.resources import describe_machine
from bench.throughput_results import Result, reports, run_of
from bench.variants import (
    OWN_LOADERS,
    open_loader,
    prepare,
    without_records,
)
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.opening import DataError, open_data
from loaders.packed import open_packed
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


def compare(
    loaders: Mapping[str, Path | None],
    works: Sequence[Work],
    rounds: int,
    seconds: float,
    report: Callable[[list[Result]], None],
) -> list[Result]:
    """Measure each loader on each piece of work.

    Loaders and worker counts are measured in turns; each combination of output, resolution and batch size is a run of
    its own, because open cells take memory.

    Args:
        loaders: names, those of PEERS included, with the folders of the packed sets that they read.
        works: what each loader is to do.
        rounds: turns of each.
        seconds: length of a turn.
        report: called with all results so far after each run.
    """
    groups = [[(name, work) for work in group for name in loaders] for _, group in itertools.groupby(works, key=run_of)]
    results: list[Result] = []
    with progress_bar(sum(turns(len(group), rounds) for group in groups)) as progress:
        for group in groups:
            cells = [cell(name, work, loaders[name]) for name, work in group]
            measured = dict(zip(group, measure(cells, rounds=rounds, seconds=seconds, progress=progress), strict=True))
            for (name, work), figures in measured.items():
                peers = [peer for peer in COMPARED_WITH.get(name, ()) if (peer, work) in measured]
                ratios = {peer: Ratio.between(figures, measured[peer, work]) for peer in peers}
                size = bytes_per_image(name, work.dataset, loaders[name], work.resolution)
                results.append(Result(name, work, figures, ratios, size))
            report(results)
    return results


def long_epoch(dataset: Dataset) -> Dataset:
    """Return the images whose header is readable, repeated to MIN_EPOCH_IMAGES.

    Raises:
        DataError: there are none.
    """
    good = np.setdiff1d(np.arange(len(dataset)), list(dataset.problems))
    if not len(good):
        folder = os.path.commonpath([os.path.dirname(path) for path in dataset.paths])
        first, reason = min(dataset.problems.items())
        raise DataError(f"no image of {folder} can be read; the first is {dataset.paths[first]}: {reason}")
    repeats = -(-MIN_EPOCH_IMAGES // len(good))
    return dataset if repeats == 1 and not dataset.problems else dataset.select(np.tile(good, repeats))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line("throughput", __doc__)
    add = parser.add_argument
    add_loaders(parser, [*OWN_LOADERS, *PEERS])
    add("--peers", action="store_true", help="also measure other loaders in their own plain form")
    add("--num-workers", type=listed(not_negative), default=f"{int(usable_cores())}", help="processes or threads")
    add("--resolutions", type=listed(positive), default="128,224", help="sides of the images delivered, pixels")
    add("--batch-size", type=listed(positive), default="64", help="images of a batch")
    add(
        "--output",
        type=listed(str, OUTPUTS),
        default="uint8,float32",
        help="as delivered; or normalized, on the device",
    )
    add_measuring(parser)
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("throughput", argv)
    peers = [name for name in PEERS if options.peers and is_installed(name)]
    options.loaders = list(dict.fromkeys([*named_loaders(options), *peers]))
    return options


def run(options: argparse.Namespace) -> list[Report]:
    """Measure what the command line asks for, writing the files as results come in.

    Raises:
        CellError: a loader failed.
        DataError, PackError, LoaderError, ImportError: there are no data, or they cannot be had in the form that a
            loader reads.
    """
    data = open_data(options.data)
    dataset = long_epoch(without_records(data.train))
    loaders = {name: prepare(name, data, dataset) for name in options.loaders}
    works = [
        Work(dataset, resolution, batch_size, num_workers, output, options.device)
        for output in options.output
        for resolution in options.resolutions
        for batch_size in options.batch_size
        for num_workers in options.num_workers
    ]
    machine = describe_machine()

    def save(results: list[Result]) -> None:
        write_reports(options, "How fast loaders deliver", reports(results, machine), machine)

    return reports(compare(loaders, works, options.rounds, options.seconds, save), machine)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the files; return the exit code."""
    return run_program(parse(argv), run)


if __name__ == "__main__":
    sys.exit(main())
