"""Neighboring steps on bytes that one pass does together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loaders.transforms.steps import Box, Crop, Flip, Normalize, Resize, ResizedCrop, Size, Skip, Step, ToFloat


@dataclass(frozen=True)
class Window(Step):
    """Resize a window, fractions of a pixel allowed, bilinearly, the filter looking beyond it; mirror the result.

    Attributes:
        box: the window; inside the image.
        size: of the result.
        cut: cut the window out first, so that the filter does not look beyond it; whole pixels then.
        flips: mirror left to right, mirror top to bottom.
    """

    box: Box
    size: Size
    cut: bool = False
    flips: tuple[bool, bool] = (False, False)

    def output_size(self, size: Size) -> Size:
        return self.size

    def cost_key(self) -> str:
        across, down = self.flips
        return "Window" + " cut" * self.cut + " mirrored" * across + " upside down" * down


@dataclass(frozen=True)
class FloatNormalize(Step):
    """Convert to float32 and normalize in one pass."""

    makes_float = True
    normalize: Normalize


def fuse(steps: Sequence[Step], size: Size, backend: str, is_float: bool = False) -> list[Step]:
    """Return steps that do the same with less work, as the backend can.

    Pillow resizes windows with fractions, so Resize and the crop behind it are one; our kernels also mirror on the way,
    and convert and normalize at once. torchvision's operations stay as they are. Whether a crop joins a resize depends
    on their operations alone, not on whether a random one between them happens.

    Args:
        size: of the image that the first step takes.
        is_float: the image is in floating point to begin with.
    """
    fused: list[Step] = []
    skipped = False
    for step in steps:
        if isinstance(step, Skip):
            skipped = True
            continue
        before, size = size, step.output_size(size)
        last = fused[-1] if fused else None
        if backend == "kernels" and isinstance(step, Normalize) and isinstance(last, ToFloat):
            fused[-1] = FloatNormalize(step)
            continue
        is_float = is_float or step.makes_float
        joined = None if is_float or backend == "torchvision" else _join(last, step, backend)
        if skipped and isinstance(step, Crop):
            joined = None
        skipped = False
        if joined is not None:
            fused[-1] = joined
        else:
            window = None if is_float or backend == "torchvision" else _window(step, before)
            fused.append(window or step)
    return fused


def _window(step: Step, size: Size) -> Window | None:
    """Return a bilinear resize as a window."""
    if not isinstance(step, Resize) or step.interpolation != "bilinear":
        return None
    if isinstance(step, ResizedCrop):
        return Window(step.box, step.size, cut=True)
    return Window(Box(0, 0, size[1], size[0]), step.size)


def _join(last: Step | None, step: Step, backend: str) -> Step | None:
    """Return one step that does two, if there is one."""
    if not isinstance(last, Window):
        return None
    if isinstance(step, Flip) and backend == "kernels":
        horizontally, vertically = last.flips
        flips = (horizontally != step.horizontally, vertically != (not step.horizontally))
        return replace(last, flips=flips)
    if isinstance(step, Crop) and not last.cut and not any(last.flips):
        across, down = last.box.width / last.size[1], last.box.height / last.size[0]
        left, top = last.box.left + step.box.left * across, last.box.top + step.box.top * down
        box = Box(left, top, step.box.width * across, step.box.height * down)
        return replace(last, box=box, size=step.output_size(last.size))
    return None
