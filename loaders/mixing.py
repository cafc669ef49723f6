"""Mixup and CutMix: two images and two labels in one, drawn for whole batches; kernels.fused carries it out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from kernels.device import upload
from kernels.fused import CutMix, Mixup
from kernels.random import Stream, words


@dataclass(frozen=True, eq=False)
class MixedLabels:
    """Two labels for each image. A loss is ``weight * loss(labels) + (1 - weight) * loss(other_labels)``.

    Attributes:
        labels, other_labels: int64 (N,).
        weight: float32 (N,), the share of ``labels``, 0 to 1.
    """

    labels: torch.Tensor
    other_labels: torch.Tensor
    weight: torch.Tensor


def draw_mix(
    labels: torch.Tensor,
    seed: int,
    epoch: int,
    key: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    height: int,
    width: int,
) -> tuple[Mixup | CutMix, MixedLabels]:
    """Draw with which other of its batch each image is mixed, by mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    With both alphas positive, a batch gets the one or the other with equal probability. The partners, the choice and
    the share, from Beta(alpha, alpha), are drawn once for the batch; CutMix's share is that of the pixels that stay,
    counted after the rectangle is clipped to the image.

    Args:
        labels: int64 (N,), on the device.
        seed, epoch, key: what the draws depend on: give the key of the batch's first sample, so that every batch of
            every rank has draws of its own.
        mixup_alpha, cutmix_alpha: 0 is off; at least one is positive.
        height, width: of the images.

    Returns:
        What is to be done to the images, and the labels that they have then; tensors on the labels' device.
    """
    word = int(words(seed, epoch, np.array([key], np.uint64), Stream.MIXING)[0])
    random = np.random.Generator(np.random.PCG64(word))
    order = random.permutation(len(labels))
    use_cutmix = cutmix_alpha > 0 and (mixup_alpha == 0 or random.random() < 0.5)
    alpha = cutmix_alpha if use_cutmix else mixup_alpha
    share = random.beta(alpha, alpha)
    partners = upload(order, labels.device)
    box = None
    if use_cutmix:
        top, bottom, left, right = _rectangle(random, 1 - share, height, width)
        share = 1 - (bottom - top) * (right - left) / (height * width)
        box = left, top, right, bottom
    weight = torch.full((len(labels),), share, dtype=torch.float32, device=labels.device)
    mixed = MixedLabels(labels, labels[partners], weight)
    return (CutMix(partners, box) if box else Mixup(partners, weight)), mixed


def _rectangle(random: np.random.Generator, area: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw top, bottom, left and right of a rectangle of the image's shape, around any pixel, clipped to the image."""
    side = math.sqrt(area)
    bounds = []
    for length in (height, width):
        center, extent = random.integers(length), int(side * length)
        low = center - extent // 2
        bounds += [max(0, int(low)), min(length, int(low) + extent)]
    return bounds[0], bounds[1], bounds[2], bounds[3]
