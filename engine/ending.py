"""The end of a run: the last evaluation, the report, the table and the verdict."""

from __future__ import annotations

from typing import Any

from engine.checkpoint import load_checkpoint
from engine.console import print_summary
from engine.metrics import EvaluationResult, write_class_counts_csv, write_confusion_csv, write_per_class_csv
from engine.report import write_report
from engine.samples import write_predictions
from engine.saved_model import FILE_NAME as MODEL
from engine.saving import BEST
from engine.stopping import Ending
from engine.trainer import Trainer
from engine.verdict import verdict


def finish(trainer: Trainer, ending: Ending) -> None:
    """Write what a finished or interrupted run shows. All ranks take part in the evaluations."""
    result, sizes = (None, []) if ending.interrupted else _final_evaluation(trainer)
    run = trainer.run
    if run is None:
        return
    if not run.file(MODEL).exists():
        trainer.saver.save_model()
    data = trainer.data
    write_class_counts_csv(
        run.file("class_counts.csv"), data.classes, data.train.class_counts(), data.val.class_counts()
    )
    records = run.epochs()
    judged = verdict(records, device=trainer.process.device.type, loader=trainer.config.loader.loader)
    run.write_json(
        "result.json",
        {
            "finished": ending.finished,
            "reason": ending.reason,
            "top1": result.top1 if result else trainer.position.best,
            "top5": result.top5 if result else None,
            "epochs": trainer.position.epoch,
            "seconds": trainer.clock.elapsed,
            "cause": judged.cause,
            "verdict": judged.sentence,
        },
    )
    write_report(run.path, judged.sentence)
    print_summary(
        run.path,
        records,
        ending,
        judged.sentence,
        seconds=trainer.clock.elapsed,
        best=trainer.position.best,
        sizes=sizes,
        num_bad=len(trainer.loader.bad_samples),
    )


def _final_evaluation(trainer: Trainer) -> tuple[EvaluationResult | None, list[dict[str, Any]]]:
    """Evaluate the best weights at every size asked for; write the tables and sample predictions."""
    if not len(trainer.data.val):
        return None, []
    position, options = trainer.position, trainer.config
    accuracies = [row[2] for row in position.history]
    last_is_best = bool(accuracies) and accuracies.index(max(accuracies)) == len(accuracies) - 1
    last = trainer.last_result
    if last is None or not last_is_best or position.next_batch:
        state = load_checkpoint(trainer.run.file(BEST))[1] if trainer.run and position.history else None
        state = trainer.process.broadcast(state)
        if state is not None:
            trainer.learner.load_state_dict(state)
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
    return result, sizes
