"""What tests of transform lists have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from loaders.transforms.geometry import RandomResizedCrop
from loaders.transforms.values import Normalize
from tests.images import photo

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZE = Normalize(MEAN, STD)
CROP = RandomResizedCrop((24, 32), (0.3, 1.0))
STRONGER, WEAKER = (0.7, 1.3), (0.3, 0.9)  # factors that clip, and that do not


def image(width: int = 60, height: int = 44, seed: int = 0) -> np.ndarray:
    return np.array(photo(width, height, seed))


def untouched(pixels: Any) -> Any:
    return pixels
