"""The report of a run: one self-contained HTML file, made of what the run directory holds.

``python -m engine.report RUN`` makes it anew. Every part is optional: a run that was interrupted, or had no validation,
gives a shorter report.
"""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from engine.charts import confusion_chart, number, profile_chart, shorten
from engine.command import fail
from engine.curves import curves, find_stages, training_rate
from engine.rundir import read_records
from engine.samples import FILE_NAME as PREDICTIONS
from engine.samples import with_pictures
from engine.time_spent import Record, epoch_records, time_spent
from engine.verdict import verdict
from loaders.files import atomic_file

_WHOLE_MATRIX = 30  # classes up to which the confusion matrix is shown whole
_PART_OF_MATRIX = 20  # classes shown of a larger one
_BARS = 40  # classes up to which each has its bar in the class distribution
_ROWS = 200  # bad samples listed


class ReportError(ValueError):
    """There is no run to report on."""


def write_report(run_dir: Path, verdict_text: str | None = None) -> Path:
    """Write ``report.html`` into a run directory.

    Reads metrics.jsonl, config.toml, env.json, transforms.txt, result.json (its ``reason``: why the run ended),
    confusion.csv, per_class.csv, class_counts.csv, bad_samples.csv, predictions.json (see ``engine.samples``) and
    resolutions.json (a list of objects with ``resolution``, ``top1``, ``top5`` and ``loss``), each if it is there.

    Args:
        run_dir: the run's directory.
        verdict_text: the verdict as the terminal showed it; judged anew from the records if None.

    Returns:
        The path of the report.

    Raises:
        ReportError: the directory is not that of a run.
    """
    if not (run_dir / "metrics.jsonl").exists() and not (run_dir / "config.toml").exists():
        raise ReportError(f"{run_dir} is no run directory: it has neither metrics.jsonl nor config.toml")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "duration": duration,
        "shorten": shorten,
        "options": mark_options,
        "setting": _plain,
    }
    path = run_dir / "report.html"
    html = environment.get_template("report.html.j2").render(collect(run_dir, verdict_text))
    with atomic_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="replace")
    return path


def collect(run_dir: Path, verdict_text: str | None = None) -> dict[str, Any]:
    """Return all that the template shows."""
    records = read_records(run_dir / "metrics.jsonl")
    config = tomllib.loads(_text(run_dir / "config.toml"))
    env = json.loads(_text(run_dir / "env.json") or "{}")
    ending = json.loads(_text(run_dir / "result.json") or "{}")
    epochs = epoch_records(records)
    stages = find_stages(epochs)
    settings = {name: table for name, table in config.items() if isinstance(table, dict)}
    if verdict_text is None:
        verdict_text = verdict(
            records,
            device=str(_setting(settings, "run", "device") or "cpu"),
            loader=str(_setting(settings, "loader", "loader") or ""),
        ).sentence
    classes, confusion = read_confusion(run_dir / "confusion.csv")
    return {
        "title": f"{_setting(settings, 'model', 'model') or 'Training'} on {_data_name(settings)}",
        "run_name": run_dir.resolve().name,
        "written": datetime.now().astimezone().strftime("%d %B %Y, %H:%M").lstrip("0"),
        "machine": _machine(env),
        "verdict": verdict_text,
        "headlines": headlines(epochs, _setting(settings, "optimizer", "epochs"), ending.get("reason", "")),
        "curves": curves(records, epochs, stages),
        "stages": stages,
        "time": _time_parts(epochs),
        "resolutions": json.loads(_text(run_dir / "resolutions.json") or "[]"),
        "confusion": _confusion_part(classes, confusion),
        "per_class": _table(run_dir / "per_class.csv"),
        "samples": with_pictures(json.loads(_text(run_dir / PREDICTIONS) or "[]")[:24]),
        "distribution": _distribution(_table(run_dir / "class_counts.csv")),
        "bad_samples": _table(run_dir / "bad_samples.csv"),
        "bad_samples_shown": _ROWS,
        "transforms": _text(run_dir / "transforms.txt"),
        "settings": settings,
        "environment": env,
    }


def headlines(epochs: Sequence[Record], planned: int | None, reason: str) -> list[tuple[str, str, str]]:
    """Return the figures at the head of the report: name, value, remark."""
    if not epochs:
        return []
    figures: list[tuple[str, str, str]] = []
    measured = [(e["top1"], position) for position, e in enumerate(epochs, 1) if e.get("top1") is not None]
    done = _count(len(epochs), "epoch")
    if planned is not None and len(epochs) < planned:
        done = f"{len(epochs)} of {_count(planned, 'epoch')}" + (f": {reason}" if reason else "")
    if measured:
        best, position = max(measured, key=lambda pair: pair[0])
        figures.append(("Top-1 accuracy", f"{best:.2f} %", f"best, after epoch {position} of {len(epochs)}"))
    elif epochs[-1].get("train_loss") is not None:
        figures.append(("Training loss", number(epochs[-1]["train_loss"]), "after the last epoch; no validation"))
    spent = time_spent(epochs)
    figures.append(("Time", duration(spent.total), done))
    rate = training_rate(epochs)
    if rate is not None:
        figures.append(("Throughput", f"{number(rate)} images/s", "while training, waits included"))
    if spent.training:
        figures.append(("Waiting for data", f"{100 * spent.data_wait / spent.training:.1f} %", "of the training time"))
    joules = [e["joules"] for e in epochs if e.get("joules") is not None]
    if joules:
        energy, power = sum(joules), [e["power_w"] for e in epochs if e.get("power_w") is not None]
        mean = f"mean {np.mean(power):.0f} W" if power else "GPU"
        figures.append(("Energy", f"{number(energy / 3600)} Wh", f"{mean}, GPU alone"))
    return figures


def read_confusion(path: Path) -> tuple[list[str], np.ndarray]:
    """Return classes and counts of a confusion.csv; both empty if there is none."""
    rows = _rows(path)
    if len(rows) < 2:
        return [], np.zeros((0, 0), np.int64)
    return rows[0][1:], np.array([row[1:] for row in rows[1:]], np.int64)


def _confusion_part(classes: Sequence[str], matrix: np.ndarray) -> dict[str, Any] | None:
    if not matrix.sum():
        return None
    errors = matrix - np.diag(np.diag(matrix))
    shown = np.arange(len(classes))
    if len(classes) > _WHOLE_MATRIX:
        involved = errors.sum(axis=0) + errors.sum(axis=1)
        shown = np.sort(np.argsort(-involved, kind="stable")[:_PART_OF_MATRIX])
    support = matrix.sum(axis=1)
    pairs = []
    for place in np.argsort(-errors, axis=None, kind="stable")[:12].tolist():
        true, predicted = divmod(place, len(classes))
        if images := int(errors[true, predicted]):
            pairs.append((classes[true], classes[predicted], images, 100 * images / int(support[true])))
    chart = confusion_chart(matrix[np.ix_(shown, shown)], [classes[i] for i in shown.tolist()])
    return {"chart": chart, "pairs": pairs, "shown": len(shown), "classes": len(classes)}


def _distribution(counts: Sequence[dict[str, str]]) -> dict[str, Any] | None:
    if not counts:
        return None
    rows = [(row["class"], int(row["train"]), int(row["val"])) for row in counts]
    train = [row[1] for row in rows]
    part: dict[str, Any] = {
        "rows": rows,
        "train": sum(train),
        "val": sum(row[2] for row in rows),
        "largest": max(1, *(row[1] + row[2] for row in rows)),
        "ratio": max(train) / min(train) if min(train) else None,
        "profile": None,
    }
    if len(rows) > _BARS:
        part["profile"] = profile_chart(train, "Training images of each class")
        ordered = sorted(rows, key=lambda row: -row[1])
        part["rows"] = [*ordered[:5], *ordered[-5:]]
    return part


def _time_parts(epochs: Sequence[Record]) -> list[tuple[str, str, float, float]]:
    """Return name, color, seconds and share of what the time went into, in the order of the bar."""
    spent = time_spent(epochs)
    parts = [
        ("computing", "train", spent.compute),
        ("augmentation", "augmentation", spent.augmentation),
        ("waiting for data", "wait", spent.data_wait),
        ("evaluation", "evaluation", spent.evaluation),
        ("warm-up for new sizes", "switch", spent.switch),
        ("other", "faint", spent.other),
    ]
    return [(name, color, seconds, seconds / spent.total) for name, color, seconds in parts if seconds > 0]


def duration(seconds: float) -> str:
    """Write a time for people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def mark_options(text: str) -> Markup:
    """Set command-line options in a text apart, so that they are not broken over lines."""
    return Markup(re.sub(r"--[a-z][\w-]*", r"<code>\g<0></code>", str(escape(text))))


def _machine(env: dict[str, Any]) -> str:
    gpus = env.get("gpus") or []
    parts = [f"{len(gpus)} GPUs {gpus[0]}" if len(gpus) > 1 else gpus[0]] if gpus else []
    if env.get("cpu"):
        cores = env.get("usable_cores")
        parts.append(f"{env['cpu']}, {_count(cores, 'core')}" if cores else env["cpu"])
    if "torch" in env.get("packages", {}):
        parts.append(f"PyTorch {env['packages']['torch']}")
    return " · ".join(parts)


def _count(value: float, noun: str) -> str:
    return f"{value:g} {noun}{'' if value == 1 else 's'}"


def _data_name(settings: dict[str, Any]) -> str:
    source = str(_setting(settings, "data", "csv") or _setting(settings, "data", "data") or "images")
    return Path(source).name or source


def _setting(settings: dict[str, Any], table: str, key: str) -> Any:
    return settings.get(table, {}).get(key)


def _plain(value: Any) -> str:
    """Write a setting for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return (" " if any(isinstance(item, str) for item in value) else ", ").join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def _table(path: Path) -> list[dict[str, str]]:
    rows = _rows(path)
    return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]] if rows else []


@dataclass(frozen=True)
class Options:
    """Make the report of a run anew."""

    run: tyro.conf.Positional[Path]
    """Run directory."""


def main() -> None:
    options = tyro.cli(Options, prog="python -m engine.report")
    try:
        print(write_report(options.run))
    except (ReportError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
