"""Transform lists on the device: what loaders leave of them, done to whole batches of bytes.

An operation draws for the whole batch what ``Operation.draw`` draws for each image alone: the same parameters, whatever
the batch. Pixels are those of torchvision's uint8 tensors but for how they are rounded: see loaders.operations.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from kernels.random import uniform, words
from loaders import draws, operations
from loaders.contract import LoaderError
from loaders.transforms import geometry, values
from loaders.transforms.policies import Policy, Together
from loaders.transforms.program import Untyped
from loaders.transforms.steps import Size
from loaders.transforms.types import ATTEMPTS, DRAWS, FIRST_STREAM, Operation, Range

_Change = tuple[draws.Operation, np.ndarray]  # and its parameters (N, k)


@dataclass(frozen=True)
class DeviceOperation:
    """An operation of a transform list, for `loaders.augment.Augmentation.operations`.

    Attributes:
        operation: one that `why_not` has nothing against.
        number: of the operation in the program as written, by which its parameters are drawn.
    """

    operation: Operation
    number: int

    def steps(self, seed: int, epoch: int, keys: np.ndarray, height: int, width: int) -> list[draws.Step]:
        """Draw what is done to a batch: see `loaders.draws.BatchOperation`.

        Raises:
            ValueError: the operation cannot be done to images of this size.
        """
        stream = FIRST_STREAM + self.number
        drawn = uniform(seed, epoch, keys, stream, DRAWS)
        chosen = drawn[:, 0] < self.operation.probability
        if isinstance(self.operation, Untyped):
            seeds = words(seed, epoch, keys, stream, block=1)  # block 0 says whether it happens
            return [_called(self.operation, int(seeds[row]), int(row)) for row in np.flatnonzero(chosen)]
        if isinstance(self.operation, Policy):
            steps = self.operation.batch_steps(drawn[:, 1:], (height, width))
            return [one.where(chosen) for one in steps]
        changes = _CHANGES[type(self.operation)](self.operation, drawn[:, 1:], (height, width))
        return [draws.Step.of(change, chosen, parameters) for change, parameters in changes]


def why_not(operation: Operation) -> str | None:
    """Return why the device cannot do an operation, or None if it can."""
    if isinstance(operation, Untyped | Policy):
        return None
    if isinstance(operation, Together):
        return next((problem for problem in map(why_not, operation.operations) if problem), None)
    if type(operation) not in _CHANGES:
        return "is done by loaders or not at all"
    if isinstance(operation, values.Solarize) and operation.threshold > 1:
        return "has a threshold above white"
    return None


def _called(operation: Untyped, seed: int, row: int) -> draws.Step:
    """Return the step that calls a user's function on one image."""
    return draws.Step(partial(call_on_image, operation, seed), np.array([row]), np.empty((1, 0), np.float32))


def call_on_image(
    operation: Untyped, seed: int, images: torch.Tensor, parameters: torch.Tensor | None = None
) -> torch.Tensor:
    """Call a user's function on a batch of one image, uint8 (1, 3, H, W), the global generators seeded around it.

    Args:
        parameters: none; for `loaders.draws.Operation`.

    Raises:
        LoaderError: the function fails, or returns something of another kind.
    """
    (image,) = images
    given = f"{operation.name} is given a tensor, {_kind(image)},"
    with _seeded(seed, image.device):
        try:
            result = operation.function(image)
        except Exception as error:
            raise LoaderError(f"{given} and failed: {type(error).__name__}: {error}") from error
    if not isinstance(result, torch.Tensor) or _kind(result) != _kind(image):
        found = _kind(result) if isinstance(result, torch.Tensor) else type(result).__name__
        raise LoaderError(f"{given} and must return one like it; it returned {found}")
    return result[None]


def _kind(image: torch.Tensor) -> str:
    return f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)} on {image.device}"


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, random and numpy, and give them back as they were."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    for generator in generators:
        generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _between(limits: Range, uniforms: np.ndarray) -> np.ndarray:
    """Return the values (N, 1) at the first draws in [0, 1) of a range."""
    return limits[0] + (limits[1] - limits[0]) * uniforms[:, :1]


def _constant(uniforms: np.ndarray, *values: float) -> np.ndarray:
    """Return the same parameters for each image."""
    return np.tile(np.array(values, np.float64), (len(uniforms), 1))


def _alone(*changes: draws.Operation) -> Callable[[Operation, np.ndarray, Size], list[_Change]]:
    """Return the draws of what has no parameters."""
    return lambda operation, uniforms, size: [(change, _constant(uniforms)) for change in changes]


def _quarters(operation: geometry.Rotate90, uniforms: np.ndarray, size: Size) -> list[_Change]:
    if operation.quarters % 2 and size[0] != size[1]:
        raise ValueError(f"{operation.name}: only squares stay as large when turned, not {size[1]} x {size[0]} pixels")
    turns: tuple[tuple[draws.Operation, ...], ...] = (
        (),
        (operations.transpose, operations.flip_vertically),
        (operations.flip_horizontally, operations.flip_vertically),
        (operations.transpose, operations.flip_horizontally),
    )
    return [(change, _constant(uniforms)) for change in turns[operation.quarters % 4]]


def _rotation(operation: geometry.Rotation, uniforms: np.ndarray, size: Size) -> list[_Change]:
    degrees = _between(operation.degrees, uniforms)[:, 0]
    change = operations.affine if operation.interpolation == "bilinear" else operations.affine_nearest
    return [(change, draws.filled(draws.rotation_maps(degrees, *size), operation.fill))]


def _padded_crop(operation: geometry.PaddedRandomCrop, uniforms: np.ndarray, size: Size) -> list[_Change]:
    # Images of another size than the crop's, in a schedule of sizes, move by as large a part of it.
    scale = np.array([size[1] / operation.size[1], size[0] / operation.size[0]])
    before, after = (np.round(scale * operation.padding[side : side + 2]) for side in (0, 2))
    moves = before - np.floor(uniforms[:, :2] * (before + after + 1))
    if operation.border == "constant":
        return [(operations.shift_filled, draws.filled(moves, operation.fill))]
    if (np.maximum(before, after) >= size[::-1]).any():
        raise ValueError(f"{operation.name}: an image of {size[1]} x {size[0]} cannot be reflected so far")
    return [(operations.shift, moves)]


def _affine(operation: geometry.Affine, uniforms: np.ndarray, size: Size) -> list[_Change]:
    height, width = size
    ranges = np.array([operation.degrees, operation.shear_x, operation.shear_y])
    angles = np.radians(ranges[:, :1] + (ranges[:, 1:] - ranges[:, :1]) * uniforms[:, [0, 4, 5]].T)
    rotation, shear_x, shear_y = angles
    moves = np.round((2 * uniforms[:, 1:3] - 1) * operation.translation * (width, height))
    scale = operation.scale[0] + (operation.scale[1] - operation.scale[0]) * uniforms[:, 3]
    # The image is rotated, sheared and enlarged by ((a, b), (c, d)), as torchvision does; the map is the inverse.
    a, c = np.cos(rotation - shear_y) / np.cos(shear_y), np.sin(rotation - shear_y) / np.cos(shear_y)
    b, d = -a * np.tan(shear_x) - np.sin(rotation), -c * np.tan(shear_x) + np.cos(rotation)
    inverse = np.stack([d, -b, -c, a]) / scale
    x, y = width / 2, height / 2
    right, down = x + moves[:, 0], y + moves[:, 1]
    maps = np.stack(
        [
            inverse[0],
            inverse[1],
            x - inverse[0] * right - inverse[1] * down,
            inverse[2],
            inverse[3],
            y - inverse[2] * right - inverse[3] * down,
        ],
        axis=1,
    )
    change = operations.affine if operation.interpolation == "bilinear" else operations.affine_nearest
    return [(change, draws.filled(maps, operation.fill))]


def _together(operation: Together, uniforms: np.ndarray, size: Size) -> list[_Change]:
    shares = zip(operation.operations, operation.shares(uniforms), strict=True)
    return [change for one, share in shares for change in _CHANGES[type(one)](one, share, size)]


def _blur(operation: geometry.GaussianBlur, uniforms: np.ndarray, size: Size) -> list[_Change]:
    radius = operation.kernel_size // 2
    if radius >= min(size):
        raise ValueError(
            f"{operation.name}: a kernel of {operation.kernel_size} pixels needs images of {radius + 1} or more, "
            f"not {size[1]} x {size[0]}"
        )
    return [(operations.blur, draws.gaussian(_between(operation.sigma, uniforms), radius))]


def _erasing(operation: geometry.Erasing, uniforms: np.ndarray, size: Size) -> list[_Change]:
    height, width = size
    attempts = uniforms[:, : 4 * ATTEMPTS].reshape(-1, ATTEMPTS, 4)
    area = height * width * (operation.scale[0] + (operation.scale[1] - operation.scale[0]) * attempts[:, :, 0])
    low, high = (math.log(limit) for limit in operation.ratio)
    ratio = np.exp(low + (high - low) * attempts[:, :, 1])
    heights, widths = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    lefts = np.floor(attempts[:, :, 2] * (width - widths + 1))
    tops = np.floor(attempts[:, :, 3] * (height - heights + 1))
    fits = np.logical_and(heights < height, widths < width)
    boxes = np.stack([lefts, tops, lefts + widths, tops + heights], axis=-1)
    first = np.take_along_axis(boxes, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    boxes = np.where(fits.any(axis=1, keepdims=True), first, 0)
    return [(operations.erase, draws.filled(boxes, operation.fill))]


def _drawn(change: draws.Operation, name: str) -> Callable[[Any, np.ndarray, Size], list[_Change]]:
    """Return the draws of what has one parameter, from the range that the operation has by a name."""
    return lambda operation, uniforms, size: [(change, _between(getattr(operation, name), uniforms))]


def _solarize(operation: values.Solarize, uniforms: np.ndarray, size: Size) -> list[_Change]:
    threshold = max(0.0, math.ceil(np.float32(255 * operation.threshold)))  # of whole numbers, those from there up
    return [(operations.solarize, _constant(uniforms, threshold))]


def _posterize(operation: values.Posterize, uniforms: np.ndarray, size: Size) -> list[_Change]:
    return [(operations.posterize, _constant(uniforms, 256 - 2 ** (8 - operation.bits)))]


_CHANGES: dict[type[Operation], Callable[[Any, np.ndarray, Size], list[_Change]]] = {
    geometry.HorizontalFlip: _alone(operations.flip_horizontally),
    geometry.VerticalFlip: _alone(operations.flip_vertically),
    geometry.Rotate90: _quarters,
    geometry.Rotation: _rotation,
    geometry.PaddedRandomCrop: _padded_crop,
    geometry.Affine: _affine,
    Together: _together,
    geometry.GaussianBlur: _blur,
    geometry.Erasing: _erasing,
    values.Brightness: _drawn(operations.brightness, "factor"),
    values.Contrast: _drawn(operations.contrast, "factor"),
    values.Saturation: _drawn(operations.saturation, "factor"),
    values.Hue: _drawn(operations.hue, "turn"),
    values.Sharpness: lambda operation, uniforms, size: [(operations.sharpness, _constant(uniforms, operation.factor))],
    values.Autocontrast: _alone(operations.autocontrast),
    values.Equalize: _alone(operations.equalize),
    values.Grayscale: _alone(operations.grayscale),
    values.Invert: _alone(operations.invert),
    values.Solarize: _solarize,
    values.Posterize: _posterize,
}
