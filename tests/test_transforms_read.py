"""Transform lists from torchvision, and in the terms of the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

from loaders.transforms.apply import BACKENDS, run
from loaders.transforms.engine_split import SplitError, split_for_engine
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
from loaders.transforms.legality import Swap
from loaders.transforms.planner import plan
from loaders.transforms.program import Program, Untyped
from loaders.transforms.read import read_compose
from loaders.transforms.types import Operation
from loaders.transforms.values import (
    Brightness,
    Contrast,
    Grayscale,
    Hue,
    Invert,
    Normalize,
    Posterize,
    Saturation,
    Solarize,
    ToFloat,
)
from tests.images import photo
from tests.transform_costs import PixelCosts

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP = RandomResizedCrop((24, 32), (0.3, 1.0))
NORMALIZE = Normalize(MEAN, STD)
STRONGER, WEAKER = (0.7, 1.3), (0.3, 0.9)


def image(width: int = 60, height: int = 44, seed: int = 0) -> np.ndarray:
    return np.array(photo(width, height, seed))


def untouched(pixels: Any) -> Any:
    return pixels


@pytest.mark.filterwarnings("ignore:The transform .ToTensor")
@pytest.mark.parametrize("version", [v1, v2])
def test_a_compose_is_read(version: Any) -> None:
    compose = version.Compose(
        [
            version.RandomResizedCrop(96, scale=(0.25, 1)),
            version.Compose([version.RandomHorizontalFlip(0.3), version.RandomVerticalFlip(0.2)]),
            version.RandomRotation(10, interpolation=version.InterpolationMode.BILINEAR, fill=255),
            version.ColorJitter(0.4, 0.3, (0.5, 0.9), 0.1),
            version.RandomGrayscale(0.2),
            version.RandomApply([version.GaussianBlur(5, (0.1, 1))], 0.4),
            version.RandomSolarize(128, 0.1),
            version.RandomPosterize(4, 0.1),
            version.RandomInvert(0.1),
            version.ToTensor(),
            version.Normalize(MEAN, STD),
            version.RandomErasing(0.25),
        ]
    )
    assert read_compose(compose).operations == (
        RandomResizedCrop((96, 96), (0.25, 1)),
        HorizontalFlip(probability=0.3),
        VerticalFlip(probability=0.2),
        Rotation((-10.0, 10.0), (1.0, 1.0, 1.0)),
        Brightness((0.6, 1.4)),
        Contrast((0.7, 1.3)),
        Saturation((0.5, 0.9)),
        Hue((-0.1, 0.1)),
        Grayscale(probability=0.2),
        GaussianBlur(5, (0.1, 1.0), probability=0.4),
        Solarize(128 / 255, probability=0.1),
        Posterize(4, probability=0.1),
        Invert(probability=0.1),
        ToFloat(),
        Normalize(MEAN, STD),
        Erasing(probability=0.25, fill=MEAN),  # zero behind the normalization
    )


def test_what_is_unknown_stays_as_it_is() -> None:
    odd = [
        v2.RandomRotation(10),  # by the nearest pixel
        v2.RandomCrop(32, padding=4),
        v2.Resize(32, antialias=False),
        v2.RandomApply([v2.ColorJitter(0.1, 0.1)], 0.5),
        v2.ToDtype(torch.float64, scale=True),
        v2.RandomErasing(value="random"),
        v2.GaussianBlur((3, 5)),
        v2.Grayscale(1),
        v2.Lambda(untouched),
        untouched,
    ]
    operations = read_compose([v2.ToImage(), v2.CenterCrop(40), v2.Resize((20, 30)), *odd]).operations
    assert operations[:2] == (CenterCrop((40, 40)), Resize((20, 30)))
    assert [operation.function for operation in operations[2:]] == odd  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="cannot be called"):
        read_compose([3])
    with pytest.raises(ValueError, match="put ToFloat before it"):
        read_compose([v2.Normalize(MEAN, STD)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_do_what_torchvision_does(backend: str) -> None:
    compose = v2.Compose(
        [v2.ToImage(), v2.Resize(40), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    pixels = image(80, 61)
    expected = compose(photo(80, 61)).permute(1, 2, 0).numpy()
    chosen = plan(read_compose(compose), PixelCosts(), (61, 80), backend)
    result = run(chosen, pixels).pixels.permute(1, 2, 0).numpy()
    assert np.abs(result - expected).max() * max(STD) * 255 <= 3


def test_a_program_is_split_for_the_engine() -> None:
    square, erasing = RandomResizedCrop((64, 64), (0.3, 1.0), (0.5, 2.0)), Erasing(fill=MEAN)
    program = Program((ToFloat(), Saturation(WEAKER), NORMALIZE, erasing, HorizontalFlip(probability=0.3), square))
    with pytest.raises(SplitError, match="Erasing stands before RandomResizedCrop"):
        split_for_engine(plan(program, PixelCosts()))
    program = Program((ToFloat(), Saturation(WEAKER), NORMALIZE, HorizontalFlip(probability=0.3), square, erasing))
    split = split_for_engine(plan(program, PixelCosts()))
    assert (split.crop, split.resolution, split.scale, split.ratio) == ("random-resized", 64, (0.3, 1.0), (0.5, 2.0))
    assert (split.flip, split.mean, split.std, split.swap) == (0.3, MEAN, STD, Swap.EXACT)
    assert [(rest.operation.name, rest.number, rest.place) for rest in split.rest] == [
        ("Saturation", 1, "device"),
        ("Erasing", 5, "device"),
    ]
    evaluation = Program((Resize(64), CenterCrop((56, 56)), ToFloat()))
    split = split_for_engine(plan(evaluation, PixelCosts()))
    assert (split.crop, split.resolution, split.crop_fraction, split.flip) == ("center", 56, 56 / 64, 0.0)
    assert split.mean is None


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        ((Contrast(STRONGER), RandomResizedCrop((8, 8))), "Contrast stands before RandomResizedCrop"),
        ((Brightness(STRONGER), RandomResizedCrop((8, 8))), "would change pixels visibly"),
        ((Untyped(untouched), RandomResizedCrop((8, 8))), "untouched is a function of your own"),
        ((HorizontalFlip(), Posterize(3), RandomResizedCrop((8, 8))), "another program"),
        ((HorizontalFlip(), RandomResizedCrop((8, 8)), Posterize(3)), "Posterize has jumps"),
        ((CROP,), "squares"),
        ((RandomResizedCrop((8, 8), interpolation="bicubic"),), "bicubic"),
        ((HorizontalFlip(),), "here: none"),
        ((RandomCrop((8, 8)),), "here: RandomCrop"),
        ((HorizontalFlip(), HorizontalFlip(), RandomResizedCrop((8, 8))), "twice"),
    ],
)
def test_what_the_engine_cannot_do_is_named(operations: tuple[Operation, ...], reason: str) -> None:
    with pytest.raises(SplitError, match=reason):
        split_for_engine(plan(Program(operations), PixelCosts()))
