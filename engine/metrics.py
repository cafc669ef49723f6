"""What a classifier gets right: top-1, top-5, loss and the confusion matrix, summed on the device.

torchmetrics has these metrics but counts with ``torch.bincount``, which waits for the device on CUDA (and with
``validate_args``, its default, calls ``torch.unique`` as well): two stalls for each batch and metric. The sums here are
plain tensors that no step reads back; the tests compare them with torchmetrics.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from loaders.files import atomic_file


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of each class, arrays of shape (num_classes,); NaN where a score is undefined.

    Attributes:
        precision: correct ones among the images given this class; undefined when no image was.
        recall: correct ones among the images of this class; undefined when there are none.
        f1: harmonic mean of both; undefined when neither is defined.
        support: int64, images of this class.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        loss: mean over the images; NaN when there were none, as top1 and top5.
        top1, top5: percent. With fewer than five classes top5 counts as many as there are.
        count: images evaluated.
        confusion: int64 (num_classes, num_classes): images by true class (row) and predicted class (column).
    """

    loss: float
    top1: float
    top5: float
    count: int
    confusion: np.ndarray

    @cached_property
    def per_class(self) -> ClassScores:
        correct = np.diag(self.confusion).astype(np.float64)
        predicted, support = self.confusion.sum(axis=0), self.confusion.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return ClassScores(
                precision=correct / predicted,
                recall=correct / support,
                f1=2 * correct / (predicted + support),
                support=support,
            )


class ClassificationMetrics:
    """Sums over any number of batches; ``update`` never waits for the device.

    Args:
        num_classes: at least 1. The confusion matrix holds its square in int64.
        device: where the batches are.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.device = torch.device(device)
        sums_dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self._confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=self.device)
        self._top5_hits = torch.zeros((), dtype=torch.int64, device=self.device)
        self._loss_sum = torch.zeros((), dtype=sums_dtype, device=self.device)

    @torch.no_grad()
    def update(self, logits: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor | None = None) -> None:
        """Count a batch.

        Args:
            logits: (n, num_classes), any floating type; n may be 0.
            labels: int64 (n,), in [0, num_classes), on the same device.
            losses: (n,), the loss of each image; cross entropy when left out.
        """
        top = logits.topk(min(5, self.num_classes), dim=1).indices
        hits = top == labels[:, None]
        self._top5_hits += hits.sum()
        self._confusion.index_add_(0, labels * self.num_classes + top[:, 0], torch.ones_like(labels))
        if losses is None:
            losses = F.cross_entropy(logits.float(), labels, reduction="none")
        self._loss_sum += losses.sum(dtype=self._loss_sum.dtype)

    def reduce(self) -> None:
        """Add up the sums of all processes, once, after the last batch. Every process must call it."""
        if dist.is_available() and dist.is_initialized():
            for sums in (self._confusion, self._top5_hits, self._loss_sum):
                dist.all_reduce(sums)

    def compute(self) -> EvaluationResult:
        """Return the results of what was counted so far, waiting for the device."""
        confusion = self._confusion.view(self.num_classes, self.num_classes).cpu().numpy()
        count = int(confusion.sum())
        return EvaluationResult(
            loss=self._loss_sum.item() / count if count else float("nan"),
            top1=100 * int(np.trace(confusion)) / count if count else float("nan"),
            top5=100 * int(self._top5_hits.item()) / count if count else float("nan"),
            count=count,
            confusion=confusion.copy(),
        )


def write_confusion_csv(path: Path, result: EvaluationResult, classes: Sequence[str]) -> None:
    """Write the confusion matrix: a row for each true class, a column for each predicted one."""
    _write_csv(
        path,
        [
            ["true \\ predicted", *classes],
            *([name, *row] for name, row in zip(classes, result.confusion.tolist(), strict=True)),
        ],
    )


def write_per_class_csv(path: Path, result: EvaluationResult, classes: Sequence[str]) -> None:
    """Write the scores of each class; an undefined score is left empty."""
    scores = result.per_class
    rows: list[list[object]] = [["class", "precision", "recall", "f1", "support"]]
    for index, name in enumerate(classes):
        values = (scores.precision[index], scores.recall[index], scores.f1[index])
        rows.append([name, *("" if np.isnan(v) else f"{v:.4f}" for v in values), int(scores.support[index])])
    _write_csv(path, rows)


def write_class_counts_csv(path: Path, classes: Sequence[str], train: np.ndarray, val: np.ndarray) -> None:
    """Write how many images of each class the splits hold (``ImageDataset.class_counts``)."""
    rows = zip(classes, train.tolist(), val.tolist(), strict=True)
    _write_csv(path, [["class", "train", "val"], *(list(row) for row in rows)])


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
