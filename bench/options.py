"""Command-line options that the benchmarks share."""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from bench.variants import USUAL_LOADERS, why_missing
from loaders.packed_manifest import is_packed

Item = TypeVar("Item")
INSTALLED = "installed"  # in place of loaders' names: those that are


def listed(convert: Callable[[str], Item], allowed: Sequence[Item] = ()) -> Callable[[str], list[Item]]:
    """Return the converter of a comma-separated option.

    Args:
        convert: of one item; a ValueError refuses it.
        allowed: the items to choose from; empty for any.
    """

    def parse(text: str) -> list[Item]:
        try:
            items = [convert(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        unknown = [str(item) for item in items if allowed and item not in allowed]
        if unknown:
            choice = ", ".join(map(str, allowed))
            raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; choose from {choice}")
        if not items:
            raise argparse.ArgumentTypeError("the list is empty")
        return items

    return parse


def positive(text: str) -> int:
    """Convert a number that is at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def not_negative(text: str) -> int:
    """Convert a number that is at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return number


def seconds(text: str) -> float:
    """Convert a duration above 0."""
    duration = float(text)
    if not duration > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return duration


def command_line(program: str, documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser whose description is the first line of the module's documentation."""
    return argparse.ArgumentParser(
        prog=f"python bench/{program}.py",
        description=(documentation or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """Add the options of a measurement in turns."""
    parser.add_argument("--seconds", type=seconds, default=5.0, help="length of a turn")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each cell")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device and --json."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default, help="where the batches are needed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")


def add_reports(parser: argparse.ArgumentParser) -> None:
    """Add --csv and --html."""
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the records here as a table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts and tables here")


def add_loaders(parser: argparse.ArgumentParser, known: Sequence[str]) -> None:
    """Add --data, and --loaders, whose value `named_loaders` resolves."""
    usual = ", ".join(USUAL_LOADERS)
    parser.add_argument(
        "--data", default="demo", help="a folder, demo, or a known data set's name; its training split is read"
    )
    parser.add_argument(
        "--loaders",
        type=listed(str, [*known, INSTALLED]),
        default=INSTALLED,
        help=f"of {', '.join(known)}; {INSTALLED}: {usual} where they are, roi for a packed set",
    )


def installed_loaders() -> list[str]:
    """Return the usual loaders that are here."""
    return [name for name in USUAL_LOADERS if not why_missing(name)]


def named_loaders(options: argparse.Namespace) -> list[str]:
    """Return the loaders that the command line names, each once."""
    usual = ["roi"] if is_packed(Path(options.data).expanduser()) else installed_loaders()
    named = (usual if name == INSTALLED else [name] for name in options.loaders)
    return list(dict.fromkeys(itertools.chain(*named)))


def stopped(options: argparse.Namespace) -> str:
    """Return what to say to whom has stopped a benchmark."""
    written = [str(file) for file in (options.json, options.csv, options.html) if file]
    return "stopped" + (f"; what was finished is in {', '.join(written)}" if written else "")


def shown_command(program: str, argv: Sequence[str] | None) -> str:
    """Return the command that started a benchmark, as it is typed."""
    return shlex.join(["python", f"bench/{program}.py", *(sys.argv[1:] if argv is None else argv)])
