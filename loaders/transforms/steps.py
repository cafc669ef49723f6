"""What is done to one image: operations whose parameters are drawn, and what becomes of them when they change places.

Sizes are (height, width) in pixels. Colors are red, green and blue as fractions of white, whatever the representation
of the image at the time: who executes a step scales and normalizes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

from kernels.device import Color

Size = tuple[int, int]
Interpolation = Literal["bilinear", "bicubic"]
RotationInterpolation = Literal["nearest", "bilinear"]
Border = Literal["constant", "reflect"]


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    width: float
    height: float

    def mirrored(self, horizontally: bool, size: Size) -> Box:
        """Return the same pixels' place in the mirrored image."""
        if horizontally:
            return self._replace(left=size[1] - self.left - self.width)
        return self._replace(top=size[0] - self.top - self.height)

    def turned(self, quarters: int, size: Size) -> Box:
        """Return the same pixels' place in the image turned counterclockwise."""
        box, (height, width) = self, size
        for _ in range(quarters % 4):
            box = Box(box.top, width - box.left - box.width, box.height, box.width)
            height, width = width, height
        return box


@dataclass(frozen=True)
class Step:
    """One thing done to one image.

    Attributes:
        makes_float: the image is in float32 afterwards, whatever it was before.
    """

    makes_float: ClassVar[bool] = False

    def output_size(self, size: Size) -> Size:
        """Return the image's size afterwards."""
        return size

    def mirrored(self, horizontally: bool, size: Size) -> Step:
        """Return what does the same to the mirrored image.

        Args:
            horizontally: mirrored left to right, else top to bottom.
            size: of the image that this step takes.
        """
        return self

    def turned(self, quarters: int, size: Size) -> Step:
        """Return what does the same to the image turned counterclockwise by quarters of a circle."""
        return self

    def cost_key(self) -> str:
        """Return what the cost for each pixel depends on."""
        return type(self).__name__


@dataclass(frozen=True)
class Skip(Step):
    """A random operation that does not happen."""


@dataclass(frozen=True)
class Crop(Step):
    """Cut out a box of whole pixels inside the image."""

    box: Box

    def output_size(self, size: Size) -> Size:
        return int(self.box.height), int(self.box.width)

    def mirrored(self, horizontally: bool, size: Size) -> Self:
        return replace(self, box=self.box.mirrored(horizontally, size))

    def turned(self, quarters: int, size: Size) -> Self:
        return replace(self, box=self.box.turned(quarters, size))


@dataclass(frozen=True)
class PaddedCrop(Step):
    """Cut out a box of whole pixels, what is outside the image being a color or the image reflected."""

    box: Box
    border: Border = "constant"
    fill: Color = (0.0, 0.0, 0.0)

    def output_size(self, size: Size) -> Size:
        return int(self.box.height), int(self.box.width)

    def mirrored(self, horizontally: bool, size: Size) -> Self:
        return replace(self, box=self.box.mirrored(horizontally, size))

    def turned(self, quarters: int, size: Size) -> Self:
        return replace(self, box=self.box.turned(quarters, size))

    def cost_key(self) -> str:
        return f"PaddedCrop {self.border}"


@dataclass(frozen=True)
class Resize(Step):
    """Resize the whole image, antialiased."""

    size: Size
    interpolation: Interpolation

    def output_size(self, size: Size) -> Size:
        return self.size

    def turned(self, quarters: int, size: Size) -> Self:
        return replace(self, size=self.size[::-1] if quarters % 2 else self.size)

    def cost_key(self) -> str:
        return f"Resize {self.interpolation}"


@dataclass(frozen=True)
class ResizedCrop(Resize):
    """Cut out a box of whole pixels and resize it; the filter does not look beyond the box."""

    box: Box

    def mirrored(self, horizontally: bool, size: Size) -> Self:
        return replace(self, box=self.box.mirrored(horizontally, size))

    def turned(self, quarters: int, size: Size) -> Self:
        return replace(super().turned(quarters, size), box=self.box.turned(quarters, size))

    def cost_key(self) -> str:
        return f"ResizedCrop {self.interpolation}"


@dataclass(frozen=True)
class Flip(Step):
    """Mirror the image, left to right or top to bottom."""

    horizontally: bool = True

    def cost_key(self) -> str:
        return "Flip" if self.horizontally else "Flip vertically"


@dataclass(frozen=True)
class Turn(Step):
    """Turn the image counterclockwise by quarters of a circle."""

    quarters: int

    def output_size(self, size: Size) -> Size:
        return size[::-1] if self.quarters % 2 else size

    def mirrored(self, horizontally: bool, size: Size) -> Self:
        return replace(self, quarters=-self.quarters % 4)

    def cost_key(self) -> str:
        return f"Turn {self.quarters}"


@dataclass(frozen=True)
class Rotate(Step):
    """Rotate the image about its center, counterclockwise, within its frame."""

    degrees: float
    fill: Color = (0.0, 0.0, 0.0)
    interpolation: RotationInterpolation = "bilinear"

    def mirrored(self, horizontally: bool, size: Size) -> Self:
        return replace(self, degrees=-self.degrees)

    def cost_key(self) -> str:
        return f"Rotate {self.interpolation}"


@dataclass(frozen=True)
class Affine(Step):
    """Rotate, shear, scale and move the image about its center within its frame, as torchvision's ``affine``.

    Attributes:
        degrees: of the rotation, clockwise.
        translation: pixels to the right and down.
        shear: degrees, across and down.
    """

    degrees: float
    translation: tuple[int, int]
    scale: float
    shear: tuple[float, float]
    fill: Color = (0.0, 0.0, 0.0)
    interpolation: RotationInterpolation = "bilinear"

    def mirrored(self, horizontally: bool, size: Size) -> Self:
        right, down = self.translation
        translation = (-right, down) if horizontally else (right, -down)
        shear = (-self.shear[0], -self.shear[1])
        return replace(self, degrees=-self.degrees, translation=translation, shear=shear)

    def cost_key(self) -> str:
        return f"Affine {self.interpolation}"


@dataclass(frozen=True)
class Blur(Step):
    """Convolve with a Gaussian, the image reflected about its outermost pixels."""

    kernel_size: int
    sigma: float

    def cost_key(self) -> str:
        return f"Blur {self.kernel_size}"


@dataclass(frozen=True)
class Erase(Step):
    """Fill a box of whole pixels, which may be empty, with a color."""

    box: Box
    fill: Color

    def mirrored(self, horizontally: bool, size: Size) -> Self:
        return replace(self, box=self.box.mirrored(horizontally, size))

    def turned(self, quarters: int, size: Size) -> Self:
        return replace(self, box=self.box.turned(quarters, size))

    def before(self, crop: Box) -> Self:
        """Return what erases the same before the crop is cut out."""
        return replace(self, box=self.box._replace(left=self.box.left + crop.left, top=self.box.top + crop.top))

    def after(self, crop: Box) -> Self:
        """Return what erases the same, as far as the crop shows it."""
        left, top = max(0.0, self.box.left - crop.left), max(0.0, self.box.top - crop.top)
        right = min(crop.width, self.box.left + self.box.width - crop.left)
        bottom = min(crop.height, self.box.top + self.box.height - crop.top)
        if right <= left or bottom <= top:
            return replace(self, box=Box(0, 0, 0, 0))
        return replace(self, box=Box(left, top, right - left, bottom - top))


@dataclass(frozen=True)
class ToFloat(Step):
    """From bytes to float32, white as 1."""

    makes_float = True


@dataclass(frozen=True)
class Normalize(Step):
    """Subtract a mean and divide by a standard deviation, for each channel."""

    mean: Color
    std: Color


@dataclass(frozen=True)
class Brightness(Step):
    """Multiply by a factor."""

    factor: float


@dataclass(frozen=True)
class Contrast(Step):
    """Blend with the image's mean luma."""

    factor: float


@dataclass(frozen=True)
class Saturation(Step):
    """Blend with the luma."""

    factor: float


@dataclass(frozen=True)
class Hue(Step):
    """Turn the hue by a fraction of the circle."""

    turn: float


@dataclass(frozen=True)
class Grayscale(Step):
    """Replace each channel by the luma."""


@dataclass(frozen=True)
class Invert(Step):
    """Replace each value by its distance from white."""


@dataclass(frozen=True)
class Solarize(Step):
    """Invert levels from a threshold on, which is a fraction of white."""

    threshold: float


@dataclass(frozen=True)
class Posterize(Step):
    """Keep the uppermost bits of each byte."""

    bits: int


@dataclass(frozen=True)
class Sharpness(Step):
    """Blend with a smoothed image; the outermost pixels stay."""

    factor: float


@dataclass(frozen=True)
class Autocontrast(Step):
    """Stretch each channel to the full range."""


@dataclass(frozen=True)
class Equalize(Step):
    """Equalize each channel's histogram."""


@dataclass(frozen=True)
class Several(Step):
    """Do some steps, all of which keep the image's size."""

    steps: tuple[Step, ...]

    def cost_key(self) -> str:
        return " + ".join(step.cost_key() for step in self.steps)


@dataclass(frozen=True)
class Change(Step):
    """Do operations of loaders.operations, each with its parameters, to bytes.

    Attributes:
        name: of the operation that drew them.
    """

    name: str
    changes: tuple[tuple[Callable[[Any, Any], Any], tuple[float, ...]], ...]

    def cost_key(self) -> str:
        return " + ".join([self.name, *(getattr(change, "__name__", str(change)) for change, _ in self.changes)])


@dataclass(frozen=True)
class Call(Step):
    """Call a function of the user's."""

    function: Callable[[Any], Any]


def exchange(first: Step, second: Step, size: Size) -> tuple[Step, Step]:
    """Return two steps that do in the other order what these do in theirs, as far as that is possible.

    Args:
        size: of the image that the first step takes.
    """
    if isinstance(first, Flip):
        return second.mirrored(first.horizontally, size), first
    if isinstance(second, Flip):
        return second, first.mirrored(second.horizontally, size)
    if isinstance(first, Turn):
        return second.turned(-first.quarters, first.output_size(size)), first
    if isinstance(second, Turn):
        return second, first.turned(second.quarters, size)
    if isinstance(first, Erase) and isinstance(second, Crop):
        return second, first.after(second.box)
    if isinstance(first, Crop) and isinstance(second, Erase):
        return second.before(first.box), first
    return second, first


def reorder(steps: tuple[Step, ...], order: tuple[int, ...], size: Size) -> tuple[Step, ...]:
    """Bring steps into another order, one exchange of neighbors at a time, each adapted to what it passes.

    Args:
        steps: in the order in which their parameters were drawn.
        order: for each place, the number of the step that is to stand there.
        size: of the image that the first step takes.
    """
    arranged = list(enumerate(steps))
    place = {number: position for position, number in enumerate(order)}
    for end in range(len(arranged) - 1, 0, -1):
        before = size
        for position in range(end):
            (number, first), (next_number, second) = arranged[position : position + 2]
            if place[number] > place[next_number]:
                second, first = exchange(first, second, before)
                arranged[position : position + 2] = (next_number, second), (number, first)
            before = arranged[position][1].output_size(before)
    return tuple(step for _, step in arranged)
