"""Classification losses, one value for each sample, so that the caller decides what a mean is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

ClassWeighting = Literal["none", "inverse", "effective"]


def class_weights(kind: ClassWeighting, counts: Sequence[int] | np.ndarray, *, beta: float = 0.999) -> Tensor | None:
    """Return a weight for each class that makes up for unequal class sizes.

    ``inverse`` weights a class by one over its number of samples; ``effective`` by one over its effective number
    (1 - beta ** count) / (1 - beta) (Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR
    2019), which is about the count for small classes and at most 1 / (1 - beta) for large ones.

    Args:
        kind: ``none`` gives None.
        counts: training samples of each class, shape (C,).
        beta: in [0, 1); 0 gives equal weights.

    Returns:
        float32 (C,), of mean 1 over the training samples; 0 for classes without samples.

    Raises:
        ValueError: ``kind`` is unknown, or there are no samples.
    """
    if kind == "none":
        return None
    count = np.asarray(counts, np.float64)
    if count.sum() <= 0:
        raise ValueError("class weights need at least one training sample")
    present = np.maximum(count, 1)
    if kind == "inverse":
        number = present
    elif kind == "effective":
        number = -np.expm1(present * np.log(beta)) / (1 - beta) if beta > 0 else np.ones_like(present)
    else:
        raise ValueError(f"--class-weights must be none, inverse or effective, got {kind!r}")
    weights = np.where(count > 0, 1 / number, 0)
    return torch.from_numpy(weights * (count.sum() / (weights * count).sum())).float()


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    other_labels: Tensor | None = None,
    label_shares: Tensor | None = None,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Return the loss of each sample: sum over classes of target * weight * (1 - p) ** focal_gamma * -log p.

    The target is one for the label, or shared between two labels (mixup, CutMix), then smoothed: a share ``smoothing``
    of it is spread evenly over all classes (Szegedy et al., CVPR 2016). With ``focal_gamma`` 0 this is cross entropy as
    ``torch.nn.functional.cross_entropy`` computes it; above, the focal loss (Lin et al., "Focal Loss for Dense Object
    Detection", ICCV 2017) for softmax. Computed in float32 whatever the logits are.

    Args:
        logits: (N, C), floating point.
        labels: int64 (N,).
        other_labels: int64 (N,), the second label of mixed samples.
        label_shares: (N,), share of ``labels`` in the target, the rest being ``other_labels``'s; in [0, 1].
        smoothing: in [0, 1].
        weights: float32 (C,), as from ``class_weights``, on the device of the logits.
        focal_gamma: how much well-classified samples are weighted down; at least 0.

    Returns:
        float32 (N,).
    """
    log_probabilities = torch.log_softmax(logits.float(), dim=1)
    losses = -log_probabilities  # of each class, were it the target
    if focal_gamma > 0:
        # Clamped because the power's slope at zero is infinite for an exponent below one.
        losses = losses * (-torch.expm1(log_probabilities)).clamp(min=1e-12) ** focal_gamma
    if weights is not None:
        losses = losses * weights
    loss = _pick(losses, labels)
    if other_labels is not None and label_shares is not None:
        loss = torch.lerp(_pick(losses, other_labels), loss, label_shares.float())
    if smoothing > 0:
        loss = torch.lerp(loss, losses.mean(dim=1), smoothing)
    return loss


def _pick(losses: Tensor, labels: Tensor) -> Tensor:
    """Return each row's entry at its label."""
    return losses.gather(1, labels[:, None]).squeeze(1)
