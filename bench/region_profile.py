"""Where the region loader's time goes: CPU time per image of each of its steps, in one thread.

    python bench/region_profile.py --data DIR

The steps of a sample are told apart by calling the compiled function that takes them again and again, over the same
images and windows, so that it ends early: without scratch memory behind the header, without a decoder when the small
JPEG is cut out, without columns to fill when that is decoded. A step takes what its call adds to the one before.
Reading or checking the bytes, making a decoder, color, and what is done once for a batch (its plan, the addresses) are
measured for themselves. Beside them stands the whole path as a thread of the loader takes it; "rest" is what the steps
do not explain. A finished batch is handed out where it is: nothing is copied.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numba import njit
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/region_profile.py`

from bench.options import add_reports, command_line, listed, positive, shown_command
from bench.peers import FLIP, RATIO, SCALE
from bench.program import run_program
from bench.region_profile_results import Profile, Times, report
from bench.reports import Report, write_reports
from bench.resources import describe_machine
from bench.variants import PLAIN, prepare, why_missing
from kernels.checksum import xxh64
from kernels.color import ycbcr_to_rgb
from kernels.files import close_file, file_size, open_file, read_at
from kernels.jpeg import create_handle, destroy_handle, load_library
from kernels.memory import bytes_at
from kernels.regions import Status, load_sample
from loaders.dataset import ImageDataset, PixelForm
from loaders.opening import DataError, open_data
from loaders.packed import PackedDataset, open_packed
from loaders.plan import BatchPlan, EpochPlan, View
from loaders.roi_jobs import Job, Worker

PROFILED = ("roi", "roi:256", "roi:keep", PLAIN)
_NO_DECODER = 0  # the library refuses it at once


@njit(cache=True, nogil=True)
def _load_all(
    with_decoder: bool,
    addresses: np.ndarray,
    lengths: np.ndarray,
    index_addresses: np.ndarray,
    index_counts: np.ndarray,
    orientations: np.ndarray,
    windows: np.ndarray,
    flips: np.ndarray,
    out: np.ndarray,
    facts: np.ndarray,
    scratch: np.ndarray,
    statuses: np.ndarray,
) -> None:
    """Load samples into the places of ``out`` (n, 3, resolution, columns) in turn; note how each ended."""
    for sample in range(len(addresses)):
        handle = create_handle() if with_decoder else _NO_DECODER
        statuses[sample] = load_sample(
            handle,
            bytes_at(addresses[sample], lengths[sample]),
            bytes_at(index_addresses[sample], 4 * index_counts[sample]).view(np.uint32),
            orientations[sample],
            windows[sample],
            flips[sample],
            out[sample % len(out)],
            facts,
            scratch,
        )
        if with_decoder:
            destroy_handle(handle)


@njit(cache=True, nogil=True)
def _make_decoders(count: int) -> None:
    """Make a decoder for each of so many images, as the loader does."""
    for _ in range(count):
        destroy_handle(create_handle())


@njit(cache=True, nogil=True)
def _check_all(
    addresses: np.ndarray, lengths: np.ndarray, index_addresses: np.ndarray, index_counts: np.ndarray
) -> np.uint64:
    """Compute all checksums; return what they come to, so that none is left out."""
    total = np.uint64(0)
    for sample in range(len(addresses)):
        total ^= xxh64(bytes_at(addresses[sample], lengths[sample]))
        total ^= xxh64(bytes_at(index_addresses[sample], 4 * index_counts[sample]))
    return total


@njit(cache=True, nogil=True)
def _read_all(paths: np.ndarray, offsets: np.ndarray, scratch: np.ndarray) -> int:
    """Read all files; return their bytes."""
    total = 0
    for sample in range(len(offsets) - 1):
        file = open_file(paths[offsets[sample] : offsets[sample + 1]], scratch)
        total += read_at(file, 0, scratch[: max(0, min(file_size(file), len(scratch)))])
        close_file(file)
    return total


@njit(cache=True, nogil=True)
def _convert_all(count: int, rows: np.ndarray, out: np.ndarray) -> None:
    """Convert so many images of ``rows`` (3, columns), the same one throughout, into the places of ``out`` in turn."""
    for sample in range(count):
        image = out[sample % len(out)]
        for y in range(image.shape[1]):
            ycbcr_to_rgb(rows[0], rows[1], rows[2], image[0, y], image[1, y], image[2, y])


class SamplePath:
    """The path of a set's images, as a whole and in parts.

    Args:
        dataset: the images, packed or plain.
        resolution, batch_size: of the batches.
    """

    def __init__(self, dataset: ImageDataset, resolution: int, batch_size: int) -> None:
        load_library()
        self.dataset, self.worker = dataset, Worker()
        self.epoch = EpochPlan(dataset, 0, View(resolution, batch_size, scale=SCALE, ratio=RATIO, flip=FLIP))
        plans = list(self.epoch)
        self.indices = np.concatenate([plan.indices for plan in plans])
        self.windows = np.concatenate([plan.windows for plan in plans])
        self.flips = np.concatenate([plan.flips for plan in plans])
        self.out = np.empty((batch_size, 3, resolution, resolution), np.uint8)
        self.statuses = np.zeros(len(dataset), np.int32)
        if isinstance(dataset, PackedDataset):
            records = dataset.records.select(self.indices)
            self.places = records.addresses, records.lengths, records.index_addresses, records.index_counts
        else:
            self._files = [np.fromfile(dataset.paths[index], np.uint8) for index in self.indices.tolist()]
            addresses = np.array([file.ctypes.data for file in self._files], np.int64)
            none = np.zeros(len(dataset), np.int64)
            self.places = addresses, np.array([len(file) for file in self._files], np.int64), none, none

    def unreadable(self) -> np.ndarray:
        """Make room for all images; return the indices, int64, of those that compiled code cannot load."""
        while True:
            self.load(True, self.out, self.worker.scratch)
            self.worker.facts[0] = 2 * len(self.worker.scratch)  # what ``grow`` takes for the need
            if not (self.statuses == Status.SCRATCH_TOO_SMALL).any() or not self.worker.grow():
                return self.indices[self.statuses != Status.OK]

    def calls(self) -> dict[str, Callable[[], object]]:
        """Return what to measure, by name: steps, ``load_sample`` up to the end of a step, and ``whole``."""
        scratch = self.worker.scratch
        no_columns = np.empty((*self.out.shape[:3], 0), np.uint8)
        colored = int((self.dataset.forms != PixelForm.GRAY).sum())
        rows = np.full((3, self.out.shape[3]), 1 << 15, np.uint16)
        paths = self.dataset.paths
        return {
            "batch": lambda: [self._job(plan) for plan in self.epoch],
            "read, check": (
                (lambda: _check_all(*self.places))
                if isinstance(self.dataset, PackedDataset)
                else (lambda: _read_all(paths.buffer, paths.offsets, scratch))
            ),
            "header": lambda: self.load(False, self.out, scratch[:0], Status.SCRATCH_TOO_SMALL),
            "to cut": lambda: self.load(False, self.out, scratch, Status.BAD),
            "decoder": lambda: _make_decoders(len(self.indices)),
            "to decode": lambda: self.load(True, no_columns, scratch, Status.BAD),
            "to color": lambda: self.load(True, self.out, scratch, Status.OK),
            "color": lambda: _convert_all(colored, rows, self.out),
            "whole": self._work,
        }

    def _work(self) -> None:
        for plan in self.epoch:
            self._job(plan).work(self.worker)

    def _job(self, plan: BatchPlan) -> Job:
        return Job(self.dataset, plan, self.out[: len(plan)], {}, False)

    def load(self, with_decoder: bool, out: np.ndarray, scratch: np.ndarray, expected: Status | None = None) -> None:
        """Call ``load_sample`` for all images.

        Args:
            with_decoder: give it a decoder; without one it ends when it would decode.
            out: uint8 (batch_size, 3, resolution, columns); without columns it ends when it would resample.
            scratch: uint8; where that is empty it ends behind the header.
            expected: how all have to end; None for however they do.

        Raises:
            RuntimeError: some ended otherwise.
        """
        _load_all(
            with_decoder,
            *self.places,
            self.dataset.orientations[self.indices],
            self.windows,
            self.flips,
            out,
            self.worker.facts,
            scratch,
            self.statuses,
        )
        if expected is not None and (self.statuses != expected).any():
            ends = {Status(status).name for status in np.unique(self.statuses)}
            raise RuntimeError(f"load_sample ended with {', '.join(sorted(ends))} in place of {expected.name}")


def profile(loader: str, dataset: ImageDataset, resolution: int, batch_size: int, repetitions: int) -> Profile:
    """Measure the steps in turns, over and over.

    Raises:
        DataError: none of the images is one that compiled code can load.
    """
    readable, path = dataset, SamplePath(dataset, resolution, batch_size)
    unreadable = path.unreadable()
    if len(unreadable):
        readable = dataset.select(np.setdiff1d(np.arange(len(dataset)), unreadable))
        if not len(readable):
            raise DataError(f"{dataset.name} has no images that the region loader reads itself")
        path = SamplePath(readable, resolution, batch_size)
        path.unreadable()
    calls = path.calls()
    measured: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions + 1):
        for name, call in calls.items():
            begin = time.thread_time()
            call()
            if repetition:  # the first one compiles and fills caches
                measured[name].append(1000 * (time.thread_time() - begin) / len(readable))
    times = steps({name: Times.of(values) for name, values in measured.items()})
    return Profile(loader, resolution, len(readable), len(unreadable), times)


def steps(measured: dict[str, Times]) -> dict[str, Times]:
    """Return the times of STEPS and TOTALS from those of the calls."""
    times = {name: measured[name] for name in ("batch", "read, check", "header")}
    times["cut"] = measured["to cut"] - measured["header"]
    times["decoder"] = measured["decoder"]
    times["decode"] = measured["to decode"] - measured["to cut"] - measured["decoder"]
    times["resample"] = measured["to color"] - measured["to decode"] - measured["color"]
    times["color"] = measured["color"]
    times["sum"] = measured["batch"] + measured["read, check"] + measured["to color"]
    times["whole"] = measured["whole"]
    times["rest"] = times["whole"] - times["sum"]
    return times


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line("region_profile", __doc__)
    add = parser.add_argument
    add("--data", default="demo", help="a folder, demo, or a known data set's name; its training split is read")
    add("--loaders", type=listed(str, PROFILED), default=",".join(PROFILED), help=f"of {', '.join(PROFILED)}")
    add("--resolutions", type=listed(positive), default="128,224", help="sides of the images delivered, pixels")
    add("--batch-size", type=positive, default=64, help="images of a batch")
    add("--images", type=positive, default=500, help="images to measure over, at most")
    add("--repetitions", type=positive, default=20, help="times that each step is measured")
    add("--json", type=Path, metavar="FILE", help="write the records here")
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("region_profile", argv)
    return options


def run(options: argparse.Namespace) -> list[Report]:
    """Measure what the command line asks for, and write the files.

    Raises:
        DataError, PackError, ImportError: there are no data, they cannot be packed, or libjpeg-turbo is missing.
    """
    data = open_data(options.data)
    datasets = {}
    for name in options.loaders:
        if reason := why_missing(name):
            raise ImportError(reason)
        packed = prepare(name, data, data.train)
        dataset = data.train if packed is None else open_packed(packed).train
        good = np.setdiff1d(np.arange(len(dataset)), list(dataset.problems))
        datasets[name] = dataset.select(good[: options.images])
    cells = [(name, resolution) for resolution in options.resolutions for name in options.loaders]
    profiles = []
    with tqdm(cells, unit="set", disable=None, leave=False, dynamic_ncols=True) as progress:
        for name, resolution in progress:
            progress.set_postfix_str(f"{name}, {resolution} px")
            profiles.append(profile(name, datasets[name], resolution, options.batch_size, options.repetitions))
    machine = describe_machine()
    found = [report(profiles, machine)]
    write_reports(options, "Where the region loader's time goes", found, machine)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the files; return the exit code."""
    return run_program(parse(argv), run)


if __name__ == "__main__":
    sys.exit(main())
