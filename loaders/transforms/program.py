"""Programs: transform lists as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from loaders.transforms import steps
from loaders.transforms.steps import Size, Step
from loaders.transforms.types import Operation, Point, Spatial
from loaders.transforms.values import Normalize


@dataclass(frozen=True)
class Untyped(Operation):
    """A function of the user's, of which nothing is known: nothing moves across it.

    It takes and returns an image of RGB as the backend has it at this place: a PIL image or a tensor (3, H, W).

    Attributes:
        reason: what of one of torchvision's transforms no typed operation can do; empty for other functions.
        instead: why loaders and device cannot call it in its place either, or what to do then; empty where they can.
    """

    function: Callable[[Any], Any]
    reason: str = ""
    instead: str = ""

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def title(self) -> str:
        """Its name and the reason, if there is one."""
        return f"{self.name} {self.reason}".rstrip()

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        return steps.Call(self.function)


_CONVERSION = "ToFloat (ToTensor, or ToDtype(torch.float32, scale=True))"


@dataclass(frozen=True)
class Program:
    """A transform list, for RGB images of bytes.

    Raises:
        ValueError: it normalizes bytes, converts or normalizes twice or now and then, or does to floating-point pixels
            what is for bytes alone.
    """

    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        names = [operation.point for operation in self.operations]
        for kind in (Point.TO_FLOAT, Point.NORMALIZE):
            if names.count(kind) > 1:
                raise ValueError(f"the program {kind.value} more than once")
        for operation in self.operations:
            if operation.point in (Point.TO_FLOAT, Point.NORMALIZE) and operation.probability < 1:
                raise ValueError(
                    f"{operation.name} with a probability below 1 would give images of two kinds: let it be done always"
                )
        if Point.NORMALIZE in names and Point.TO_FLOAT not in names[: names.index(Point.NORMALIZE)]:
            for operation in self.operations[: names.index(Point.NORMALIZE)]:
                if isinstance(operation, Untyped) and operation.instead:  # it may be the conversion
                    raise ValueError(f"{operation.title}: {operation.instead}")
            raise ValueError(f"Normalize takes floating-point pixels: put {_CONVERSION} before it")
        for operation in self.operations[names.index(Point.TO_FLOAT) if Point.TO_FLOAT in names else len(names) :]:
            if operation.spatial is Spatial.ANY:
                raise ValueError(f"{operation.name} takes bytes: put it before {_CONVERSION}")

    def __len__(self) -> int:
        return len(self.operations)

    @property
    def normalization(self) -> Normalize | None:
        return next((one for one in self.operations if isinstance(one, Normalize)), None)

    def segments(self) -> list[range]:
        """Return the numbers of the operations between untyped functions, these alone."""
        starts = [0]
        for number, operation in enumerate(self.operations):
            if isinstance(operation, Untyped):
                starts += [number, number + 1]
        ends = [*starts[1:], len(self.operations)]
        return [range(start, end) for start, end in zip(starts, ends, strict=True) if end > start]
