"""Runs the benchmarks and writes their tables into docs/benchmarks.md.

    python bench/document.py --data DIR

The page holds a pair of marks for each table; what stands between them is replaced, the command that made it included.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/document.py`

from bench import memory, num_workers, region_profile, region_speed, throughput, training_loop
from bench.measure import CellError
from bench.options import command_line, listed
from bench.resources import describe_machine
from bench.tables import Sheet
from bench.variants import PREPARATION_ERRORS
from loaders.files import atomic_file

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Section:
    """A part of the page that a benchmark fills.

    Attributes:
        program: name of the script.
        arguments: for it, without ``--data``.
        needs_data: it takes ``--data``.
        make: from the command line's arguments to tables and a note below them.
    """

    program: str
    arguments: str
    needs_data: bool
    make: Callable[[list[str]], tuple[list[Sheet], str]]

    def text(self, data: str) -> str:
        """Run the benchmark and return what belongs between the marks."""
        arguments = shlex.split(self.arguments)
        tables, note = self.make((["--data", data] if self.needs_data else []) + arguments)
        shown = " ".join(
            ["python", f"bench/{self.program}.py", *(["--data DIR"] if self.needs_data else []), *arguments]
        )
        parts = [f"    {shown}", *(sheet.markdown() for sheet in tables), note]
        return "\n\n".join(part for part in parts if part) + f"\n\n{date.today():%d %B %Y}: {describe_machine()}."


def _throughput(arguments: list[str]) -> tuple[list[Sheet], str]:
    results = throughput.run(throughput.parse(arguments))
    return throughput.sheets(results), throughput.disturbance(results)


def _num_workers(arguments: list[str]) -> tuple[list[Sheet], str]:
    results = num_workers.run(num_workers.parse(arguments))
    said = [f"- {title}: {sentence}" for title, of in num_workers.explanations(results).items() for sentence in of]
    return num_workers.sheets(results), "\n".join([*said, "", num_workers.disturbance(results)]).strip()


def _regions(arguments: list[str]) -> tuple[list[Sheet], str]:
    rows = region_speed.run(region_speed.parse(arguments))
    return region_speed.sheets(rows), region_speed.notes(rows)


def _region_profile(arguments: list[str]) -> tuple[list[Sheet], str]:
    profiles = region_profile.run(region_profile.parse(arguments))
    return region_profile.sheets(profiles), region_profile.notes(profiles)


def _training_loop(arguments: list[str]) -> tuple[list[Sheet], str]:
    return training_loop.sheets(training_loop.run(training_loop.parse(arguments))), ""


def _memory(arguments: list[str]) -> tuple[list[Sheet], str]:
    return memory.sheets(memory.run(memory.parse(arguments))), ""


SECTIONS = {
    "loaders": Section(
        "throughput",
        "--loaders torch,dali,peer:dali,peer:dali-windows,peer:torchvision,peer:torchvision-v2 --num-workers 2 "
        "--resolutions 128,224 --seconds 3 --rounds 4",
        True,
        _throughput,
    ),
    "workers": Section(
        "throughput",
        "--loaders torch,dali --num-workers 0,1,2 --resolutions 224 --output uint8 --seconds 3 --rounds 3",
        True,
        _throughput,
    ),
    "num-workers": Section(
        "num_workers",
        "--loaders torch,dali,ffcv,roi --num-workers 0,1,2,3 --resolutions 96 --train resnet10t --seconds 3 --rounds 3",
        True,
        _num_workers,
    ),
    "regions": Section("region_speed", "--output uint8 --seconds 3 --rounds 5", True, _regions),
    "regions-float32": Section(
        "region_speed", "--output float32 --runs 224,128 --seconds 3 --rounds 3", True, _regions
    ),
    "region-profile": Section("region_profile", "--repetitions 20", True, _region_profile),
    "training-loop": Section(
        "training_loop", "--models resnet10t --resolutions 64,96 --seconds 8 --rounds 5", False, _training_loop
    ),
    "memory": Section(
        "memory", "--loaders torch,dali --num-workers 2 --resolutions 96,128,160,224 --epochs 10", True, _memory
    ),
}


def fill(page: str, name: str, text: str) -> str:
    """Return the page with the text between the marks of a section.

    Raises:
        ValueError: the page lacks the marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no {begin} ... {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line("document", __doc__)
    parser.add_argument("--data", default="demo", help="a folder of photos, demo, or a known data set's name")
    names: Any = ",".join(SECTIONS)
    parser.add_argument("--sections", type=listed(str, list(SECTIONS)), default=names, help=f"of {names}")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks and write each section when it is done; return the exit code."""
    options = parse(argv)
    for name in options.sections:
        print(f"{name}: {SECTIONS[name].program} {SECTIONS[name].arguments}", file=sys.stderr)
        try:
            text = SECTIONS[name].text(options.data)
        except (*PREPARATION_ERRORS, CellError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped; the sections before this one are written", file=sys.stderr)
            return 130
        page = fill(PAGE.read_text(), name, text)
        with atomic_file(PAGE) as temporary:
            temporary.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
