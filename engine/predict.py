"""Classify images with a trained model: ``python -m engine.predict RUN FOLDER``."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import nn
from tqdm import tqdm

from engine.command import fail
from engine.defaults import default_workers
from engine.distributed import process
from engine.model import ModelError
from engine.saved_model import SavedModel, SavedModelError, load_model
from loaders.bad_samples import BadSample, BadSamples
from loaders.choice import choose_loader
from loaders.contract import Loader
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.files import atomic_file
from loaders.opening import DataError, open_unlabeled
from loaders.plan import EpochPlan, View
from loaders.registry import create_loader
from loaders.transfer import Transfer


@dataclass(frozen=True)
class Options:
    """Classify all images of a folder with a trained model.

    Writes a CSV with path, class and probability of every image, in order of the paths. A file that cannot be decoded
    has its row too, without a class, and with the reason as ``problem``.
    """

    run: tyro.conf.Positional[Path]
    """Run directory, or a model.safetensors."""
    folder: tyro.conf.Positional[Path]
    """Folder of images, at any depth, or one image."""
    output: Path = Path("predictions.csv")
    """The CSV to write."""
    top_k: int = 1
    """Classes to write for each image, the most probable first."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 64
    """Images at a time."""
    loader: Literal["auto", "roi", "dali", "ffcv", "torch"] = "auto"
    """What decodes the images."""
    num_workers: Annotated[int | Literal["auto"], tyro.conf.arg(aliases=["-j"])] = "auto"
    """Worker processes or threads of the loader."""
    device: str = "auto"
    """auto, cuda or cpu."""


@dataclass(frozen=True, eq=False)
class TopClasses:
    """The most probable classes of images.

    Attributes:
        indices: int64 (n,), samples of the data set, rising; those that could not be decoded are missing.
        classes: int64 (n, k), the most probable first.
        probabilities: float32 (n, k).
    """

    indices: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray


def predict(
    model: nn.Module,
    saved: SavedModel,
    loader: Loader,
    dataset: ImageDataset,
    device: torch.device,
    *,
    batch_size: int,
    top_k: int = 1,
    show_progress: bool = False,
) -> TopClasses:
    """Classify a data set in float32.

    Args:
        model: in evaluation mode, on the device.
        saved: what is known about it.
        loader: over the data set.
        top_k: classes for each image; at most as many as there are.
    """
    transfer = Transfer(device, saved.mean, saved.std)
    plan = EpochPlan(dataset, 0, View.evaluation(saved.resolution, batch_size, saved.crop_fraction))
    count = min(top_k, len(saved.classes))
    columns: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    with tqdm(total=len(dataset), desc="classifying", unit="image", disable=not show_progress) as progress:
        for batch in transfer.batches(loader.run(plan), augmentation=None):
            progress.update(min(batch_size, len(dataset) - progress.n))
            if not len(batch):  # all of its images are bad
                continue
            with torch.inference_mode():
                top = model(batch.images).float().softmax(1).topk(count, dim=1)
            columns.append((batch.indices, top.indices, top.values))
    if not columns:
        return TopClasses(np.empty(0, np.int64), np.empty((0, count), np.int64), np.empty((0, count), np.float32))
    indices, classes, probabilities = (torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True))
    order = np.argsort(indices, kind="stable")
    return TopClasses(indices[order], classes[order], probabilities[order])


def write_predictions_csv(
    path: Path, dataset: ImageDataset, top: TopClasses, classes: tuple[str, ...], bad: dict[int, str]
) -> None:
    """Write a row for every image of the data set.

    Args:
        path: the file to write, replaced whole.
        dataset: the classified images.
        top: their classes.
        classes: names.
        bad: reasons for the images that could not be decoded, by index.
    """
    count = top.classes.shape[1]
    head = ["path", "class", "probability"]
    head += [f"{name}_{rank}" for rank in range(2, count + 1) for name in ("class", "probability")]
    row_of = np.full(len(dataset), -1, np.int64)
    row_of[top.indices] = np.arange(len(top.indices))
    with (
        atomic_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*head, "problem"])
        for index in range(len(dataset)):
            row = row_of[index]
            cells: list[str] = [""] * (2 * count)
            if row >= 0:
                cells[::2] = [classes[c] for c in top.classes[row]]
                cells[1::2] = [f"{p:.4f}" for p in top.probabilities[row]]
            writer.writerow([dataset.paths[index], *cells, bad.get(index, "")])


def run(options: Options) -> str:
    """Do what the options say; return a line on what was done.

    Raises:
        SavedModelError, ModelError, DataError, ImportError, OSError, ValueError: whose message says what to repair.
    """
    if options.top_k < 1 or options.batch_size < 1:
        raise ValueError("--top-k and --batch-size must be at least 1")
    with process(options.device) as this:
        model, saved = load_model(options.run, this.device)
        model.to(memory_format=torch.channels_last)
        dataset = open_unlabeled(options.folder)
        cores = usable_cores()
        workers = default_workers(cores, this.device) if options.num_workers == "auto" else options.num_workers
        name: str = options.loader
        if name == "auto":
            name, _ = choose_loader(dataset, this.device, workers, saved.resolution, options.batch_size)
        bad_samples = BadSamples("skip", max_fraction=1.0)
        bad_samples.record(
            dataset, (BadSample(dataset.name, i, dataset.paths[i], why) for i, why in dataset.problems.items())
        )
        torch.set_num_threads(max(1, int(cores)))
        with create_loader(name, (dataset,), workers, bad_samples, this.device) as loader:
            top = predict(
                model, saved, loader, dataset, this.device,
                batch_size=options.batch_size, top_k=options.top_k, show_progress=True,
            )  # fmt: skip
    bad = {sample.index: sample.reason for sample in bad_samples}
    write_predictions_csv(options.output, dataset, top, saved.classes, bad)
    failed = f"; {len(bad)} could not be decoded, see the column problem" if bad else ""
    return f"{options.output}: {len(top.indices)} images classified{failed}"


def main() -> None:
    options = tyro.cli(Options, prog="python -m engine.predict")
    try:
        print(run(options))
    except (SavedModelError, ModelError, DataError, ImportError, OSError, ValueError) as error:
        fail(error)


if __name__ == "__main__":
    main()
