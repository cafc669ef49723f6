"""Programs from torchvision's transforms, of either version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from kernels.device import Color
from loaders import draws
from loaders.transforms.geometry import (
    Affine,
    CenterCrop,
    Erasing,
    GaussianBlur,
    HorizontalFlip,
    PaddedRandomCrop,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotation,
    VerticalFlip,
)
from loaders.transforms.policies import RandAugment, Together, TrivialAugment, can_be_together
from loaders.transforms.program import Program, Untyped
from loaders.transforms.steps import Border, Interpolation, RotationInterpolation, Size
from loaders.transforms.types import Operation, Point
from loaders.transforms.values import (
    Autocontrast,
    Equalize,
    Grayscale,
    Invert,
    Normalize,
    Posterize,
    Sharpness,
    Solarize,
    ToFloat,
    color_jitter,
)

_LISTS = ("Compose", "Sequential")
_NOTHING = ("ToImage", "PILToTensor", "ToPureTensor", "Identity", "RGB", "ToPILImage")


_Reader = Callable[[Any, Sequence[Operation]], list[Operation]]


class _UnreadableError(Exception):
    """An option of a transform that has no typed counterpart; the message names it."""


def read_compose(transform: Any) -> Program:
    """Return the program that a torchvision ``Compose`` stands for, or a list of transforms, or a single one.

    What is unknown, or has options that no typed operation has, is kept as it is and called where it stands.

    Raises:
        ValueError: the transforms contradict each other, as a Normalize that stands before any ToTensor.
    """
    operations: list[Operation] = []
    for one in _without_pads(list(_flat([transform]))):
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


def _without_pads(transforms: list[Any]) -> list[Any]:
    """Join each Pad with the RandomCrop behind it, mirrors between them aside: one window of the padded image."""
    for place, pad in enumerate(transforms):
        if not (_is_torchvision(pad) and type(pad).__name__ == "Pad"):
            continue
        end = place + 1
        while end < len(transforms) and isinstance(transforms[end], v1.RandomHorizontalFlip | v2.RandomHorizontalFlip):
            end += 1
        crop = transforms[end] if end < len(transforms) else None
        if isinstance(crop, v1.RandomCrop | v2.RandomCrop) and not crop.padding and not crop.pad_if_needed:
            joined = v1.RandomCrop(crop.size, pad.padding, fill=pad.fill, padding_mode=pad.padding_mode)
            between = transforms[place + 1 : end]
            return _without_pads([*transforms[:place], *between, joined, *transforms[end + 1 :]])
    return transforms


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
            except _UnreadableError as error:
                return [Untyped(transform, reason=str(error))]
    if not callable(transform):
        raise ValueError(f"{transform!r} is no transform: it cannot be called")
    return [Untyped(transform)]


def _is_float(before: Sequence[Operation]) -> bool:
    return any(operation.point is Point.TO_FLOAT for operation in before)


def _to_float(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    dtype = getattr(transform, "dtype", torch.float32)
    if not getattr(transform, "scale", True) or dtype not in (torch.float32, torch.uint8):
        raise _UnreadableError("with another type than float32, or without scale=True")
    if (dtype == torch.float32) == _is_float(before):
        return []
    if dtype == torch.uint8:
        raise _UnreadableError("that turns floating-point pixels back into bytes")
    return [ToFloat()]


def _normalize(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    mean, std = (tuple(float(v) for v in values) for values in (transform.mean, transform.std))
    if len(mean) == len(std) == 1:
        mean, std = mean * 3, std * 3
    if len(mean) != 3 or len(std) != 3:
        raise _UnreadableError("of other than three channels")
    return [Normalize(mean, std)]


def _size(value: Any) -> Size:
    """Return (height, width) of what may be one number for both."""
    sides = list(value) if isinstance(value, Sequence) else [value]
    return int(sides[0]), int(sides[-1])


def _interpolation(transform: Any) -> Interpolation:
    mode = _mode(transform)
    if mode not in get_args(Interpolation):
        raise _UnreadableError(f"with the interpolation {mode}")
    if getattr(transform, "antialias", True) is False:
        raise _UnreadableError("with antialias=False")
    return mode


def _mode(transform: Any) -> Any:
    """Return the name of a transform's interpolation, which it has as a name, a number of Pillow's or an Enum."""
    value = getattr(transform.interpolation, "value", transform.interpolation)
    return Image.Resampling(value).name.lower() if isinstance(value, int) else value


def _resize(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if transform.size is None or getattr(transform, "max_size", None) is not None:
        raise _UnreadableError("with max_size")
    sides = list(transform.size) if isinstance(transform.size, Sequence) else [transform.size]
    size = int(sides[0]) if len(sides) == 1 else _size(sides)
    return [Resize(size, _interpolation(transform))]


def _random_resized_crop(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    scale, ratio = tuple(transform.scale), tuple(transform.ratio)
    return [RandomResizedCrop(_size(transform.size), scale, ratio, _interpolation(transform))]


def _random_crop(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if transform.pad_if_needed:
        raise _UnreadableError("with pad_if_needed")
    size = _size(transform.size)
    if not transform.padding:
        return [RandomCrop(size)]
    return [PaddedRandomCrop(size, _padding(transform), _border(transform), _fill(transform.fill, before))]


def _padding(transform: Any) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a transform's padding: one number, two for sides, or all four."""
    given = transform.padding
    widths = [int(width) for width in (given if isinstance(given, Sequence) else [given])]
    if type(transform).__name__ == "RandomCrop" and type(transform).__module__.startswith("torchvision.transforms.v2"):
        left, right, top, bottom = widths  # which v2 has brought into this order
        return left, top, right, bottom
    left, top, right, bottom = widths * (4 // len(widths))
    return left, top, right, bottom


def _border(transform: Any) -> Border:
    if transform.padding_mode not in get_args(Border):
        raise _UnreadableError(f'with padding_mode="{transform.padding_mode}"')
    return transform.padding_mode


def _fill(value: Any, before: Sequence[Operation]) -> Color:
    """Return a color as fractions of white from values as pixels have them at this place of the program."""
    if isinstance(value, dict):
        value = value.get("others", 0)
    if value is None:
        value = 0
    if isinstance(value, str):
        raise _UnreadableError(f"filled with {value}")
    values = [float(v) for v in (value if isinstance(value, Sequence) else [value])]
    if len(values) not in (1, 3):
        raise _UnreadableError("with a fill of other than three channels")
    color = values * (3 // len(values))
    if not _is_float(before):
        color = [v / 255 for v in color]
    for operation in before:
        if isinstance(operation, Normalize):
            color = [v * s + m for v, m, s in zip(color, operation.mean, operation.std, strict=True)]
    if not all(-1e-9 <= v <= 1 + 1e-9 for v in color):
        raise _UnreadableError("with a fill that no pixel has")
    red, green, blue = (min(max(v, 0.0), 1.0) for v in color)
    return red, green, blue


def _rotation(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if transform.expand or transform.center is not None:
        raise _UnreadableError("with expand or center")
    mode = _mode(transform)
    if mode not in get_args(RotationInterpolation):
        raise _UnreadableError(f"with the interpolation {mode}")
    low, high = transform.degrees
    return [Rotation((float(low), float(high)), _fill(transform.fill, before), mode)]


def _affine(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    mode = _mode(transform)
    if transform.center is not None or mode not in get_args(RotationInterpolation):
        raise _UnreadableError(f"with a center or the interpolation {mode}")
    low, high, *down = transform.shear or (0.0, 0.0)
    return [
        Affine(
            degrees=tuple(transform.degrees),
            translation=tuple(transform.translate or (0.0, 0.0)),
            scale=tuple(transform.scale or (1.0, 1.0)),
            shear_x=(low, high),
            shear_y=(down[0], down[1]) if down else (0.0, 0.0),
            fill=_fill(transform.fill, before),
            interpolation=mode,
        )
    ]


def _of_bytes(make: Callable[[Any], Operation]) -> _Reader:
    """Return the reader of what is typed for bytes alone."""

    def read(transform: Any, before: Sequence[Operation]) -> list[Operation]:
        if _is_float(before):
            raise _UnreadableError("of floating-point pixels")
        return [make(transform)]

    return read


def _erasing(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if transform.value is None:  # of v2; of v1, which keeps the string, the fill says so
        raise _UnreadableError("filled with noise")
    fill = _fill(transform.value, before)
    scale, ratio = tuple(transform.scale), tuple(transform.ratio)
    return [Erasing(probability=transform.p, scale=scale, ratio=ratio, fill=fill)]


def _blur(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    height, width = _size(transform.kernel_size)
    if height != width:
        raise _UnreadableError("with a kernel that is no square")
    low, high = transform.sigma
    return [GaussianBlur(height, (float(low), float(high)))]


def _jitter(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    return color_jitter(transform.brightness, transform.contrast, transform.saturation, transform.hue)


def _grayscale(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if getattr(transform, "num_output_channels", 3) != 3:
        raise _UnreadableError("to one channel")
    return [Grayscale(probability=getattr(transform, "p", 1.0))]


def _solarize(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    white = 1 if _is_float(before) else 255
    return [Solarize(transform.threshold / white, probability=transform.p)]


def _policy(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if _is_float(before):
        raise _UnreadableError("of floating-point pixels")
    mode = _mode(transform)
    if mode not in get_args(RotationInterpolation) or transform.num_magnitude_bins != draws.STRONGEST + 1:
        raise _UnreadableError(f"with the interpolation {mode} or other than {draws.STRONGEST + 1} magnitudes")
    fill = _fill(transform.fill, before)
    if type(transform).__name__ == "TrivialAugmentWide":
        return [TrivialAugment(fill=fill, interpolation=mode)]
    return [RandAugment(transform.num_ops, transform.magnitude, fill=fill, interpolation=mode)]


def _random_apply(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    operations: list[Operation] = []
    for one in transform.transforms:
        operations += _read(one, [*before, *operations])
    if len(operations) > 1 and not _is_float(before) and all(map(can_be_together, operations)):
        return [Together(tuple(operations), probability=transform.p)]
    if len(operations) != 1 or isinstance(operations[0], Untyped) or operations[0].probability < 1:
        raise _UnreadableError("of other than one operation that is known")
    return [replace(operations[0], probability=transform.p)]


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
    "RandomAffine": _affine,
    "GaussianBlur": _blur,
    "RandomErasing": _erasing,
    "ColorJitter": _jitter,
    "Grayscale": _grayscale,
    "RandomGrayscale": _grayscale,
    "RandomInvert": lambda t, _: [Invert(probability=t.p)],
    "RandomSolarize": _solarize,
    "RandomPosterize": lambda t, _: [Posterize(int(t.bits), probability=t.p)],
    "RandomAdjustSharpness": _of_bytes(lambda t: Sharpness(t.sharpness_factor, probability=t.p)),
    "RandomAutocontrast": _of_bytes(lambda t: Autocontrast(probability=t.p)),
    "RandomEqualize": _of_bytes(lambda t: Equalize(probability=t.p)),
    "RandAugment": _policy,
    "TrivialAugmentWide": _policy,
    "RandomApply": _random_apply,
}
