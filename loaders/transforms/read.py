"""Programs from torchvision's transforms, of either version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from PIL import Image
from torch import nn
from torchvision import transforms as v1
from torchvision import tv_tensors

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

_NOTHING = ("ToImage", "PILToTensor", "ToPureTensor", "Identity", "RGB")
_FLIPS = ("RandomHorizontalFlip", "RandomVerticalFlip")
_IMAGES = (tv_tensors.Image, Image.Image, torch.Tensor)  # the types of images, for options that differ by type
_BILINEAR = "loaders resize bilinearly and antialiased, not so"
_FLOAT = "pixels become float32, white as 1"


_Reader = Callable[[Any, Sequence[Operation]], list[Operation]]


class _UnreadableError(Exception):
    """An option of a transform that has no typed counterpart.

    Args:
        reason, instead: see `Untyped`.
    """

    def __init__(self, reason: str, instead: str = "") -> None:
        super().__init__(reason)
        self.reason, self.instead = reason, instead


def read_compose(transform: Any) -> Program:
    """Return the program that a torchvision ``Compose`` stands for, or a list of transforms, or a single one.

    An ``nn.Sequential`` of torchvision's transforms is a list, too.

    What is unknown, or has options that no typed operation has, is kept as it is and called where it stands.

    Raises:
        ValueError: the transforms contradict each other, as a Normalize that stands before any ToTensor, or one has
            options that it cannot have.
    """
    operations: list[Operation] = []
    for one in _without_pads(list(_flat([transform]))):
        operations += _read(one, operations)
    return Program(tuple(operations))


def _flat(transforms: Iterable[Any]) -> Iterable[Any]:
    for transform in transforms:
        if isinstance(transform, list | tuple):
            yield from _flat(transform)
        elif _is_torchvision(transform) and type(transform).__name__ == "Compose":
            yield from _flat(transform.transforms)
        elif _is_sequential(transform):
            yield from _flat(list(transform))
        else:
            yield transform


def _is_sequential(transform: Any) -> bool:
    """Return whether it is what torchvision offers for a Compose that can be scripted."""
    return type(transform) is nn.Sequential and all(_is_torchvision(one) or _is_sequential(one) for one in transform)


def _without_pads(transforms: list[Any]) -> list[Any]:
    """Join each Pad with the RandomCrop behind it, which is one window of the padded image.

    Mirrors may stand between them where the border is as wide on either side.
    """
    for place, pad in enumerate(transforms):
        if _kind(pad) != "Pad":
            continue
        left, top, right, bottom = _padding(pad)
        end = place + 1
        while end < len(transforms) and _kind(transforms[end]) in _FLIPS:
            end += 1
        between = transforms[place + 1 : end]
        kinds = {_kind(flip) for flip in between}
        if ("RandomHorizontalFlip" in kinds and left != right) or ("RandomVerticalFlip" in kinds and top != bottom):
            continue
        crop: Any = transforms[end] if end < len(transforms) else None
        if _kind(crop) == "RandomCrop" and not _is_padded(crop) and not crop.pad_if_needed:
            joined = v1.RandomCrop(crop.size, pad.padding, fill=pad.fill, padding_mode=pad.padding_mode)
            return _without_pads([*transforms[:place], *between, joined, *transforms[end + 1 :]])
    return transforms


def _kind(transform: Any) -> str:
    """Return the name of one of torchvision's transforms; of anything else, one's own subclasses too, nothing."""
    return type(transform).__name__ if _is_torchvision(transform) else ""


def _is_torchvision(transform: Any) -> bool:
    return type(transform).__module__.startswith("torchvision.transforms")


def _read(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    """Return the operations of one transform."""
    if isinstance(transform, Operation):
        return [transform]
    name = _kind(transform)
    if name in _NOTHING:
        return []
    if name in _READERS:
        try:
            return _READERS[name](transform, before)
        except _UnreadableError as error:
            return [Untyped(transform, error.reason, error.instead)]
        except TypeError as error:
            raise ValueError(f"{name} has an option that cannot be read: {error}") from error
    if not callable(transform):
        raise ValueError(f"{transform!r} is no transform: it cannot be called")
    return [Untyped(transform)]


def _is_float(before: Sequence[Operation]) -> bool:
    return any(operation.point is Point.TO_FLOAT for operation in before)


def _for_images(value: Any, name: str) -> Any:
    """Return an option's value for images, where it may differ by type."""
    if not isinstance(value, dict):
        return value
    values = [value[kind] for kind in _IMAGES if kind in value] or [
        one for key, one in value.items() if key == "others"
    ]
    if not values or any(one != values[0] for one in values):
        raise _UnreadableError(f"with {name} for no type of images, or of several values for them")
    return values[0]


def _numbers(value: Any) -> list[float]:
    """Return three numbers, of which one may have been given for all channels."""
    values = [float(v) for v in (value if isinstance(value, Iterable) else [value])]
    if len(values) not in (1, 3):
        raise _UnreadableError("of other than three channels", "images have three")
    return values * (3 // len(values))


def _to_float(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    dtype, is_float = _for_images(getattr(transform, "dtype", torch.float32), "types"), _is_float(before)
    if dtype == (torch.float32 if is_float else torch.uint8):
        return []
    if is_float and dtype == torch.uint8:
        raise ValueError(_back_to_bytes(transform))
    if dtype != torch.float32:
        raise _UnreadableError("with another type than float32", _FLOAT)
    if not getattr(transform, "scale", True):
        raise _UnreadableError("without scale=True", f"{_FLOAT}, so give it scale=True")
    return [ToFloat()]


def _to_pil(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if _is_float(before):
        raise ValueError(_back_to_bytes(transform))
    if transform.mode not in (None, "RGB"):
        raise _UnreadableError(f'with mode="{transform.mode}"', "images are RGB")
    return []


def _back_to_bytes(transform: Any) -> str:
    name = type(transform).__name__
    return f"{name} turns floating-point pixels back into bytes: leave it out, and the conversion before it"


def _normalize(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    mean, std = _numbers(transform.mean), _numbers(transform.std)
    return [Normalize((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))]


def _size(value: Any) -> Size:
    """Return (height, width) of what may be one number for both."""
    sides = list(value) if isinstance(value, Sequence) else [value]
    return int(sides[0]), int(sides[-1])


def _interpolation(transform: Any) -> Interpolation:
    mode = _mode(transform)
    if mode not in get_args(Interpolation):
        raise _UnreadableError(f"with the interpolation {mode}", _BILINEAR)
    antialias = getattr(transform, "antialias", True)
    if not antialias:  # None is False for tensors
        raise _UnreadableError(f"with antialias={antialias}", _BILINEAR)
    return mode


def _mode(transform: Any) -> Any:
    """Return the name of a transform's interpolation, which it has as a name, a number of Pillow's or an Enum."""
    value = getattr(transform.interpolation, "value", transform.interpolation)
    return Image.Resampling(value).name.lower() if isinstance(value, int) else value


def _resize(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if transform.size is None or getattr(transform, "max_size", None) is not None:
        raise _UnreadableError("with max_size", "give it the shorter side alone, or both sides")
    sides = list(transform.size) if isinstance(transform.size, Sequence) else [transform.size]
    size = int(sides[0]) if len(sides) == 1 else _size(sides)
    return [Resize(size, _interpolation(transform))]


def _random_resized_crop(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    scale, ratio = tuple(transform.scale), tuple(transform.ratio)
    return [RandomResizedCrop(_size(transform.size), scale, ratio, _interpolation(transform))]


def _random_crop(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    if transform.pad_if_needed:
        raise _UnreadableError("with pad_if_needed", "leave that out, and resize to no less before it")
    size = _size(transform.size)
    if not _is_padded(transform):
        return [RandomCrop(size)]
    return [PaddedRandomCrop(size, _padding(transform), _border(transform), _fill(transform.fill, before))]


def _is_padded(crop: Any) -> bool:
    return bool(crop.padding) and any(_padding(crop))


def _pad(transform: Any, before: Sequence[Operation]) -> list[Operation]:
    raise _UnreadableError(
        "that is not of one window with a RandomCrop",
        "images have to stay as large: put a RandomCrop right behind it, the flips elsewhere",
    )


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
    value = _for_images(value, "fills")
    color = _numbers(0 if value is None else value)
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
    if transform.expand:
        raise _UnreadableError("with expand=True", "images have to stay as large, so leave that out")
    if transform.center is not None:
        raise _UnreadableError("with a center")
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
    if transform.value in (None, "random"):  # of v2 and of v1
        raise _UnreadableError("filled with noise", "give it a value, as boxes get one color")
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
        raise _UnreadableError("to one channel", "images keep three channels, so give it num_output_channels=3")
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
    for one in _flat(transform.transforms):
        operations += _read(one, [*before, *operations])
    for operation in operations:
        if isinstance(operation, Untyped) and operation.instead:
            raise _UnreadableError(f"of {operation.title}", operation.instead)
        if operation.point in (Point.TO_FLOAT, Point.NORMALIZE) and transform.p < 1:
            raise _UnreadableError(
                f"of {operation.name}", "all images have to be of one kind, so let it be done always"
            )
    if not operations:
        return []
    if len(operations) > 1 and not _is_float(before) and all(map(can_be_together, operations)):
        return [Together(tuple(operations), probability=transform.p)]
    if len(operations) != 1 or isinstance(operations[0], Untyped):
        raise _UnreadableError("of other than one operation that is known")
    return [replace(operations[0], probability=transform.p * operations[0].probability)]


_READERS: dict[str, _Reader] = {
    "ToTensor": _to_float,
    "ToDtype": _to_float,
    "ConvertImageDtype": _to_float,
    "ToPILImage": _to_pil,
    "Normalize": _normalize,
    "Resize": _resize,
    "CenterCrop": lambda t, _: [CenterCrop(_size(t.size))],
    "RandomCrop": _random_crop,
    "Pad": _pad,
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
