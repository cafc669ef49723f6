"""Programs from torchvision's transforms, of either version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch

from kernels.device import Color
from loaders.transforms.geometry import (
    CenterCrop,
    Erasing,
    GaussianBlur,
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotation,
    VerticalFlip,
)
from loaders.transforms.program import Program, Untyped
from loaders.transforms.steps import Interpolation, Size
from loaders.transforms.types import Operation, Point
from loaders.transforms.values import Grayscale, Invert, Normalize, Posterize, Solarize, ToFloat, color_jitter

_LISTS = ("Compose", "Sequential")
_NOTHING = ("ToImage", "PILToTensor", "ToPureTensor", "Identity", "RGB", "ToPILImage")


class _UnreadableError(Exception):
    """An option of a transform that has no typed counterpart."""


def read_compose(transform: Any) -> Program:
    """Return the program that a torchvision ``Compose`` stands for, or a list of transforms, or a single one.

    What is unknown, or has options that no typed operation has, is kept as it is and called where it stands.

    Raises:
        ValueError: the transforms contradict each other, as a Normalize that stands before any ToTensor.
    """
    operations: list[Operation] = []
    for one in _flat([transform]):
        operations += _read(one, operations)
    return Program(tuple(operations))


def _flat(transforms: Iterable[Any]) -> Iterable[Any]:
    for transform in transforms:
        if isinstance(transform, list | tuple):
            yield from _flat(transform)
        elif _is_torchvision(transform) and type(transform).__name__ in _LISTS:
            yield from _flat(transform.transforms)
        else:
            yield transform


def _is_torchvision(transform: Any) -> bool:
    return type(transform).__module__.startswith("torchvision.transforms")


def _read(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    """Return the operations of one transform."""
    if isinstance(transform, Operation):
        return [transform]
    name = type(transform).__name__
    if _is_torchvision(transform):
        if name in _NOTHING and not (name == "ToPILImage" and _is_float(before)):
            return []
        if name in _READERS:
            try:
                return _READERS[name](transform, before)
            except _UnreadableError:
                return [Untyped(transform)]
    if not callable(transform):
        raise ValueError(f"{transform!r} is no transform: it cannot be called")
    return [Untyped(transform)]


def _is_float(before: Sequence[Operation]) -> bool:
    return any(operation.point is Point.TO_FLOAT for operation in before)


def _to_float(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    dtype = getattr(transform, "dtype", torch.float32)
    if not getattr(transform, "scale", True) or dtype not in (torch.float32, torch.uint8):
        raise _UnreadableError
    if (dtype == torch.float32) == _is_float(before):
        return []
    if dtype == torch.uint8:
        raise _UnreadableError
    return [ToFloat()]


def _normalize(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    mean, std = (tuple(float(v) for v in values) for values in (transform.mean, transform.std))
    if len(mean) != 3 or len(std) != 3:
        raise _UnreadableError
    return [Normalize(mean, std)]


def _size(value: Any) -> Size:
    """Return (height, width) of what may be one number for both."""
    sides = list(value) if isinstance(value, Sequence) else [value]
    return int(sides[0]), int(sides[-1])


def _interpolation(transform: Any) -> Interpolation:
    mode = _mode(transform)
    if mode not in get_args(Interpolation) or not getattr(transform, "antialias", True):
        raise _UnreadableError
    return mode


def _mode(transform: Any) -> Any:
    """Return the name of a transform's interpolation, which it may hold as such, or as a member of an enumeration."""
    return getattr(transform.interpolation, "value", transform.interpolation)


def _resize(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if transform.size is None or getattr(transform, "max_size", None) is not None:
        raise _UnreadableError
    sides = list(transform.size) if isinstance(transform.size, Sequence) else [transform.size]
    size = int(sides[0]) if len(sides) == 1 else _size(sides)
    return [Resize(size, _interpolation(transform))]


def _random_resized_crop(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    scale, ratio = tuple(transform.scale), tuple(transform.ratio)
    return [RandomResizedCrop(_size(transform.size), scale, ratio, _interpolation(transform))]


def _random_crop(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if transform.padding or transform.pad_if_needed:
        raise _UnreadableError
    return [RandomCrop(_size(transform.size))]


def _fill(value: Any, before: Sequence[Operation]) -> Color:
    """Return a color as fractions of white from values as pixels have them at this place of the program."""
    if isinstance(value, dict):
        value = value.get("others", 0)
    if value is None:
        value = 0
    if isinstance(value, str):
        raise _UnreadableError
    values = [float(v) for v in (value if isinstance(value, Sequence) else [value])]
    if len(values) not in (1, 3):
        raise _UnreadableError
    color = values * (3 // len(values))
    if not _is_float(before):
        color = [v / 255 for v in color]
    for operation in before:
        if isinstance(operation, Normalize):
            color = [v * s + m for v, m, s in zip(color, operation.mean, operation.std, strict=True)]
    if not all(-1e-9 <= v <= 1 + 1e-9 for v in color):
        raise _UnreadableError
    red, green, blue = (min(max(v, 0.0), 1.0) for v in color)
    return red, green, blue


def _rotation(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if transform.expand or transform.center is not None or _mode(transform) != "bilinear":
        raise _UnreadableError
    low, high = transform.degrees
    return [Rotation((float(low), float(high)), _fill(transform.fill, before))]


def _erasing(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if transform.value is None:  # noise
        raise _UnreadableError
    fill = _fill(transform.value, before)
    scale, ratio = tuple(transform.scale), tuple(transform.ratio)
    return [Erasing(probability=transform.p, scale=scale, ratio=ratio, fill=fill)]


def _blur(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    height, width = _size(transform.kernel_size)
    if height != width:
        raise _UnreadableError
    low, high = transform.sigma
    return [GaussianBlur(height, (float(low), float(high)))]


def _jitter(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    return color_jitter(transform.brightness, transform.contrast, transform.saturation, transform.hue)


def _grayscale(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if getattr(transform, "num_output_channels", 3) != 3:
        raise _UnreadableError
    return [Grayscale(probability=getattr(transform, "p", 1.0))]


def _solarize(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    white = 1 if _is_float(before) else 255
    return [Solarize(transform.threshold / white, probability=transform.p)]


def _random_apply(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    operations: list[Operation] = []
    for one in transform.transforms:
        operations += _read(one, [*before, *operations])
    if len(operations) != 1 or isinstance(operations[0], Untyped) or operations[0].probability < 1:
        raise _UnreadableError  # several happen together or not at all
    return [replace(operations[0], probability=transform.p)]


_Reader = Callable[[Any, Sequence[Operation]], list[Operation]]
_READERS: dict[str, _Reader] = {
    "ToTensor": _to_float,
    "ToDtype": _to_float,
    "ConvertImageDtype": _to_float,
    "Normalize": _normalize,
    "Resize": _resize,
    "CenterCrop": lambda t, _: [CenterCrop(_size(t.size))],
    "RandomCrop": _random_crop,
    "RandomResizedCrop": _random_resized_crop,
    "RandomHorizontalFlip": lambda t, _: [HorizontalFlip(probability=t.p)],
    "RandomVerticalFlip": lambda t, _: [VerticalFlip(probability=t.p)],
    "RandomRotation": _rotation,
    "GaussianBlur": _blur,
    "RandomErasing": _erasing,
    "ColorJitter": _jitter,
    "Grayscale": _grayscale,
    "RandomGrayscale": _grayscale,
    "RandomInvert": lambda t, _: [Invert(probability=t.p)],
    "RandomSolarize": _solarize,
    "RandomPosterize": lambda t, _: [Posterize(int(t.bits), probability=t.p)],
    "RandomApply": _random_apply,
}
