"""Operations made of operations: policies, which choose one of many as loaders.draws does, and several together."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from kernels.device import Color
from loaders import draws, operations
from loaders.transforms import steps
from loaders.transforms.program import Untyped
from loaders.transforms.steps import RotationInterpolation, Size, Step
from loaders.transforms.types import DRAWS, Operation, Point, Spatial


@dataclass(frozen=True, kw_only=True)
class Policy(Operation):
    """A policy, for images of bytes.

    Attributes:
        fill: color of what comes in from outside the image, in fractions of white.
        interpolation: of its rotations, shears and translations.
    """

    fill: Color = (0.0, 0.0, 0.0)
    interpolation: RotationInterpolation = "bilinear"
    spatial = Spatial.ANY
    draws_parameters = True

    @abstractmethod
    def changes(self, draw: draws.Draw, size: Size) -> list[draws.Step]:
        """Return what is done to the images that are drawn for, bilinearly."""

    def batch_steps(self, uniforms: np.ndarray, size: Size) -> list[draws.Step]:
        """Return what is done to a batch.

        Args:
            uniforms: float64 (N, 43) in [0, 1): for each image what `step` takes.
            size: of the images.
        """
        changes = self.changes(lambda _, count: uniforms[:, :count], size)
        if self.interpolation == "bilinear":
            return changes
        nearest = operations.affine_nearest
        return [replace(one, operation=nearest) if one.operation is operations.affine else one for one in changes]

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        changes = self.batch_steps(uniforms[np.newaxis], size)
        chosen = [(one.operation, tuple(one.parameters[0].tolist())) for one in changes if len(one.rows)]
        return steps.Change(self.name, tuple(chosen))


@dataclass(frozen=True)
class RandAugment(Policy):
    """Some operations of one magnitude (Cubuk et al. 2019)."""

    layers: int = 2
    magnitude: float = 9.0

    def __post_init__(self) -> None:
        super().__post_init__()
        most = (DRAWS - 1) // 2
        if not (0 <= self.layers <= most and 0 <= self.magnitude <= draws.STRONGEST):
            raise ValueError(f"{self.name}: layers must be 0 to {most} and the magnitude 0 to {draws.STRONGEST}")

    def changes(self, draw: draws.Draw, size: Size) -> list[draws.Step]:
        return draws.rand_augment(draw, self.layers, self.magnitude, *size, self.fill)


@dataclass(frozen=True)
class TrivialAugment(Policy):
    """One operation of any magnitude, wide space (Mueller and Hutter 2021)."""

    def changes(self, draw: draws.Draw, size: Size) -> list[draws.Step]:
        return draws.trivial_augment(draw, draws.STRONGEST, *size, self.fill)


@dataclass(frozen=True)
class Together(Operation):
    """All of some operations, or none of them; for images of bytes, whose size they keep."""

    operations: tuple[Operation, ...]
    spatial = Spatial.ANY
    draws_parameters = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.operations) > 6 or not all(map(can_be_together, self.operations)):
            names = ", ".join(operation.name for operation in self.operations)
            raise ValueError(f"{self.name}: up to six operations that are always done and keep the size, not {names}")

    @property
    def name(self) -> str:
        return "+".join(operation.name for operation in self.operations)

    def shares(self, uniforms: np.ndarray) -> list[np.ndarray]:
        """Return what each operation gets of draws (..., 43)."""
        share = (DRAWS - 1) // len(self.operations)
        return [uniforms[..., place * share : (place + 1) * share] for place in range(len(self.operations))]

    def step(self, uniforms: np.ndarray, size: Size) -> Step:
        shares = self.shares(uniforms)
        done = [operation.step(share, size) for operation, share in zip(self.operations, shares, strict=True)]
        return steps.Several(tuple(done))


def can_be_together(operation: Operation) -> bool:
    """Whether `Together` takes an operation."""
    kinds = (Spatial.NONE, Spatial.PERMUTE, Spatial.ROTATE, Spatial.AFFINE, Spatial.FILTER)
    if isinstance(operation, Untyped) or operation.point in (Point.TO_FLOAT, Point.NORMALIZE):
        return False
    return operation.probability == 1 and operation.spatial in kinds
