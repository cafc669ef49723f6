"""The end of a run: the last evaluation, the report, the table and the verdict."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.checkpoint import load_checkpoint
from engine.curves import find_stages
from engine.metrics import EvaluationResult, write_class_counts_csv, write_confusion_csv, write_per_class_csv
from engine.report import duration, write_report
from engine.samples import write_predictions
from engine.trainer import BEST, Ending, Trainer
from engine.verdict import verdict
from loaders.cores import usable_cores


def finish(trainer: Trainer, ending: Ending) -> None:
    """Write what a finished or interrupted run shows. All ranks take part in the evaluations."""
    result = None if ending.interrupted else _final_evaluation(trainer)
    run = trainer.run
    if run is None:
        return
    data = trainer.data
    write_class_counts_csv(
        run.file("class_counts.csv"), data.classes, data.train.class_counts(), data.val.class_counts()
    )
    records = run.epochs()
    options = trainer.config
    sentence = verdict(
        records,
        num_workers=int(options.loader.num_workers),
        cores=usable_cores(trainer.process.local_world),
        device=trainer.process.device.type,
        loader=options.loader.loader,
        world_size=trainer.process.world,
    )
    run.write_json(
        "result.json",
        {
            "finished": ending.finished,
            "reason": ending.reason,
            "top1": result.top1 if result else trainer.position.best,
            "top5": result.top5 if result else None,
            "epochs": trainer.position.epoch,
            "seconds": trainer.clock.elapsed,
            "verdict": sentence,
        },
    )
    report = write_report(run.path, sentence)
    _print_summary(records, ending, sentence, trainer, str(report))


def _final_evaluation(trainer: Trainer) -> EvaluationResult | None:
    """Evaluate the best weights at every size asked for; write the tables and sample predictions."""
    if not len(trainer.data.val):
        return None
    position, options = trainer.position, trainer.config
    last_is_best = bool(position.history) and position.history[-1][2] == position.best
    last = trainer.last_result
    if last is None or not last_is_best:
        best = trainer.process.broadcast(trainer.run.file(BEST) if trainer.run and position.history else None)
        if best is not None:
            trainer.learner.load_state_dict(load_checkpoint(best)[1])
        last = trainer.evaluate(options.resolution.val_resolution)
    result, predictions = last
    sizes: list[dict[str, Any]] = []
    for resolution in options.resolution.final_resolutions:
        at_size = result if resolution == options.resolution.val_resolution else trainer.evaluate(resolution)[0]
        sizes.append({"resolution": resolution, "top1": at_size.top1, "top5": at_size.top5, "loss": at_size.loss})
    if trainer.run is not None:
        run, classes = trainer.run, trainer.data.classes
        write_confusion_csv(run.file("confusion.csv"), result, classes)
        write_per_class_csv(run.file("per_class.csv"), result, classes)
        write_predictions(
            run.path, trainer.data.val, predictions.indices, predictions.predicted, predictions.probabilities
        )
        if sizes:
            run.write_json("resolutions.json", sizes)
    return result


def _print_summary(records: list[dict[str, Any]], ending: Ending, sentence: str, trainer: Trainer, report: str) -> None:
    console = Console(highlight=False)
    table = Table(title=None, header_style="bold", box=None, padding=(0, 2, 0, 0))
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
    console.print()
    console.print(table)
    best = trainer.position.best
    if best is not None:
        console.print(f"\nBest top-1: [bold]{best:.2f} %[/bold] in {duration(trainer.clock.elapsed)}; {ending.reason}.")
    else:
        console.print(f"\n{ending.reason[:1].upper()}{ending.reason[1:]} after {duration(trainer.clock.elapsed)}.")
    sizes = trainer.run.file("resolutions.json") if trainer.run else None
    if sizes is not None and sizes.exists():
        shown = ", ".join(f"{row['top1']:.2f} % at {row['resolution']} px" for row in json.loads(sizes.read_text()))
        console.print(f"Top-1 by size: {shown}.")
    if trainer.bad_samples:
        console.print(f"{len(trainer.bad_samples)} files could not be decoded; they are listed in bad_samples.csv.")
    console.print(f"Verdict: {sentence}", soft_wrap=True)
    if not ending.finished:
        path = trainer.run.path if trainer.run else ""
        console.print(f"Go on with: python -m engine.train --resume {path}", soft_wrap=True)
    console.print(f"Report: {report}", soft_wrap=True)


def _number(value: float | None, form: str, unit: str = "") -> str:
    """Format a number that may be missing, or was not finite."""
    return "" if value is None else f"{value:{form}}{unit}"
