"""Which predictions a report shows, and their pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from loaders.dataset import ImageDataset
from loaders.files import atomic_file
from loaders.pixels import PixelError, decode

FILE_NAME = "predictions.json"


def choose_samples(labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, count: int = 24) -> np.ndarray:
    """Choose predictions worth looking at: the most confident errors, then correct ones from all over the classes.

    Args:
        labels, predicted: int64 (N,).
        probabilities: (N,), of the predicted class.
        count: how many at most; half of them wrong, if there are as many.

    Returns:
        int64 indices, errors first.
    """
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-probabilities[wrong], kind="stable")][: count // 2]
    right = np.flatnonzero(predicted == labels)
    right = right[np.argsort(labels[right], kind="stable")]
    # The first of each class, then the second of each, and so on.
    first_of_class = np.searchsorted(labels[right], labels[right])
    turn = np.arange(len(right)) - first_of_class
    return np.r_[wrong, right[np.argsort(turn, kind="stable")][: count - len(wrong)]].astype(np.int64)


def write_predictions(
    run_dir: Path, dataset: ImageDataset, indices: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray
) -> None:
    """Write the predictions that the report will show.

    Args:
        run_dir: the run's directory.
        dataset: the evaluated data set.
        indices: int64 (N,), samples of it.
        predicted: int64 (N,), predicted classes.
        probabilities: (N,), of these classes.
    """
    labels = dataset.labels[indices]
    chosen = [
        {
            "path": dataset.paths[indices[i]],
            "label": dataset.classes[labels[i]],
            "predicted": dataset.classes[predicted[i]],
            "probability": round(float(probabilities[i]), 4),
        }
        for i in choose_samples(labels, predicted, probabilities)
    ]
    with atomic_file(run_dir / FILE_NAME) as temporary:
        temporary.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")


def with_pictures(samples: Sequence[dict[str, Any]], size: int = 192) -> list[dict[str, Any]]:
    """Add to each sample a ``picture`` (a data URI of its centered square) and whether it is ``right``.

    A file that is gone or cannot be decoded has the picture None.
    """
    return [
        {**sample, "picture": _thumbnail(sample["path"], size), "right": sample["label"] == sample["predicted"]}
        for sample in samples
    ]


def _thumbnail(path: str, size: int) -> str | None:
    try:
        image = decode(path)
    except PixelError:
        return None
    square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    square.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
