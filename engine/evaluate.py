"""Evaluate a trained model: ``python -m engine.evaluate RUN [DATA] [options]``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from engine.command import fail
from engine.config import Config, ConfigError
from engine.defaults import default_workers
from engine.distributed import DeviceError, process
from engine.evaluation import evaluate
from engine.metrics import EvaluationResult, write_confusion_csv, write_per_class_csv
from engine.model import ModelError, has_depthwise_convolutions, model_summary
from engine.precision import PrecisionError, resolve_amp
from engine.saved_model import SavedModelError, load_model
from engine.setup import open_images
from engine.toml import read_toml
from engine.values import comma_separated
from loaders.bad_samples import BadSampleError, BadSamples, TooManyBadSamplesError
from loaders.choice import choose_loader
from loaders.cores import usable_cores
from loaders.dataset import ImageData, ImageDataset
from loaders.opening import DataError, open_data
from loaders.pack_records import PackError
from loaders.registry import create_loader
from loaders.transfer import Transfer

USER_ERRORS = (
    BadSampleError,
    ConfigError,
    DataError,
    DeviceError,
    ImportError,
    ModelError,
    OSError,
    PackError,
    PrecisionError,
    SavedModelError,
    TooManyBadSamplesError,
)
_WORST_CLASSES = 10


@dataclass(frozen=True)
class Options:
    """Evaluate a trained model on a labeled data set."""

    run: Positional[Path]
    """A run's folder, or a model.safetensors."""
    data: Positional[str] = ""
    """The data set (default: the run's)."""
    split: Literal["val", "train"] = "val"
    """Which part of it."""
    resolutions: Annotated[tuple[int, ...], comma_separated(int, "N,N,...")] = ()
    """Sizes to evaluate at (default: the one stored with the model)."""
    tta: bool = False
    """Average over each image and its mirror image."""
    loader: Literal["auto", "roi", "dali", "ffcv", "torch"] = "auto"
    """What decodes the images."""
    num_workers: Annotated[int | Literal["auto"], tyro.conf.arg(aliases=["-j"])] = "auto"
    """Worker processes or threads of the loader."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 64
    """Images at a time."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    on_bad_sample: Literal["skip", "raise"] = "skip"
    """A file that cannot be decoded is left out and counted, or ends the evaluation."""
    output: Path | None = None
    """Folder to write confusion.csv and per_class.csv to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = tyro.cli(Options, prog="python -m engine.evaluate", args=argv)
    try:
        run(options)
    except USER_ERRORS as error:
        fail(error)
    return 0


def run(options: Options) -> list[tuple[int, EvaluationResult]]:
    """Evaluate, print and write; return the results by resolution.

    Raises:
        Exception: any of USER_ERRORS, whose message says what to do.
    """
    if options.batch_size < 1 or any(resolution < 1 for resolution in options.resolutions):
        raise ConfigError("--batch-size and --resolutions must be at least 1")
    with process(options.device) as this:
        model, saved = load_model(options.run, this.device)
        dataset = _with_classes(_open(options), saved.classes, options.split)
        bad = BadSamples(options.on_bad_sample, max_fraction=1.0)
        workers = options.num_workers
        if workers == "auto":
            workers = default_workers(usable_cores(this.local_world), this.device)
        resolution = max(options.resolutions or (saved.resolution,))
        backend: str = options.loader
        if backend == "auto":
            backend, _ = choose_loader(dataset, this.device, workers, resolution, options.batch_size)
        precision = resolve_amp(options.amp, this.device, depthwise=has_depthwise_convolutions(model))
        transfer = Transfer(this.device, saved.mean, saved.std, dtype=precision.dtype or torch.float32)
        results = []
        with create_loader(backend, (dataset,), workers, bad, this.device) as loader:
            for resolution in options.resolutions or (saved.resolution,):
                model_summary(model, resolution)  # refuses sizes that the architecture cannot take
                result, _ = evaluate(
                    model,
                    loader,
                    transfer,
                    dataset,
                    this,
                    precision,
                    resolution=resolution,
                    batch_size=options.batch_size,
                    crop_fraction=saved.crop_fraction,
                    flip=options.tta,
                    show_progress=True,
                )
                results.append((resolution, result))
    _print(results, dataset, len(bad))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        write_confusion_csv(options.output / "confusion.csv", results[-1][1], saved.classes)
        write_per_class_csv(options.output / "per_class.csv", results[-1][1], saved.classes)
    return results


def _open(options: Options) -> ImageData:
    """Open the data named or, by the run's own options, the data it was trained on."""
    if options.data:
        return open_data(options.data)
    folder = options.run if options.run.is_dir() else options.run.parent
    if not (folder / "config.toml").exists():
        raise DataError(f"{folder} has no config.toml that says what it was trained on: name the DATA")
    return open_images(read_toml(folder / "config.toml", Config()))


def _with_classes(data: ImageData, classes: tuple[str, ...], split: str) -> ImageDataset:
    """Return the split with labels that count the model's classes."""
    dataset = data.val if split == "val" else data.train
    unknown = sorted(set(dataset.classes) - set(classes))
    if unknown:
        raise DataError(f"{data.name} has classes that the model does not know: {', '.join(unknown[:8])}")
    numbers = np.array([classes.index(name) for name in dataset.classes], np.int64)
    return dataset.relabeled(classes, numbers[dataset.labels])


def _print(results: list[tuple[int, EvaluationResult]], dataset: ImageDataset, bad: int) -> None:
    console = Console(highlight=False)
    for resolution, result in results:
        console.print(
            f"{dataset.name} at {resolution} px: top-1 [bold]{result.top1:.2f} %[/bold], top-5 {result.top5:.2f} %, "
            f"loss {result.loss:.4f}, {result.count} images"
        )
    if bad:
        console.print(f"{bad} files could not be decoded and were left out")
    scores = results[-1][1].per_class
    worst = [i for i in np.argsort(np.nan_to_num(scores.f1, nan=2.0)) if scores.support[i]][:_WORST_CLASSES]
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in ("class", "precision", "recall", "F1", "images"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for index in worst:
        values = (scores.precision[index], scores.recall[index], scores.f1[index])
        table.add_row(
            dataset.classes[index],
            *("" if np.isnan(value) else f"{value:.3f}" for value in values),
            str(scores.support[index]),
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
