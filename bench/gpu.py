"""Everything that needs a GPU, in one command that ends by itself within a given time.

    python bench/gpu.py --data DIR --minutes 8 --json gpu.json --markdown gpu.md
    python bench/gpu.py --minutes 8 --cifar DIR --imagenette DIR

Sections: ``preparation``, what is done once (compiling, packing); ``correctness``, every GPU path against its twin on a
CPU; ``loaders``, how fast images reach the GPU; ``stall``, what a model loses when a loader feeds it; ``switch``, the
cost of another image size; ``accuracy``, whole runs on CIFAR-10 and Imagenette. Each is a process of its own with a
share of the time, so that a crash or a hang costs that section alone, and all that was found up to then is in the
files. Without a GPU the same code runs at tiny sizes on the CPU, Triton's kernels interpreted, in about a minute. What
is not installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/gpu.py`

from bench.gpu_process import Job, LeftOut, Section, SectionResult, run_module, run_section
from bench.gpu_report import Document, checked, notes, outcome, sheets
from bench.options import command_line, listed, positive, seconds, shown_command
from bench.resources import describe_machine
from loaders.cores import usable_cores

SHARES = {"preparation": 4.0, "correctness": 3.0, "loaders": 4.0, "stall": 4.0, "switch": 2.0, "accuracy": 5.0}
"""How the time is divided, in this order; what a section leaves over goes to those behind it."""

SECTIONS: dict[str, Section] = {name: partial(run_module, f"bench.gpu_{name}") for name in SHARES}
_FILE_WIDTH = 140  # characters, where the output is no terminal
_BATCH_SIZE, _SHADOW_BATCH_SIZE = 256, 4


def describe_device(device: str) -> str:
    """Return one line on the machine and its GPU."""
    if device != "cuda":
        return f"no GPU, {describe_machine()}"
    properties = torch.cuda.get_device_properties(0)
    memory = properties.total_memory / 2**30
    return f"{properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}, {describe_machine()}"


class Keeper:
    """Keeps the files and the progress bar up to date.

    Args:
        document: is given the results.
        json_file, markdown_file: None for none.
        progress: a bar over seconds.
    """

    def __init__(
        self, document: Document, json_file: Path | None, markdown_file: Path | None, progress: tqdm[Any]
    ) -> None:
        self._document = document
        self._files = json_file, markdown_file
        self._progress = progress
        self._begin = time.monotonic()
        self._written = -1

    def note(self, result: SectionResult) -> None:
        """Take what a section has reported so far."""
        sections = self._document.sections
        if not sections or sections[-1] is not result:
            sections.append(result)
            self._written = -1
        self._progress.set_postfix_str(f"{result.name}: {len(result.entries)} results")
        self._progress.update(round(time.monotonic() - self._begin) - self._progress.n)
        state = result.changes + (result.status != "running")
        if state != self._written:
            self._document.write(*self._files)
            self._written = state


def measure_sections(sections: Mapping[str, Section], job: Job, keeper: Keeper) -> None:
    """Run sections one after another.

    Args:
        sections: by name, of SHARES.
        job: what each is told; its seconds are those of all together.
        keeper: is told whenever something was found.
    """
    end = time.monotonic() + job.seconds
    left_out = [name for name in sections if name == "accuracy" and job.cifar is None and job.imagenette is None]
    names = [name for name in sections if name not in left_out]
    for number, name in enumerate(names):
        share = SHARES[name] / sum(SHARES[other] for other in names[number:])
        own = replace(job, seconds=max(0.0, end - time.monotonic()) * share)
        run_section(name, sections[name], own, keeper.note)
    for name in left_out:
        entry = LeftOut("whole runs", "give folders with --cifar or --imagenette")
        keeper.note(SectionResult(name, 0.0, status="left out", entries=[entry]))


def data_problem(source: str) -> str | None:
    """Index the data, or draw the demo set, where that has not been done; return why there are none, if so."""
    try:
        from loaders.opening import DataError, open_data
    except ImportError:  # the sections say what is missing
        return None
    try:
        open_data(source)
    except DataError as error:
        return str(error)
    return None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line("gpu", __doc__)
    add = parser.add_argument
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size = _BATCH_SIZE if device == "cuda" else _SHADOW_BATCH_SIZE
    add("--data", default="demo", help="a folder of photos, demo, or a known data set's name")
    add("--minutes", type=seconds, default=8.0, help="how long all of it may take")
    add("--sections", type=listed(str, list(SHARES)), default=",".join(SHARES), help=f"of {', '.join(SHARES)}")
    add("--batch-size", type=positive, default=batch_size, help="images of a batch")
    add("--num-workers", type=positive, default=max(1, int(usable_cores())), help="processes or threads of a loader")
    add("--cifar", type=Path, metavar="DIR", help="CIFAR-10 as image files in train/ and test/")
    add("--imagenette", type=Path, metavar="DIR", help="Imagenette as image files in train/ and val/")
    add("--json", type=Path, metavar="FILE", help="write the results here")
    add("--markdown", type=Path, metavar="FILE", help="write them here as a page")
    options = parser.parse_args(argv)
    for name in ("cifar", "imagenette"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name}: {folder} is no folder")
    options.device = device
    options.command = shown_command("gpu", argv)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the files.

    Returns:
        The exit code: 0; 1 when there are no data, or a check or a section failed; 130 when it was interrupted.
    """
    end = time.monotonic()
    options = parse(argv)
    end += 60 * options.minutes
    document = Document(options.command, describe_device(options.device), options.device == "cpu")
    if document.is_shadow:
        print(document.remark(), file=sys.stderr)
    problem = data_problem(options.data) if set(options.sections) - {"accuracy"} else None
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    job = Job(
        options.device,
        options.data,
        options.batch_size,
        options.num_workers,
        end - time.monotonic(),
        options.cifar and options.cifar.absolute(),
        options.imagenette and options.imagenette.absolute(),
    )
    sections = {name: SECTIONS[name] for name in SHARES if name in options.sections}
    code = 0
    with tqdm(total=round(job.seconds), unit="s", disable=None, leave=False, dynamic_ncols=True) as progress:
        try:
            measure_sections(sections, job, Keeper(document, options.json, options.markdown, progress))
        except KeyboardInterrupt:
            code = 130
    document.write(options.json, options.markdown)
    show(document)
    return code or int(not document.is_good)


def show(document: Document) -> None:
    """Print what was found: how each section ended, its checks, tables, and what was left out or failed."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    for section in document.sections:
        console.rule(f"{section.name}: {outcome(section)}", align="left", characters="-")
        for line in (*checked(section), *notes(section)):
            console.print(line, highlight=False, markup=False)
        console.print(*(sheet.terminal() for sheet in sheets(section)), sep="\n")
    console.print(f"{document.machine}.", document.remark(), sep="\n", highlight=False)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
