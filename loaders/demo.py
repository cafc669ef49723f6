"""The demo set: 5,000 drawn pictures of patterned shapes, made on the spot, the same ones everywhere.

Ten classes. Three have a shape of their own; in the other seven, discs, squares and triangles differ by the fine
pattern of their surface alone. Its period is about a twentieth of the image's shorter side, so the pattern is faint at
32 pixels, hard to see at 48 and plain at 64: resolution matters. A mirror image keeps its class, as patterns and
shapes are turned either way at random, and so does a crop of a third of the area.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from numba import njit
from PIL import Image
from tqdm import tqdm

from kernels.random import Stream, philox, uniform
from loaders.files import atomic_folder

_DISC, _SQUARE, _TRIANGLE, _RING, _CROSS, _FLOWER = range(6)
_PLAIN, _STRIPED, _CHECKED, _DOTTED = range(4)
_ANY = -1  # any pattern: it says nothing about the class

CLASSES: dict[str, tuple[int, int]] = {
    "checked-disc": (_DISC, _CHECKED),
    "checked-square": (_SQUARE, _CHECKED),
    "cross": (_CROSS, _ANY),
    "dotted-triangle": (_TRIANGLE, _DOTTED),
    "flower": (_FLOWER, _ANY),
    "plain-disc": (_DISC, _PLAIN),
    "plain-square": (_SQUARE, _PLAIN),
    "ring": (_RING, _ANY),
    "striped-disc": (_DISC, _STRIPED),
    "striped-triangle": (_TRIANGLE, _STRIPED),
}
IMAGES = {"train": 4000, "val": 1000}

_FOLDER = "demo-v1"  # raise the number when a pixel changes
_SEED = 20_241
_IMAGES_PER_TASK = 50
_DRAWS = 48  # random numbers that lay out one image
_STREAM = int(Stream.DEMO)


def demo_folder(cache: Path, show_progress: bool = True) -> Path:
    """Return the folder of the demo set, with ``train`` and ``val``; make it when the cache folder has none.

    Neither a crash nor a second process that does the same leaves half a set.
    """
    folder = cache / _FOLDER
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            write_demo(temporary, IMAGES, show_progress)
    return folder


def write_demo(root: Path, images: dict[str, int], show_progress: bool = True) -> None:
    """Write ``images[split]`` JPEG files for each split to ``root/<split>/<class>/``, the classes in turn."""
    executor = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="demo")
    try:
        tasks = {}
        for number, (split, count) in enumerate(images.items()):
            for name in CLASSES:
                (root / split / name).mkdir(parents=True)
            for start in range(0, count, _IMAGES_PER_TASK):
                indices = range(start, min(start + _IMAGES_PER_TASK, count))
                tasks[executor.submit(_write_images, root / split, number, indices)] = len(indices)
        bar = tqdm(
            total=sum(images.values()),
            desc="drawing the demo set",
            unit=" images",
            disable=not show_progress,
            leave=False,
        )
        with bar:
            for task in as_completed(tasks):
                task.result()
                bar.update(tasks[task])
    finally:
        executor.shutdown(cancel_futures=True)


def _write_images(folder: Path, split: int, indices: Iterable[int]) -> None:
    names = list(CLASSES)
    for index in indices:
        name = names[index % len(names)]
        pixels = draw_image(split, index, *CLASSES[name])
        Image.fromarray(pixels).save(folder / name / f"{index // len(names):04d}.jpg", quality=90)


def draw_image(split: int, index: int, shape: int, pattern: int) -> np.ndarray:
    """Return one image, uint8 (height, width, 3): a pure function of its arguments."""
    draws = uniform(_SEED, split, np.array([index]), Stream.DEMO, _DRAWS)[0]
    if pattern == _ANY:
        pattern = int(draws[0] * 4)
    short = 72 + int(draws[1] * 73)
    long = min(200, int(short * (1 + 0.6 * draws[2])))
    width, height = (long, short) if draws[3] < 0.6 else (short, long)
    colors = _choose_colors(draws[4:20])
    out = np.empty((height, width, 3), np.uint8)
    _draw(draws[20:], split, index, shape, pattern, colors, out)
    return out


def _choose_colors(draws: np.ndarray) -> np.ndarray:
    """Return float64 (4, 3): two colors of the background and two of the surface, which stands out from it."""
    background = 30 + 80 * draws[0]
    step = 60 + 50 * draws[1]
    contrast = 28 + 24 * draws[2]
    luminance = np.array([background, background + 40 * (draws[3] - 0.5), 0, 0])
    luminance[2:] = background + step
    tints = 70 * (draws[4:16].reshape(4, 3) - 0.5)
    tints[3] = tints[2]
    tints -= tints.mean(axis=1, keepdims=True)
    colors = luminance[:, None] + tints
    colors[2] -= contrast
    colors[3] += contrast
    return colors


@njit(cache=True, nogil=True)
def _draw(
    draws: np.ndarray, split: int, index: int, shape: int, pattern: int, colors: np.ndarray, out: np.ndarray
) -> None:
    """Paint background, blobs, shape and grain, pixel by pixel. Lengths are in units of the shorter side."""
    height, width = out.shape[0], out.shape[1]
    unit = min(height, width)
    center_x = width / (2 * unit) + 0.16 * (draws[0] - 0.5)
    center_y = height / (2 * unit) + 0.16 * (draws[1] - 0.5)
    radius = 0.32 + 0.10 * draws[2]
    turn = 0.9 * (draws[3] - 0.5)
    cos_turn, sin_turn = math.cos(turn), math.sin(turn)
    angle = math.pi * draws[4]
    frequency = 2 * math.pi * (16 + 3.5 * draws[5])
    if pattern == _CHECKED:  # whose waves run along the diagonals of its squares
        frequency /= math.sqrt(2)
    wave_x, wave_y = frequency * math.cos(angle), frequency * math.sin(angle)
    phase_0, phase_1 = 2 * math.pi * draws[6], 2 * math.pi * draws[7]
    slope_x, slope_y = 10 * (draws[8] - 0.5), 10 * (draws[9] - 0.5)
    slope_phase = 2 * math.pi * draws[10]
    light_x, light_y = 40 * (draws[11] - 0.5), 40 * (draws[12] - 0.5)
    grain = (3 + 9 * draws[13]) / 255
    words = philox(_SEED, split, index, _STREAM, 1 << 15)
    for row in range(height):
        for column in range(width):
            x, y = (column + 0.5) / unit, (row + 0.5) / unit
            mix = 0.5 + 0.5 * math.sin(slope_x * x + slope_y * y + slope_phase)
            red = colors[0, 0] + mix * (colors[1, 0] - colors[0, 0])
            green = colors[0, 1] + mix * (colors[1, 1] - colors[0, 1])
            blue = colors[0, 2] + mix * (colors[1, 2] - colors[0, 2])
            for blob in range(3):
                off_x, off_y = x - 1.4 * draws[14 + 3 * blob], y - 1.4 * draws[15 + 3 * blob]
                bump = 40 * (draws[16 + 3 * blob] - 0.5) * math.exp(-(off_x * off_x + off_y * off_y) * 60)
                red, green, blue = red + bump, green + bump, blue + bump
            off_x, off_y = x - center_x, y - center_y
            cover = 0.5 - unit * _distance(
                shape, cos_turn * off_x + sin_turn * off_y, cos_turn * off_y - sin_turn * off_x, radius
            )
            if cover > 0:
                cover = min(cover, 1.0)
                along = math.sin(wave_x * off_x + wave_y * off_y + phase_0)
                across = math.sin(wave_y * off_x - wave_x * off_y + phase_1)
                paint = 0.5
                if pattern == _STRIPED:
                    paint = 0.5 + 0.5 * min(1.0, max(-1.0, 1.5 * along))
                elif pattern == _CHECKED:
                    paint = 0.5 + 0.5 * min(1.0, max(-1.0, 2.5 * along * across))
                elif pattern == _DOTTED:
                    paint = 0.5 + 0.5 * min(1.0, max(-1.0, 2.0 * (along + across) - 1.2))
                red += cover * (colors[2, 0] + paint * (colors[3, 0] - colors[2, 0]) - red)
                green += cover * (colors[2, 1] + paint * (colors[3, 1] - colors[2, 1]) - green)
                blue += cover * (colors[2, 2] + paint * (colors[3, 2] - colors[2, 2]) - blue)
            pixel = row * width + column
            if pixel % 8 == 0:
                words = philox(_SEED, split, index, _STREAM, (1 << 15) + pixel // 8)
            word = words[pixel % 8 // 2] >> np.uint64(16 * (pixel % 2))
            noise = np.int64(word & np.uint64(255)) + np.int64((word >> np.uint64(8)) & np.uint64(255)) - 255
            shade = light_x * (x - 0.5) + light_y * (y - 0.5) + grain * noise
            out[row, column, 0] = _to_byte(red + shade)
            out[row, column, 1] = _to_byte(green + shade)
            out[row, column, 2] = _to_byte(blue + shade)


@njit(cache=True, nogil=True)
def _to_byte(value: float) -> np.uint8:
    return np.uint8(min(255.0, max(0.0, value + 0.5)))


@njit(cache=True, nogil=True)
def _distance(shape: int, x: float, y: float, radius: float) -> float:
    """Return about how far a point is outside of a shape, negative inside."""
    if shape == _SQUARE:
        return max(abs(x), abs(y)) - 0.86 * radius
    if shape == _TRIANGLE:
        return max(y, 0.866 * abs(x) - 0.5 * y) - 0.62 * radius
    if shape == _CROSS:
        arm, reach = 0.34 * radius, 1.05 * radius
        return min(max(abs(x) - arm, abs(y) - reach), max(abs(x) - reach, abs(y) - arm))
    distance = math.sqrt(x * x + y * y)
    if shape == _RING:
        return abs(distance - 0.72 * radius) - 0.28 * radius
    if shape == _FLOWER:
        return distance - radius * (0.78 + 0.3 * math.cos(5 * math.atan2(y, x)))
    return distance - radius
