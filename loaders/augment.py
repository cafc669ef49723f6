"""Augmentation of whole batches of bytes on the device, each image by draws of its own.

What runs where: the loader crops, resizes and flips (the plan says how). Everything else runs on the device, in this
order: shift within a reflected border, rotation, color jitter, RandAugment or TrivialAugment, blur, grayscale, what a
transform list leaves to the device (loaders.transforms.device); then, in one pass (kernels.fused), random erasing,
mixup or CutMix (loaders.mixing) and normalization.

The draws are made on the host, keyed by the sample, and decide which images each operation works on. So a sample's
result does not depend on the rest of its batch, and the host never has to ask the device for anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat

import numpy as np
import torch

from kernels.device import Color, upload
from kernels.fused import Erase
from kernels.random import uniform
from loaders import draws
from loaders.plan import Crop, View

_CPU_PIECE = 2**18  # values, four bytes each while an operation computes


@dataclass(frozen=True)
class Augmentation:
    """How training images vary. The defaults change nothing.

    Attributes:
        crop: how the plan draws crops (loaders.plan.View).
        scale: range of the crop's area over the image's (``random-resized``).
        ratio: range of the crop's aspect ratio (``random-resized``).
        crop_fraction: size of a crop that is not ``random-resized`` (loaders.plan.View).
        flip: probability of a horizontal flip.
        padding: border of a ``padded`` crop as a fraction of the side: images move by up to this much in each
            direction, in whole pixels, and the border is the image reflected.
        rotation: images are rotated by up to this many degrees in either direction.
        color_jitter: strengths of brightness, contrast, saturation and hue, applied in this order. A factor is drawn
            from 1 - strength to 1 + strength (not below 0), a turn of the hue from -strength to strength of the
            circle (at most 0.5). One number sets the first three.
        rand_augment_layers: operations of RandAugment (Cubuk et al. 2019); 0 is off.
        rand_augment_magnitude: their magnitude, 0 to 30.
        trivial_augment: one operation of TrivialAugment, wide space (Mueller and Hutter 2021).
        trivial_augment_magnitude: the magnitude is drawn from 0 to this, at most 30.
        blur: probability of a Gaussian blur with a standard deviation of 0.1 to 2 pixels (Chen et al. 2020).
        grayscale: probability of removing the color.
        erasing: probability of random erasing (Zhong et al. 2017): a rectangle of 2 % to a third of the image gets the
            mean color, which normalization turns into zeros.
        mixup: alpha of mixup; 0 is off (loaders.mixing).
        cutmix: alpha of CutMix; 0 is off.
        operations: of a transform list, in this order, after everything else but erasing and mixing.

    Raises:
        ValueError: a value is out of range or contradicts another; the message says what to give instead.
    """

    crop: Crop = "center"
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_fraction: float = 1.0
    flip: float = 0.0
    padding: float = 1 / 8
    rotation: float = 0.0
    color_jitter: float | tuple[float, ...] = 0.0
    rand_augment_layers: int = 0
    rand_augment_magnitude: float = 9.0
    trivial_augment: bool = False
    trivial_augment_magnitude: float = 30.0
    blur: float = 0.0
    grayscale: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    operations: tuple[draws.BatchOperation, ...] = ()

    def __post_init__(self) -> None:
        for name in ("flip", "blur", "grayscale", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability: give a number from 0 to 1, not {getattr(self, name)}")
        for name in ("rand_augment_magnitude", "trivial_augment_magnitude"):
            if not 0 <= getattr(self, name) <= draws.STRONGEST:
                raise ValueError(f"{name} must be from 0 to {draws.STRONGEST}, not {getattr(self, name)}")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"the alpha of {name} must be 0 (off) or positive, not {getattr(self, name)}")
        if self.rand_augment_layers < 0:
            raise ValueError(f"rand_augment_layers must be 0 (off) or more, not {self.rand_augment_layers}")
        if self.rand_augment_layers and self.trivial_augment:
            raise ValueError(
                "RandAugment and TrivialAugment exclude each other: set rand_augment_layers to 0 to use "
                "TrivialAugment, or turn trivial_augment off to use RandAugment"
            )
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction must be above 0 and at most 1, not {self.crop_fraction}")
        if not 0 <= self.padding < 1:
            raise ValueError(f"padding is a fraction of the side: give a number from 0 to below 1, not {self.padding}")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation must be from 0 to 180 degrees, not {self.rotation}")
        if not isinstance(self.color_jitter, float | int) and len(self.color_jitter) not in (3, 4):
            raise ValueError(
                "color_jitter takes one number, three (brightness, contrast, saturation) or four (and "
                f"hue), not {len(self.color_jitter)}"
            )
        if min(self.jitter_strengths) < 0 or self.jitter_strengths[3] > 0.5:
            raise ValueError(f"color_jitter strengths must not be negative and hue's at most 0.5: {self.color_jitter}")

    @property
    def jitter_strengths(self) -> tuple[float, float, float, float]:
        """Strengths of brightness, contrast, saturation and hue."""
        if isinstance(self.color_jitter, float | int):
            return self.color_jitter, self.color_jitter, self.color_jitter, 0.0
        brightness, contrast, saturation, *hue = self.color_jitter
        return brightness, contrast, saturation, hue[0] if hue else 0.0

    @property
    def mixes(self) -> bool:
        """Whether mixup or CutMix is on."""
        return self.mixup > 0 or self.cutmix > 0

    def view(self, resolution: int, batch_size: int, *, balanced: bool = False, drop_last: bool = False) -> View:
        """Return how training looks at a data set: the part that loaders do, for the arguments see View."""
        return View(
            resolution,
            batch_size,
            crop=self.crop,
            scale=self.scale,
            ratio=self.ratio,
            crop_fraction=self.crop_fraction,
            flip=self.flip,
            balanced=balanced,
            drop_last=drop_last,
        )

    def scaled(self, strength: float) -> Augmentation:
        """Return a weaker augmentation: regularization that follows the resolution (EfficientNetV2, Tan and Le 2021).

        Scales the magnitudes of RandAugment and TrivialAugment, color jitter, the probability of erasing and the
        alphas of mixup and CutMix. What the plan draws, the shift, the rotation, blur, grayscale and the operations of
        a transform list stay.

        Args:
            strength: 0 to 1; 1 changes nothing.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"the strength of regularization must be from 0 to 1, not {strength}")
        return replace(
            self,
            color_jitter=tuple(strength * value for value in self.jitter_strengths),
            rand_augment_magnitude=strength * self.rand_augment_magnitude,
            trivial_augment_magnitude=strength * self.trivial_augment_magnitude,
            erasing=strength * self.erasing,
            mixup=strength * self.mixup,
            cutmix=strength * self.cutmix,
        )


PRESETS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "light": Augmentation(crop="random-resized", scale=(0.35, 1.0), flip=0.5),
    "standard": Augmentation(crop="random-resized", scale=(0.25, 1.0), flip=0.5, trivial_augment=True, erasing=0.1),
    "strong": Augmentation(
        crop="random-resized",
        scale=(0.08, 1.0),
        flip=0.5,
        rand_augment_layers=2,
        rand_augment_magnitude=9.0,
        erasing=0.25,
        mixup=0.2,
        cutmix=1.0,
    ),
}


def _steps(
    seed: int, epoch: int, keys: np.ndarray, augmentation: Augmentation, height: int, width: int, fill: Color
) -> list[draws.Step]:
    """Draw everything that happens to a batch, in order; steps without images are left out."""
    draw = partial(uniform, seed, epoch, keys)
    steps: list[draws.Step] = []
    if augmentation.crop == "padded":
        steps += draws.shift(draw, augmentation.padding, height, width)
    if augmentation.rotation:
        steps += draws.rotation(draw, augmentation.rotation, height, width, fill)
    if any(augmentation.jitter_strengths):
        steps += draws.color_jitter(draw, augmentation.jitter_strengths)
    if augmentation.rand_augment_layers:
        layers, magnitude = augmentation.rand_augment_layers, augmentation.rand_augment_magnitude
        steps += draws.rand_augment(draw, layers, magnitude, height, width, fill)
    if augmentation.trivial_augment:
        steps += draws.trivial_augment(draw, augmentation.trivial_augment_magnitude, height, width, fill)
    if augmentation.blur:
        steps += draws.blur(draw, augmentation.blur, height, width)
    if augmentation.grayscale:
        steps += draws.grayscale(draw, augmentation.grayscale)
    for operation in augmentation.operations:
        steps += operation.steps(seed, epoch, keys, height, width)
    return [step for step in steps if len(step.rows)]


def augment(
    images: torch.Tensor,
    seed: int,
    epoch: int,
    keys: np.ndarray,
    augmentation: Augmentation,
    fill: Color = (0.5, 0.5, 0.5),
) -> torch.Tensor:
    """Apply what ``augmentation`` leaves to the device: all but crop, flip, erasing, mixup and CutMix.

    Args:
        images: uint8 (N, 3, H, W), dense, planar or channels_last; not changed.
        seed, epoch: what the draws depend on besides the keys.
        keys: uint64 (N,), one for each image.
        fill: red, green and blue (0 to 1) of what geometric operations bring in from outside the image; give the mean
            that the images are normalized with, and it becomes zeros.

    Returns:
        uint8 (N, 3, H, W) in the same layout; the images themselves where nothing changes.

    Raises:
        LoaderError: a function of the user's, in a transform list, failed or returned something else than an image.
    """
    if len(keys) != len(images):
        raise ValueError(f"{len(images)} images need as many keys, got {len(keys)}")
    steps = _steps(seed, epoch, keys, augmentation, images.shape[2], images.shape[3], fill)
    if not steps:
        return images
    planar = images.is_contiguous()
    stored = (images if planar else images.permute(0, 2, 3, 1)).clone()
    for operation, rows, parameters in _uploaded(steps, images):
        selected = stored.index_select(0, rows)
        selected = selected if planar else selected.permute(0, 3, 1, 2)
        changed = operation(selected, parameters)
        stored.index_copy_(0, rows, changed if planar else changed.permute(0, 2, 3, 1))
    return stored if planar else stored.permute(0, 3, 1, 2)


def draw_erasing(
    images: torch.Tensor, seed: int, epoch: int, keys: np.ndarray, augmentation: Augmentation
) -> Erase | None:
    """Draw what of the images is erased, for kernels.fused; arguments as those of `augment`."""
    if not augmentation.erasing:
        return None
    draw = partial(uniform, seed, epoch, keys)
    boxes = draws.erasing(draw, augmentation.erasing, images.shape[2], images.shape[3])
    return Erase(upload(boxes, images.device))


def _uploaded(
    steps: list[draws.Step], images: torch.Tensor
) -> Iterator[tuple[draws.Operation, torch.Tensor, torch.Tensor]]:
    """Upload the steps at once and yield operation, rows and parameters: on a CPU in pieces that fit its caches."""
    rows = upload(np.concatenate([step.rows for step in steps]), images.device)
    parameters = upload(np.concatenate([step.parameters.ravel() for step in steps]), images.device)
    piece = len(images) if images.device.type == "cuda" else max(1, _CPU_PIECE // images[0].numel())
    for step, step_rows, values in zip(
        steps,
        rows.split([len(step.rows) for step in steps]),
        parameters.split([step.parameters.size for step in steps]),
        strict=True,
    ):
        table = values.view(step.parameters.shape)
        yield from zip(repeat(step.operation), step_rows.split(piece), table.split(piece), strict=False)
