"""Evaluate a model on a whole data set: every sample counts once, over any number of processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from engine.distributed import Process
from engine.losses import classification_loss
from engine.metrics import ClassificationMetrics, EvaluationResult
from engine.precision import Precision, autocast
from loaders.contract import Loader
from loaders.dataset import ImageDataset
from loaders.plan import EpochPlan, View
from loaders.transfer import Transfer


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said, one entry for each sample evaluated, in order of the data set.

    Attributes:
        indices: int64 (n,), samples of the data set.
        predicted: int64 (n,), classes.
        probabilities: float32 (n,), of the predicted class.
    """

    indices: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray


def evaluate(
    model: nn.Module,
    loader: Loader,
    transfer: Transfer,
    dataset: ImageDataset,
    process: Process,
    precision: Precision,
    *,
    resolution: int,
    batch_size: int,
    crop_fraction: float = 1.0,
    flip: bool = False,
    show_progress: bool = False,
    description: str = "evaluating",
) -> tuple[EvaluationResult, Predictions]:
    """Evaluate on one data set at one resolution.

    Args:
        model: the bare model; it is left in evaluation mode.
        resolution: pixels.
        batch_size: over all processes.
        crop_fraction: side of the centered square over the image's shorter side.
        flip: average the logits over each image and its mirror image.

    Returns:
        Metrics over all processes, and rank 0's view of all predictions.
    """
    process.broadcast_buffers(model)
    model.eval()
    metrics = ClassificationMetrics(len(dataset.classes), process.device)
    collected: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    plan = EpochPlan(
        dataset, 0, View.evaluation(resolution, batch_size, crop_fraction), rank=process.rank, world=process.world
    )
    batches = transfer.batches(loader.run(plan), augmentation=None)
    progress = tqdm(batches, description, len(plan), leave=False, disable=not show_progress, unit="batch")
    with torch.inference_mode():
        for batch in progress:
            if not len(batch.labels):
                continue
            with autocast(precision, process.device):
                logits = model(batch.images).float()
                if flip:
                    logits = (logits + model(batch.images.flip(3)).float()) / 2
            metrics.update(logits, batch.labels, classification_loss(logits, batch.labels))
            probability, predicted = logits.softmax(1).max(1)
            collected.append((batch.indices, predicted, probability))
    metrics.reduce()
    return metrics.compute(), _gather(collected, process)


def _gather(collected: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], process: Process) -> Predictions:
    if collected:
        own = tuple(torch.cat(column).cpu().numpy() for column in zip(*collected, strict=True))
    else:
        own = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    columns = [np.concatenate(column) for column in zip(*process.gather(own), strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return Predictions(*(column[order] for column in columns))
