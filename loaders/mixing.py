"""Mixup and CutMix: two images and two labels in one, for whole batches on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from kernels.device import upload
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


def mix(
    images: torch.Tensor,
    labels: torch.Tensor,
    seed: int,
    epoch: int,
    key: int,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> MixedLabels:
    """Mix each image with another of the batch by mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    With both alphas positive, a batch gets the one or the other with equal probability. The partners, the choice and
    the share, from Beta(alpha, alpha), are drawn once for the batch; CutMix's share is that of the pixels that stay,
    counted after the rectangle is clipped to the image.

    Args:
        images: floating-point (N, 3, H, W); changed in place.
        labels: int64 (N,), on the images' device.
        seed, epoch, key: what the draws depend on: give the key of the batch's first sample, so that every batch of
            every rank has draws of its own.
        mixup_alpha, cutmix_alpha: 0 is off; at least one is positive.

    Returns:
        The labels of the images as they are now.
    """
    word = int(words(seed, epoch, np.array([key], np.uint64), Stream.MIXING)[0])
    random = np.random.Generator(np.random.PCG64(word))
    count = len(labels)
    order = random.permutation(count)
    use_cutmix = cutmix_alpha > 0 and (mixup_alpha == 0 or random.random() < 0.5)
    alpha = cutmix_alpha if use_cutmix else mixup_alpha
    share = random.beta(alpha, alpha)
    partners = upload(order, images.device)
    if use_cutmix:
        top, bottom, left, right = _rectangle(random, 1 - share, images.shape[2], images.shape[3])
        images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][partners]
        share = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    else:
        images.lerp_(images[partners], 1 - share)
    weight = torch.full((count,), share, dtype=torch.float32, device=images.device)
    return MixedLabels(labels, labels[partners], weight)


def _rectangle(random: np.random.Generator, area: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw top, bottom, left and right of a rectangle of the image's shape, around any pixel, clipped to the image."""
    side = math.sqrt(area)
    bounds = []
    for length in (height, width):
        center, extent = random.integers(length), int(side * length)
        low = center - extent // 2
        bounds += [max(0, int(low)), min(length, int(low) + extent)]
    return bounds[0], bounds[1], bounds[2], bounds[3]
