"""A chain of resizes and crops as one window of each image, which a loader cuts out and resizes while it decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loaders.plan import Crop
from loaders.transforms.geometry import CenterCrop, RandomCrop, RandomResizedCrop, Resize
from loaders.transforms.legality import Swap
from loaders.transforms.steps import Size
from loaders.transforms.types import Operation, Range


class SplitError(ValueError):
    """A program that loaders and device cannot do between them; the message says what to do instead."""


@dataclass(frozen=True)
class Windows:
    """Windows as a View takes them (see `loaders.plan.View`).

    Attributes:
        resolution: side of the result.
        notes: what is done otherwise than the chain says, in words.
    """

    crop: Crop
    resolution: int
    crop_fraction: float = 1.0
    scale: Range = (0.25, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    notes: tuple[str, ...] = ()


def windows_of(chain: Sequence[Operation], most: Swap, image_size: Size | None = None) -> Windows:
    """Return the windows of a chain of resizes and crops.

    Args:
        chain: operations that resize or cut out, in order.
        most: what may change; APPROX takes bicubic resizes as bilinear and several resizes as one.
        image_size: (height, width) of all images, if they have the same.

    Raises:
        SplitError: the chain has no window, or does not make squares of one size.
    """
    state = _State(most, image_size)
    for operation in chain:
        if operation.probability < 1:
            raise SplitError(f"{operation.name} with a probability below 1 would give images of several sizes")
        if isinstance(operation, Resize | RandomResizedCrop) and operation.interpolation != "bilinear":
            state.approximate(
                f"{operation.name} is {operation.interpolation}, but loaders resize bilinearly",
                "let it be bilinear",
            )
        match operation:
            case Resize():
                state.resize(operation)
            case CenterCrop() | RandomCrop():
                state.cut(operation)
            case RandomResizedCrop():
                state.cut_and_resize(operation)
    return state.windows()


class _State:
    """What the operations so far make of an image.

    Attributes:
        side: shorter side of what they make, pixels; None where images have several sizes.
        is_square: what they make is a square, whatever the image was.
        is_resized, is_stretched: the image was resized, not in proportion.
        cut_by: the crop, if there was one.
        fraction: side of what is cut out over the shorter side, or, stretched, over both.
    """

    def __init__(self, most: Swap, image_size: Size | None) -> None:
        self.most = most
        self.image_size = image_size
        self.side = min(image_size) if image_size else None
        self.is_square = image_size is not None and image_size[0] == image_size[1]
        self.is_resized = self.is_stretched = False
        self.cut_by: Operation | None = None
        self.fraction = 1.0
        self.notes: list[str] = []

    def approximate(self, what: str, instead: str) -> None:
        """Note what is not done to the letter, or refuse it."""
        if self.most < Swap.APPROX:
            raise SplitError(f"{what}: {instead}")
        self.notes.append(what)

    def resize(self, operation: Resize) -> None:
        size = operation.size
        target = size if isinstance(size, int) else _square(operation.name, size)
        if target == self.side and (self.is_square or isinstance(size, int)):
            return
        if self.is_resized:
            self.approximate("images are resized more than once; a loader does so once", "leave the first resize out")
        if not (self.is_square or isinstance(size, int)):
            self.is_square = self.is_stretched = True
        self.side, self.is_resized = target, True

    def cut(self, operation: CenterCrop | RandomCrop) -> None:
        name, side = operation.name, _square(operation.name, operation.size)
        if self.side is None:
            raise SplitError(f"{name} cuts {side} pixels out of images of several sizes: put a Resize before it")
        if side > self.side:
            raise SplitError(f"{name} cuts {side} pixels out of images that may have no more than {self.side}")
        if side == self.side and self.is_square:
            return
        is_random = isinstance(operation, RandomCrop)
        if self.cut_by is not None and (is_random or not isinstance(self.cut_by, CenterCrop)):
            raise SplitError(f"{name} stands behind {self.cut_by.name}: a loader cuts out one window; leave one out")
        if not (is_random or self.is_resized) and any((length - side) % 2 for length in self.image_size or ()):
            self.approximate(
                f"{name} leaves an odd number of pixels, and is off by half a pixel", "choose another size"
            )
        self.fraction *= side / self.side
        self.side, self.is_square, self.cut_by = side, True, operation

    def cut_and_resize(self, operation: RandomResizedCrop) -> None:
        name, side = operation.name, _square(operation.name, operation.size)
        if self.cut_by is not None:
            raise SplitError(f"{name} stands behind {self.cut_by.name}: a loader cuts out one window; leave one out")
        if self.is_stretched:
            raise SplitError(f"Resize squeezes images into squares before {name}: leave it out, {name} takes any size")
        if self.is_resized:
            self.approximate(
                f"{name} is of the image before the Resize", f"leave the Resize out, as {name} takes images of any size"
            )
        self.side, self.is_square, self.is_resized, self.cut_by = side, True, True, operation

    def windows(self) -> Windows:
        if self.side is None:
            raise SplitError(
                "nothing makes images of one size: begin with RandomResizedCrop(n), Resize(n) and CenterCrop(n), or "
                "Resize((n, n))"
            )
        if not self.is_square:
            side = self.side
            raise SplitError(
                f"images of several shapes come out of it, and batches take squares: put CenterCrop({side}) behind "
                f"Resize({side}), or squeeze them into squares by Resize(({side}, {side}))"
            )
        notes = tuple(self.notes)
        if isinstance(self.cut_by, RandomResizedCrop):
            scale, ratio = self.cut_by.scale, self.cut_by.ratio
            return Windows("random-resized", self.side, scale=scale, ratio=ratio, notes=notes)
        crop: Crop = "stretch" if self.is_stretched else "center"
        if isinstance(self.cut_by, RandomCrop):
            crop = "random-stretch" if self.is_stretched else "random-square"
        return Windows(crop, self.side, self.fraction, notes=notes)


def _square(name: str, size: Size) -> int:
    """Return the side of a square size."""
    height, width = size
    if height != width:
        raise SplitError(
            f"{name} makes {width} x {height} pixels, and loaders make squares: give both sides one length"
        )
    return height
