"""Pictures that look alike, found by the correlation of their thumbnails.

Correlation does not see brightness and contrast, and a gray thumbnail no color, so that a copy of another quality, size
or brightness correlates almost perfectly with its original, and so does each part of it that has contrast. Parts
without any, such as a background that all pictures of a set have, say nothing. Crops and mirror images are not found.
"""

from __future__ import annotations

import time

import numpy as np
import torch

_SIDE = 32  # of a thumbnail, pixels
_COARSE_SIDE = 8  # of what all pairs are compared by
_LEAST_COARSE = 0.985  # correlation from which a pair is looked at closely
_LEAST_SIMILARITY = 0.995
_PART_SIDE = 8  # of a part, pixels of a thumbnail
_LEAST_IN_PARTS = 0.9  # correlation of each part
_LEAST_DEVIATION = 5.0  # levels: a part of less is noise in a strongly compressed copy
_LEAST_CONTRAST = 8  # levels between the lightest and the darkest part: a flat picture looks like every other
_VAL_BLOCK, _TRAIN_BLOCK = 1024, 4096  # compared at once: some megabytes
_TINY = 1e-6
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def thumbnails(pixels: torch.Tensor) -> torch.Tensor:
    """Make gray thumbnails of square images.

    Args:
        pixels: uint8 (n, 3, side, side).

    Returns:
        float16 (n, 32, 32), 0 to 255.
    """
    red, green, blue = (weight * channel for weight, channel in zip(_LUMA, pixels.unbind(1), strict=True))
    gray = red + green + blue
    weights = _box_weights(pixels.shape[-1])
    return (weights @ gray @ weights.T).to(torch.float16)


def no_thumbnails() -> torch.Tensor:
    """Return float16 (0, 32, 32)."""
    return torch.empty((0, _SIDE, _SIDE), dtype=torch.float16)


def _box_weights(resolution: int) -> torch.Tensor:
    """Return float32 (32, resolution): the weights that average a line of pixels over equal stretches."""
    edges = np.arange(resolution)
    starts = np.arange(_SIDE)[:, None] * resolution / _SIDE
    overlap = np.minimum(edges + 1, starts + resolution / _SIDE) - np.maximum(edges, starts)
    return torch.from_numpy((overlap.clip(0) * _SIDE / resolution).astype(np.float32))


def most_similar(
    train: torch.Tensor, val: torch.Tensor, deadline: float = np.inf
) -> tuple[np.ndarray, np.ndarray, int]:
    """Find for each validation image the training image that it looks most like.

    All pairs are compared by small thumbnails, in blocks; the best of each block that comes near is compared by the
    whole thumbnails. Pictures of next to no contrast look like nothing.

    Args:
        train: float16 (n, 32, 32), thumbnails.
        val: float16 (m, 32, 32).
        deadline: of ``time.perf_counter``, after which no other block is begun.

    Returns:
        int64 (m,), places in ``train``, or -1 where none looks alike; float32 (m,), the correlations of the two
        thumbnails, 0 where none looks alike; and how many validation images were compared with all training images.
    """
    places, similarities = torch.full((len(val),), -1), torch.zeros(len(val))
    coarse_train, coarse_val = _coarse(train), _coarse(val)
    for begin in range(0, len(val), _VAL_BLOCK):
        rows = slice(begin, begin + _VAL_BLOCK)
        for start in range(0, len(train), _TRAIN_BLOCK):
            best, index = (coarse_val[rows] @ coarse_train[start : start + _TRAIN_BLOCK].T).max(1)
            near = torch.nonzero(best >= _LEAST_COARSE)[:, 0]
            partners, near_val = start + index[near], begin + near
            one, other = train[partners].to(torch.float32), val[near_val].to(torch.float32)
            correlation = _correlation(one.flatten(1), other.flatten(1))
            better = correlation > similarities[near_val].clamp_min(_LEAST_SIMILARITY)
            better &= _parts_agree(one, other)
            places[near_val[better]], similarities[near_val[better]] = partners[better], correlation[better]
            if time.perf_counter() >= deadline and (begin + _VAL_BLOCK < len(val) or start + _TRAIN_BLOCK < len(train)):
                finished = start + _TRAIN_BLOCK >= len(train)
                return places.numpy(), similarities.numpy(), begin + _VAL_BLOCK * finished
    return places.numpy(), similarities.numpy(), len(val)


def _coarse(images: torch.Tensor) -> torch.Tensor:
    """Return float32 (n, 64): small thumbnails without mean, of length 1; of length 0 where they are flat."""
    factor = _SIDE // _COARSE_SIDE
    small = images.view(-1, _COARSE_SIDE, factor, _COARSE_SIDE, factor).mean((2, 4), dtype=torch.float32).flatten(1)
    flat = small.amax(1) - small.amin(1) < _LEAST_CONTRAST
    centered = small - small.mean(1, keepdim=True)
    unit: torch.Tensor = centered / centered.norm(dim=1, keepdim=True).clamp_min(_TINY)
    return unit.masked_fill_(flat[:, None], 0.0)


def _correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return float32 (...): the correlation of two tensors float32 (..., k) along their last dimension."""
    one, other = (values - values.mean(-1, keepdim=True) for values in (one, other))
    product: torch.Tensor = (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1)).clamp_min(_TINY)
    return product


def _parts_agree(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return bool (n,): whether the parts of two float32 (n, 32, 32) correlate wherever one of them has contrast."""
    one, other = (
        images.unfold(1, _PART_SIDE, _PART_SIDE).unfold(2, _PART_SIDE, _PART_SIDE).flatten(1, 2).flatten(2)
        for images in (one, other)
    )
    variance = torch.maximum(_variance(one), _variance(other))
    return ((variance < _LEAST_DEVIATION**2) | (_correlation(one, other) >= _LEAST_IN_PARTS)).all(1)


def _variance(values: torch.Tensor) -> torch.Tensor:
    """Return float32 (...): the variance of a tensor float32 (..., k) along its last dimension."""
    variance: torch.Tensor = (values - values.mean(-1, keepdim=True)).square().mean(-1)
    return variance
