"""Crop windows against torchvision's, and the invariants that every window keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import RandomResizedCrop

from kernels.crops import center_windows, random_resized_windows

SIDES = st.integers(1, 5000)


def in_pixels(windows: np.ndarray, width: int, height: int) -> np.ndarray:
    return windows * np.array([width, height, width, height])


@given(SIDES, SIDES, st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 100))
def test_random_windows_are_whole_pixels_inside_the_image(
    width: int, height: int, scale: float, ratio: float, seed: int
) -> None:
    keys = np.arange(16)
    windows = random_resized_windows(
        seed, 0, keys, np.full(16, width), np.full(16, height), (scale, 1.0), (ratio, 1 / ratio)
    )
    pixels = in_pixels(windows, width, height)
    assert np.allclose(pixels, np.round(pixels), atol=1e-6)
    assert (pixels[:, :2] > -1e-9).all()
    assert (pixels[:, 2:] > 1 - 1e-6).all()
    assert (pixels[:, 0] + pixels[:, 2] < width + 1e-6).all()
    assert (pixels[:, 1] + pixels[:, 3] < height + 1e-6).all()


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 300), (80, 400), (640, 100)])
def test_distribution_is_torchvisions(width: int, height: int) -> None:
    """Two-sample Kolmogorov-Smirnov test of each of left, top, width and height."""
    count = 4000
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    ours = in_pixels(
        random_resized_windows(5, 0, np.arange(count), np.full(count, width), np.full(count, height), scale, ratio),
        width,
        height,
    )
    torch.manual_seed(0)
    transform = RandomResizedCrop(8, scale, ratio)
    image = torch.empty(3, height, width)
    drawn = [transform.make_params([image]) for _ in range(count)]
    theirs = np.array([[p["left"], p["top"], p["width"], p["height"]] for p in drawn], np.float64)
    limit = 1.95 * np.sqrt(2 / count)  # 0.001
    for column in range(4):
        values = np.arange(max(width, height) + 2)
        distance = np.abs(
            np.searchsorted(np.sort(np.round(ours[:, column])), values, "right")
            - np.searchsorted(np.sort(theirs[:, column]), values, "right")
        ).max()
        assert distance / count < limit, f"column {column}"


@given(SIDES, SIDES, st.floats(0.05, 1))
def test_center_windows_are_centered_squares(width: int, height: int, fraction: float) -> None:
    (window,) = in_pixels(center_windows(np.array([width]), np.array([height]), fraction), width, height)
    side = fraction * min(width, height)
    assert window[2:] == pytest.approx([side, side])
    assert window[:2] + window[2:] / 2 == pytest.approx([width / 2, height / 2])
