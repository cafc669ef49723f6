"""What a run shows in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.curves import find_stages
from engine.report import duration
from engine.stopping import Ending
from engine.time_spent import Record


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    """Return the line that stays in the terminal after an epoch."""
    parts = [
        f"epoch {record['epoch'] + 1:>{len(str(epochs))}}/{epochs}",
        f"{record['resolution']:>3} px",
        f"loss {record['train_loss']:.3f}",
    ]
    if "top1" in record:
        parts += [f"val loss {record['val_loss']:.3f}", f"top-1 {record['top1']:.2f} %"]
    parts += [
        f"{record['images_per_second']:.0f} images/s",
        f"{record['data_wait_fraction']:.0%} waiting for data",
        f"{record['seconds']:.1f} s",
    ]
    return "  ".join(parts)


def print_summary(
    run: Path,
    records: Sequence[Record],
    ending: Ending,
    sentence: str,
    *,
    seconds: float,
    best: float | None,
    sizes: Sequence[Record] = (),
    num_bad: int = 0,
) -> None:
    """Print a run's stages, its accuracy, how it ended and the verdict.

    Args:
        run: the run's folder.
        records: its epoch records.
        sentence: the verdict.
        seconds: time it took.
        best: its best top-1, percent.
        sizes: evaluations of the final model at several resolutions.
        num_bad: files that could not be decoded.
    """
    console = Console(highlight=False)
    console.print()
    console.print(_stage_table(records))
    if best is not None:
        console.print(f"\nBest top-1: [bold]{best:.2f} %[/bold] in {duration(seconds)}; {ending.reason}.")
    else:
        console.print(f"\n{ending.reason[:1].upper()}{ending.reason[1:]} after {duration(seconds)}.")
    if sizes:
        shown = ", ".join(f"{row['top1']:.2f} % at {row['resolution']} px" for row in sizes)
        console.print(f"Top-1 by size: {shown}.", soft_wrap=True)
    if num_bad:
        console.print(f"{num_bad} files could not be decoded; they are listed in {run / 'bad_samples.csv'}.")
    console.print(f"Verdict: {sentence}", soft_wrap=True)
    if not ending.finished:
        console.print(f"Go on with: python -m engine.train --resume {run}", soft_wrap=True)
    console.print(f"Report: {run / 'report.html'}", soft_wrap=True)


def _stage_table(records: Sequence[Record]) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in ("epochs", "size", "batch", "train loss", "top-1", "images/s", "waiting for data", "time"):
        table.add_column(name, justify="right")
    for stage in find_stages(records):
        spent, final = stage.spent, stage.epochs[-1]
        first, last = stage.epochs[0]["epoch"] + 1, final["epoch"] + 1
        table.add_row(
            f"{first}-{last}" if last > first else str(first),
            f"{stage.resolution} px",
            str(stage.batch_size),
            _number(final.get("train_loss"), ".3f"),
            _number(final.get("top1"), ".2f", " %"),
            _number(stage.images_per_second, ".0f"),
            f"{spent.data_wait / spent.training:.0%}" if spent.training else "",
            duration(spent.total),
        )
    return table


def _number(value: float | None, form: str, unit: str = "") -> str:
    """Format a number that may be missing, or was not finite."""
    return "" if value is None else f"{value:{form}}{unit}"
