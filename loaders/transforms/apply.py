"""Doing a program to one image, by Pillow, by torchvision's tensors or by our own kernels.

``pillow`` keeps a PIL image until ToFloat and a tensor from there on. ``torchvision`` keeps a tensor (3, H, W), at
first a view of interleaved pixels, as ``torchvision.io.decode_jpeg`` returns it. So does ``kernels``, which resizes
bytes, and converts and normalizes, by kernels of our own, and leaves all else to torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from kernels.device import Color
from kernels.fused import fuse as fuse_normalization
from kernels.resample import resize_window
from loaders.transforms import steps
from loaders.transforms.cost import Costs, Form, costs_file
from loaders.transforms.fusion import FloatNormalize, Window, fuse
from loaders.transforms.planner import Plan
from loaders.transforms.program import Untyped
from loaders.transforms.steps import Size, Step
from loaders.transforms.types import Operation

BACKENDS = ("pillow", "torchvision", "kernels")

_MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
_NO_CHANGE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass
class Picture:
    """An image on its way through a program.

    Attributes:
        pixels: a PIL image in mode RGB, or a tensor (3, H, W), uint8 or float32.
        mean, std: how its values are normalized.
    """

    pixels: Any
    mean: Color = _NO_CHANGE[0]
    std: Color = _NO_CHANGE[1]

    @classmethod
    def of(cls, pixels: np.ndarray, backend: str) -> Picture:
        """Return the picture as a backend takes it, from uint8 (H, W, 3)."""
        if backend == "pillow":
            return cls(Image.fromarray(pixels))
        if backend not in BACKENDS:
            raise ValueError(f"there is no backend {backend!r}; choose from {', '.join(BACKENDS)}")
        pixels = pixels if pixels.flags.writeable else pixels.copy()  # torch warns of memory that it must not change
        return cls(torch.from_numpy(pixels).permute(2, 0, 1))

    @property
    def size(self) -> Size:
        if isinstance(self.pixels, Image.Image):
            return self.pixels.height, self.pixels.width
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def is_float(self) -> bool:
        return isinstance(self.pixels, torch.Tensor) and self.pixels.is_floating_point()

    @property
    def form(self) -> Form:
        """How its pixels lie in memory; Pillow has one form."""
        if isinstance(self.pixels, Image.Image):
            return Form()
        height, width = self.size
        strides = self.pixels.stride()
        is_planar = strides[0] >= max(strides[1:])
        dense = (height * width, width, 1) if is_planar else (1, 3 * width, 3)
        return Form(self.is_float, is_planar, strides != dense)

    def color(self, fill: Color) -> list[float]:
        """Return a color, given in fractions of white, as the picture's pixels have it."""
        if not self.is_float:
            return [float(round(255 * value)) for value in fill]
        return [(value - m) / s for value, m, s in zip(fill, self.mean, self.std, strict=True)]

    def levels(self) -> np.ndarray:
        """Return the pixels in levels, 0 to 255, normalization undone: float32 (H, W, 3)."""
        if not isinstance(self.pixels, torch.Tensor):
            return np.asarray(self.pixels, np.float32)
        planes = self.pixels.permute(1, 2, 0).to(torch.float32)
        if self.is_float:
            planes = (planes * torch.tensor(self.std) + torch.tensor(self.mean)) * 255
        return planes.numpy()


def run(plan: Plan, image: np.ndarray | Picture, seed: int = 0, epoch: int = 0, index: int = 0) -> Picture:
    """Do a plan to one image.

    Args:
        plan: a program and the order to do it in.
        image: uint8 (H, W, 3), RGB, or a picture for the plan's backend, which is not changed.
        seed, epoch, index: what the random parameters are drawn by; they do not depend on the plan's order.

    Raises:
        ValueError: a crop is larger than the image.
    """
    picture = Picture(image.pixels) if isinstance(image, Picture) else Picture.of(image, plan.backend)
    for segment, order in zip(plan.program.segments(), plan.orders, strict=True):
        operations = [plan.program.operations[number] for number in segment]
        if isinstance(operations[0], Untyped):
            picture.pixels = operations[0].function(picture.pixels)
            continue
        drawn = draw(operations, segment.start, seed, epoch, index, picture.size)
        apply_steps(steps.reorder(drawn, order, picture.size), picture, plan.backend)
    return picture


def draw(
    operations: Sequence[Operation], first: int, seed: int, epoch: int, index: int, size: Size
) -> tuple[Step, ...]:
    """Draw what is done to one image, in the order as written.

    Args:
        operations: without untyped functions.
        first: number of the first of them in the program.
        size: of the image as it comes to the first of them.
    """
    drawn = []
    for number, operation in enumerate(operations, first):
        drawn.append(operation.draw(seed, epoch, index, number, size))
        size = drawn[-1].output_size(size)
    return tuple(drawn)


def apply_steps(arranged: Sequence[Step], picture: Picture, backend: str) -> None:
    """Do steps to a picture in the given order."""
    for step in fuse(arranged, picture.size, backend, picture.is_float):
        apply_step(step, picture)


def apply_step(step: Step, picture: Picture) -> None:
    """Do one step to a picture."""
    image = picture.pixels
    match step:
        case Window():
            picture.pixels = _resize_window(image, step)
        case FloatNormalize(normalize):
            picture.pixels = fuse_normalization(image[None], normalize.mean, normalize.std)[0]
            picture.mean, picture.std = normalize.mean, normalize.std
        case steps.ToFloat():
            planes = F.pil_to_tensor(image) if isinstance(image, Image.Image) else image
            picture.pixels = F.to_dtype(planes, torch.float32, scale=True)
        case steps.Normalize():
            picture.pixels = F.normalize(image, list(step.mean), list(step.std))
            picture.mean, picture.std = step.mean, step.std
        case steps.Rotate():
            fill = picture.color(step.fill)
            picture.pixels = F.rotate(image, step.degrees, InterpolationMode(step.interpolation), fill=fill)
        case steps.Affine():
            mode, fill = InterpolationMode(step.interpolation), picture.color(step.fill)
            shear = list(step.shear)
            picture.pixels = F.affine(image, step.degrees, list(step.translation), step.scale, shear, mode, fill=fill)
        case steps.Several():
            for one in step.steps:
                apply_step(one, picture)
        case steps.Change():
            picture.pixels = _change(image, step)
        case steps.PaddedCrop():
            picture.pixels = _padded_crop(image, step, picture)
        case steps.Erase():
            picture.pixels = _erase(image, step, picture.color(step.fill))
        case _:
            picture.pixels = _geometry(step, image) if isinstance(step, _GEOMETRY) else _values(step, image)


_GEOMETRY = (steps.Crop, steps.Resize, steps.Flip, steps.Turn)


def _geometry(step: Step, image: Any) -> Any:
    match step:
        case steps.ResizedCrop():
            left, top, width, height = map(int, step.box)
            return F.resized_crop(
                image, top, left, height, width, list(step.size), _MODES[step.interpolation], antialias=True
            )
        case steps.Resize():
            return F.resize(image, list(step.size), _MODES[step.interpolation], antialias=True)
        case steps.Crop():
            left, top, width, height = map(int, step.box)
            return F.crop(image, top, left, height, width)
        case steps.Flip():
            return F.horizontal_flip(image) if step.horizontally else F.vertical_flip(image)
        case steps.Turn():
            if isinstance(image, Image.Image):
                turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
                turn = turns[step.quarters]
                return image if turn is None else image.transpose(turn)
            return torch.rot90(image, step.quarters, (1, 2))
    raise TypeError(f"{type(step).__name__} is no step on places")


def _values(step: Step, image: Any) -> Any:
    match step:
        case steps.Blur():
            return F.gaussian_blur(image, [step.kernel_size] * 2, [step.sigma] * 2)
        case steps.Brightness():
            return F.adjust_brightness(image, step.factor)
        case steps.Contrast():
            return F.adjust_contrast(image, step.factor)
        case steps.Saturation():
            return F.adjust_saturation(image, step.factor)
        case steps.Hue():
            return F.adjust_hue(image, step.turn)
        case steps.Grayscale():
            return F.rgb_to_grayscale(image, num_output_channels=3)
        case steps.Invert():
            return F.invert(image)
        case steps.Posterize():
            return F.posterize(image, step.bits)
        case steps.Sharpness():
            return F.adjust_sharpness(image, step.factor)
        case steps.Autocontrast():
            return F.autocontrast(image)
        case steps.Equalize():
            return F.equalize(image)
        case steps.Solarize():
            is_float = isinstance(image, torch.Tensor) and image.is_floating_point()
            return F.solarize(image, step.threshold if is_float else 255 * step.threshold)
    raise TypeError(f"{type(step).__name__} is no step on values")


def _erase(image: Any, step: steps.Erase, fill: list[float]) -> Any:
    left, top, width, height = map(int, step.box)
    if not width * height:
        return image
    if isinstance(image, Image.Image):
        image = image.copy()
        image.paste(tuple(map(int, fill)), (left, top, left + width, top + height))
        return image
    return F.erase(image, top, left, height, width, torch.tensor(fill, dtype=image.dtype)[:, None, None])


def _change(image: Any, step: steps.Change) -> Any:
    planes = F.pil_to_tensor(image) if isinstance(image, Image.Image) else image
    for operation, parameters in step.changes:
        planes = operation(planes[None], torch.tensor([parameters]))[0]
    return F.to_pil_image(planes) if isinstance(image, Image.Image) else planes


def _padded_crop(image: Any, step: steps.PaddedCrop, picture: Picture) -> Any:
    """Cut out what lies inside the image, and what the border mirrors, before the border is added."""
    left, top, width, height = map(int, step.box)
    mirrors = step.border != "constant"
    (first_column, columns, *across), (first_row, rows, *down) = (
        _inside(start, length, side, mirrors)
        for start, length, side in ((left, width, picture.size[1]), (top, height, picture.size[0]))
    )
    fill = picture.color(step.fill) if step.border == "constant" else None
    inside = F.crop(image, first_row, first_column, rows, columns)
    padded = F.pad(inside, [across[0], down[0], across[1], down[1]], fill, step.border)
    return F.crop(padded, top - first_row + down[0], left - first_column + across[0], height, width)


def _inside(start: int, length: int, side: int, mirrors: bool) -> tuple[int, int, int, int]:
    """Return along an axis what a crop needs of an image: its first pixel, how many, and the borders on both sides."""
    before, after = max(0, -start), max(0, start + length - side)
    first = min(max(start, 0), side - 1)  # a pixel at least, though all of the crop may lie outside
    last = max(min(start + length, side), first + 1)
    if mirrors and before:
        last = max(last, min(before + 1, side))
    if mirrors and after:
        first = min(first, max(side - after - 1, 0))
    return first, last - first, before, after


def _resize_window(image: Any, step: Window) -> Any:
    left, top, width, height = step.box
    if isinstance(image, Image.Image):
        if step.cut:
            cut = image.crop((int(left), int(top), int(left + width), int(top + height)))
            return cut.resize(step.size[::-1], Image.Resampling.BILINEAR)
        box = (left, top, min(left + width, image.width), min(top + height, image.height))
        return image.resize(step.size[::-1], Image.Resampling.BILINEAR, box=box)
    pixels = image.permute(1, 2, 0).numpy()
    if step.cut:
        pixels = pixels[int(top) : int(top + height), int(left) : int(left + width)]
        left = top = 0.0
    pixels = np.ascontiguousarray(pixels)
    width, height = min(width, pixels.shape[1] - left), min(height, pixels.shape[0] - top)
    out = np.empty((*step.size, 3), np.uint8)
    target = out[:, ::-1] if step.flips[0] else out
    resize_window(pixels, left, top, width, height, target[::-1] if step.flips[1] else target)
    return torch.from_numpy(out).permute(2, 0, 1)


def machine_costs() -> Costs:
    """Return what steps cost on this machine, as far as it has been measured; the rest is, when it is asked for."""
    return Costs(execution, costs_file())


def execution(step: Step, pixels: np.ndarray, backend: str, form: Form) -> Callable[[], Picture]:
    """Return a call that does one step to an image in some form, again and again, for measuring."""
    picture = Picture.of(pixels, backend)
    if form.is_float:
        apply_step(steps.ToFloat(), picture)
    if isinstance(picture.pixels, torch.Tensor):
        picture.pixels = _laid_out(picture.pixels, form)

    def call() -> Picture:
        done = Picture(picture.pixels)
        apply_step(step, done)
        return done

    return call


def _laid_out(pixels: torch.Tensor, form: Form) -> torch.Tensor:
    """Return the same pixels (3, H, W) as they lie in a form."""
    height, width = pixels.shape[1:]
    rows, columns = height + form.is_cut, width + form.is_cut
    if form.is_planar:
        memory = pixels.new_empty(3, rows, columns)
    else:
        memory = pixels.new_empty(rows, columns, 3).permute(2, 0, 1)
    return memory[:, :height, :width].copy_(pixels)
