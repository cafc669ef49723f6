"""Crop windows against torchvision's, and the invariants that every window keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import RandomCrop, RandomResizedCrop, Resize

from kernels.crops import center_windows, random_resized_windows, random_square_windows, stretched_windows

SIDES = st.integers(1, 5000)


def in_pixels(windows: np.ndarray, width: int, height: int) -> np.ndarray:
    return windows * np.array([width, height, width, height])


@settings(deadline=None)  # compiling takes long
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


def check_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Compare columns of as many whole numbers by the two-sample Kolmogorov-Smirnov test, at a level of 0.001."""
    values = np.arange(theirs.max() + 2)
    for column in range(4):
        ranks = [np.searchsorted(np.sort(np.round(one[:, column])), values, "right") for one in (ours, theirs)]
        assert np.abs(ranks[0] - ranks[1]).max() / len(ours) < 1.95 * np.sqrt(2 / len(ours)), f"column {column}"


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 300), (80, 400), (640, 100)])
def test_distribution_is_torchvisions(width: int, height: int) -> None:
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
    check_distribution(ours, theirs)


@settings(deadline=None)  # compiling takes long
@given(SIDES, SIDES, st.floats(0.05, 1))
def test_center_windows_are_centered_squares(width: int, height: int, fraction: float) -> None:
    (window,) = in_pixels(center_windows(np.array([width]), np.array([height]), fraction), width, height)
    side = fraction * min(width, height)
    assert window[2:] == pytest.approx([side, side])
    assert window[:2] + window[2:] / 2 == pytest.approx([width / 2, height / 2])


@pytest.mark.parametrize("stretched", [False, True])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (51, 51), (80, 400)])
def test_random_squares_are_torchvisions(width: int, height: int, stretched: bool) -> None:
    count, side, resized = 2000, 48, 64
    resize = Resize((resized, resized) if stretched else resized)
    image = resize(torch.empty(3, height, width))
    windows = random_square_windows(
        7, 0, np.arange(count), np.full(count, width), np.full(count, height), side, resized, stretched
    )
    ours = in_pixels(windows, image.shape[2], image.shape[1])
    assert np.allclose(ours, np.round(ours))
    assert (np.round(ours[:, 2:]) == side).all()
    torch.manual_seed(0)
    crop = RandomCrop(side)
    drawn = [crop.make_params([image]) for _ in range(count)]
    theirs = np.array([[p["left"], p["top"], p["width"], p["height"]] for p in drawn])
    assert (np.round(ours).max(axis=0) == theirs.max(axis=0)).all()
    assert (np.round(ours).min(axis=0) == theirs.min(axis=0)).all()
    check_distribution(ours, theirs)


@settings(deadline=None)  # compiling takes long
@given(SIDES, SIDES, st.integers(1, 400), st.integers(0, 400), st.booleans())
def test_random_squares_lie_inside_the_image(width: int, height: int, side: int, more: int, stretched: bool) -> None:
    keys = np.arange(8)
    windows = random_square_windows(1, 2, keys, np.full(8, width), np.full(8, height), side, side + more, stretched)
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] > 0).all()
    assert (windows[:, :2] + windows[:, 2:] <= 1 + 1e-12).all()


@settings(deadline=None)  # compiling takes long
@given(st.floats(0.05, 1), st.integers(0, 5))
def test_stretched_windows_are_centered(fraction: float, count: int) -> None:
    windows = stretched_windows(count, fraction)
    assert windows.shape == (count, 4)
    assert np.allclose(windows[:, :2] + windows[:, 2:] / 2, 0.5)
    assert (windows[:, 2:] == fraction).all()
