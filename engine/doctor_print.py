"""The doctor's findings in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.charts import number, shorten
from engine.doctor_data import DataFacts, Distribution
from engine.doctor_findings import Findings, advice, count, processor_shares
from engine.doctor_pixels import PixelFacts
from engine.doctor_rates import Prediction
from engine.roofline import LIMIT_NAMES, RESOURCE_NAMES

_LATENCY_WORTH_TELLING = 1e-4  # seconds
_BAR = 40  # characters of the longest bar
_CLASSES = 12  # shown, half of them the largest and half the smallest where there are more
_FILES = 5  # named of each kind
_ORIENTATIONS = {
    2: "mirrored", 3: "upside down", 4: "mirrored, upside down", 5: "transposed", 6: "to be turned right",
    7: "transversed", 8: "to be turned left",
}  # fmt: skip


def print_findings(findings: Findings) -> None:
    """Print what was found out, ending with what to do."""
    console = Console(highlight=False)
    _heading(console, "Installed")
    console.print(_component_table(findings))
    _heading(console, "This machine")
    console.print(_machine_table(findings))
    _heading(console, f"The data: {findings.facts.name}")
    _print_facts(console, findings.facts)
    _print_problems(console, findings)
    if findings.pixels:
        _print_pixels(console, findings.pixels)
    else:
        console.print("The pixels were not looked at, neither for mean and deviation nor for near duplicates.")
    if findings.costs:
        _heading(console, "Processor time that an image takes" + (f", with {findings.model}" * bool(findings.model)))
        console.print(_cost_table(findings))
    elif findings.failures:
        _heading(console, "Loaders")
    for name, reason in findings.failures.items():
        console.print(_shown(f"{name} is left out: {reason}"), soft_wrap=True)
    if findings.costs:
        _heading(console, "What to expect at best, and what sets the limit")
        console.print(_rate_table(findings))
        _print_ceilings(console, findings)
    _heading(console, "What to do, most useful first")
    for position, text in enumerate(advice(findings), 1):
        console.print(f"{position:>2}. {_shown(text)}", soft_wrap=True)
    if not advice(findings):
        suits = "this set and this machine suit each other" if findings.costs else "but no loader was measured"
        console.print(f"Nothing: {suits}.")


def _shown(text: str) -> str:
    """Return a text that may hold names of files, which need not be valid Unicode, for the console."""
    return escape(text.encode(errors="replace").decode())


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{escape(text)}[/bold]")


def _table(*columns: str, numbers: bool = True) -> Table:
    table = Table(header_style="dim", box=None, padding=(0, 2, 0, 0), show_header=any(columns))
    for position, name in enumerate(columns):
        table.add_column(name, justify="right" if numbers and position else "left", overflow="fold")
    return table


def _component_table(findings: Findings) -> Table:
    table = _table("", "", "", "", numbers=False)
    for one in findings.components:
        mark = "[green]✓[/green]" if one.usable else "[red]✗[/red]"
        table.add_row(mark, one.name, one.version or "missing", escape(one.note))
    return table


def _machine_table(findings: Findings) -> Table:
    capacity, disk = findings.capacity, findings.disk
    table = _table("", "", numbers=False)
    table.add_row("trains on", escape(capacity.device))
    table.add_row("usable cores", f"{capacity.cores:g}")
    table.add_row("memory", f"{byte_count(capacity.memory)}, of which {byte_count(capacity.available)} free")
    if capacity.shared_memory is not None:
        table.add_row("/dev/shm", f"{byte_count(capacity.shared_memory)} free")
    if math.isfinite(capacity.bus):
        table.add_row("to the GPU", f"{byte_count(capacity.bus)}/s")
    if disk is not None:
        whence = {
            "disk": "from the disk",
            "memory": "from the page cache, so that the disk's own rate is not known",
            "unknown": "from the disk or from memory, which this system does not tell",
        }[disk.source]
        rate = f"{byte_count(disk.bytes_per_second)}/s"
        table.add_row("reading", f"{rate}, {byte_count(disk.bytes_read)} of the set's files, {whence}")
        if disk.source != "memory" and disk.latency >= _LATENCY_WORTH_TELLING:
            table.add_row("", f"each file is waited for {number(1000 * disk.latency, 'ms')} before that")
    return table


def _print_facts(console: Console, facts: DataFacts) -> None:
    console.print(
        f"{count(facts.num_train, 'training image')} and {count(facts.num_val, 'validation image')} of "
        f"{count(len(facts.classes), 'class', 'classes')}, {byte_count(facts.total_bytes)}"
    )
    table = _table("", "smallest", "median", "largest")
    rows: tuple[tuple[str, Distribution, str], ...] = (
        ("width, px", facts.widths, "number"),
        ("height, px", facts.heights, "number"),
        ("megapixels", facts.megapixels, "number"),
        ("file", facts.bytes, "bytes"),
    )
    for name, values, kind in rows:
        show = byte_count if kind == "bytes" else number
        table.add_row(name, show(values.smallest), show(values.median), show(values.largest))
    console.print(table)
    console.print("Colors: " + ", ".join(f"{name} {images:,}" for name, images in facts.forms.items()))
    if facts.orientations:
        shown = ", ".join(f"{_ORIENTATIONS[value]} {images:,}" for value, images in facts.orientations.items())
        console.print(f"EXIF orientations, which every loader applies: {shown}")
    console.print(_class_table(facts))


def _class_table(facts: DataFacts) -> Table:
    """Draw a bar for each class, or for the largest and the smallest ones."""
    table = _table("class", "", "train", "val")
    table.columns[1].justify = "left"
    order = sorted(range(len(facts.classes)), key=lambda index: -facts.train_counts[index])
    largest = max(1, *facts.train_counts)
    if len(order) > _CLASSES:
        half = _CLASSES // 2
        chosen: list[int | None] = [*order[:half], None, *order[-half:]]
    else:
        chosen = list(order)
    for index in chosen:
        if index is None:
            table.add_row(f"… {len(order) - _CLASSES} more", "", "", "")
            continue
        train, val = facts.train_counts[index], facts.val_counts[index]
        bar = "█" * round(_BAR * train / largest) or ("▏" if train else "")
        table.add_row(_shown(shorten(facts.classes[index], 32)), f"[blue]{bar}[/blue]", f"{train:,}", f"{val:,}")
    return table


def _print_problems(console: Console, findings: Findings) -> None:
    duplicates = findings.duplicates
    _print_files(console, "Cannot be decoded", [f"{path}: {reason}" for path, reason in findings.bad_files])
    _print_files(console, "In validation and, byte for byte, in training", [f"{b} = {a}" for a, b in duplicates.across])
    _print_files(console, "Equal files of different classes", [f"{a} = {b}" for a, b in duplicates.conflicting])
    for text in _searched(findings):
        console.print(text, soft_wrap=True)


def _searched(findings: Findings) -> Iterator[str]:
    """Yield how much was looked at for such files, and where none were found."""
    duplicates, facts, pixels = findings.duplicates, findings.facts, findings.pixels
    bad = f"{len(findings.bad_files):,}" if findings.bad_files else "none"
    decoded = f"{pixels.num_train + pixels.num_val:,} decoded" if pixels else "no image decoded"
    headers = f"{count(facts.num_train + facts.num_val, 'header')} read"
    yield f"Unreadable files: {bad}, with {headers} and {decoded}."
    across = f"{len(duplicates.across):,}" if duplicates.across else "none"
    yield f"Files in both splits: {across}, among {duplicates.compared:,} compared."
    if duplicates.unchecked:
        yield f"Not compared, for want of time: {count(duplicates.unchecked, 'file')} of equal size."
    if duplicates.unread:
        yield f"Not compared, empty or impossible to read: {count(duplicates.unread, 'file')}."


def _print_files(console: Console, title: str, lines: list[str]) -> None:
    if not lines:
        return
    console.print(f"[red]{title}: {count(len(lines), 'file')}[/red]")
    for line in lines[:_FILES]:
        console.print(f"  {_shown(line)}", soft_wrap=True)
    if len(lines) > _FILES:
        console.print(f"  … {len(lines) - _FILES} more (--json lists all)")


def _print_pixels(console: Console, pixels: PixelFacts) -> None:
    lines = [f"{one.val} ~ {one.train} (correlation {one.similarity:.4f})" for one in pixels.near]
    _print_files(console, "In validation and, nearly the same, in training", lines)
    part = "all" if pixels.whole and pixels.num_compared == pixels.num_val else "as many as the time allowed, at random"
    console.print(
        f"Compared for near duplicates: {count(pixels.num_compared, 'validation image')} with "
        f"{count(pixels.num_train, 'training image')}, {part}. Copies of another quality, size or brightness are "
        "found, crops and mirror images are not.",
        soft_wrap=True,
    )
    if pixels.num_train:
        mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (pixels.mean, pixels.std))
        console.print(
            f"Red, green, blue of {count(pixels.num_train, 'training image')} at {pixels.resolution} px: "
            f"mean {mean}; standard deviation {std}",
            soft_wrap=True,
        )


def _loaders(findings: Findings) -> list[str]:
    return list(dict.fromkeys(cost.loader for cost in findings.costs))


def _cost_table(findings: Findings) -> Table:
    names = _loaders(findings)
    packed = {cost.resolution: cost.cpu_seconds for cost in findings.packing.costs} if findings.packing else {}
    columns = [
        *names,
        *(["roi, packed"] if packed else []),
        *([f"augmentation ({findings.augment})", "training step"] if findings.steps else []),
    ]
    table = _table("size", *columns)
    steps = {step.resolution: step for step in findings.steps}
    for size in dict.fromkeys(cost.resolution for cost in findings.costs):
        costs = {cost.loader: cost.cpu_seconds for cost in findings.costs if cost.resolution == size}
        step = steps.get(size)
        table.add_row(
            f"{size} px",
            *(f"{1000 * costs[name]:.2f} ms" if name in costs else "" for name in names),
            *([f"{1000 * packed[size]:.2f} ms"] if packed else []),
            *([f"{1000 * seconds:.2f} ms" for seconds in (step.augment_cpu_seconds, step.cpu_seconds)] if step else []),
        )
    return table


def _rate_table(findings: Findings) -> Table:
    table = _table("size", "loader", "workers", "images/s", "first epoch", "limit")
    for prediction in findings.predictions:
        table.add_row(
            f"{prediction.resolution} px",
            prediction.loader,
            str(prediction.num_workers),
            f"[bold]{number(prediction.ceilings.rate)}[/bold]",
            number(prediction.from_disk.rate),
            _limit(prediction),
        )
    return table


def _limit(prediction: Prediction) -> str:
    """Name what sets the limit, and who uses the processor where several share it."""
    text = LIMIT_NAMES[prediction.limit]
    shares = processor_shares(prediction)
    if prediction.ceilings.bound != "cores" or shares["loading"] > 0.99:
        return text
    return f"{text} (" + ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share > 0.01) + ")"


def _print_ceilings(console: Console, findings: Findings) -> None:
    """Say how much more the other resources would allow."""
    for prediction in findings.predictions:
        ceilings = prediction.ceilings
        others = sorted(
            (ceiling, resource)
            for resource, ceiling in ceilings.ceilings.items()
            if math.isfinite(ceiling) and resource != ceilings.bound
        )
        shown = ", ".join(
            f"{RESOURCE_NAMES[resource]} {number(ceilings.headroom[resource])} times that" for _, resource in others
        )
        if shown:
            console.print(
                f"At {prediction.resolution} px {RESOURCE_NAMES[ceilings.bound]} allows {number(ceilings.rate)} "
                f"images/s; {shown}.",
                soft_wrap=True,
            )


def byte_count(size: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return number(size, unit)
        size /= 1000
    return number(size, "TB")
