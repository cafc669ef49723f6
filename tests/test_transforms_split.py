"""Transform lists in the terms of the engine: what loaders do, what the device does, what nobody can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

from loaders.transforms.device import DeviceOperation
from loaders.transforms.engine_split import EngineSplit, SplitError, describe, split_for_engine
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
    Rotate90,
    Rotation,
    VerticalFlip,
)
from loaders.transforms.legality import Swap
from loaders.transforms.planner import ordered, plan
from loaders.transforms.policies import RandAugment, Together
from loaders.transforms.program import Program, Untyped
from loaders.transforms.read import read_compose
from loaders.transforms.types import Operation
from loaders.transforms.values import Brightness, Contrast, Grayscale, Hue, Posterize, Saturation, ToFloat
from tests.transform_costs import PixelCosts
from tests.transform_lists import CROP, MEAN, NORMALIZE, STD, STRONGER, WEAKER, untouched

SQUARE = RandomResizedCrop((8, 8))
FLIP = HorizontalFlip()
PADDED = PaddedRandomCrop((32, 32), (4, 4, 4, 4))


def split_of(*operations: Operation, most: Swap = Swap.EXACT, image_size: tuple[int, int] | None = None) -> EngineSplit:
    return split_for_engine(Program(operations), most, image_size)


def on_device(split: EngineSplit) -> list[tuple[str, int]]:
    operations = split.augmentation.operations
    assert all(isinstance(one, DeviceOperation) for one in operations)
    return [(one.operation.name, one.number) for one in operations]  # type: ignore[attr-defined]


def test_a_program_is_split_between_loader_and_device() -> None:
    square, erasing = RandomResizedCrop((64, 64), (0.3, 1.0), (0.5, 2.0)), Erasing(fill=MEAN)
    program = Program((ToFloat(), Saturation(WEAKER), NORMALIZE, HorizontalFlip(probability=0.3), square, erasing))
    split = split_for_engine(plan(program, PixelCosts()))
    augmentation = split.augmentation
    assert (augmentation.crop, augmentation.scale, augmentation.ratio) == ("random-resized", (0.3, 1.0), (0.5, 2.0))
    assert (augmentation.flip, split.resolution, split.mean, split.std) == (0.3, 64, MEAN, STD)
    assert on_device(split) == [("Saturation", 1), ("Erasing", 5)]
    assert split.swap is Swap.EXACT
    assert describe(split) == [
        "RandomResizedCrop and HorizontalFlip: by the loader, while decoding",
        "Saturation, Erasing: on the device, in batches",
        "ToFloat, Normalize: on the device, in one pass",
    ]


WINDOWS: list[tuple[list[Operation], tuple[int, int] | None, tuple[str, int, float]]] = [
    ([Resize(64), CenterCrop((56, 56))], None, ("center", 56, 56 / 64)),
    ([Resize(64), CenterCrop((64, 64))], None, ("center", 64, 1.0)),
    ([Resize(64), CenterCrop((60, 60)), CenterCrop((48, 48))], None, ("center", 48, 48 / 64)),
    ([Resize((40, 40))], None, ("stretch", 40, 1.0)),
    ([Resize((40, 40)), CenterCrop((40, 40)), RandomCrop((40, 40))], None, ("stretch", 40, 1.0)),
    ([Resize((40, 40)), CenterCrop((32, 32))], None, ("stretch", 32, 0.8)),
    ([Resize((40, 40)), RandomCrop((32, 32))], None, ("random-stretch", 32, 0.8)),
    ([Resize(40), RandomCrop((32, 32))], None, ("random-square", 32, 0.8)),
    ([Resize(40), RandomCrop((40, 40))], None, ("random-square", 40, 1.0)),
    ([SQUARE, Resize(8), CenterCrop((8, 8))], None, ("random-resized", 8, 1.0)),
    ([], (28, 28), ("center", 28, 1.0)),
    ([Resize(64)], (32, 32), ("center", 64, 1.0)),
    ([Resize((64, 64))], (20, 32), ("stretch", 64, 1.0)),
    ([CenterCrop((178, 178)), Resize((64, 64))], (218, 178), ("center", 64, 1.0)),
    ([CenterCrop((96, 96))], (128, 128), ("center", 96, 0.75)),
    ([RandomCrop((27, 27))], (32, 32), ("random-square", 27, 27 / 32)),
    ([PADDED], (32, 32), ("center", 32, 1.0)),
    ([Resize((32, 32)), FLIP, PADDED], None, ("stretch", 32, 1.0)),
]


@pytest.mark.parametrize(("operations", "size", "expected"), WINDOWS, ids=str)
def test_chains_of_crops_are_one_window(
    operations: list[Operation], size: tuple[int, int] | None, expected: tuple[str, int, float]
) -> None:
    split = split_of(*operations, image_size=size)
    found = split.augmentation.crop, split.resolution, split.augmentation.crop_fraction
    assert found == (*expected[:2], pytest.approx(expected[2]))


def test_conversion_without_normalization() -> None:
    split = split_of(SQUARE, ToFloat())
    assert (split.mean, split.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (split_of(SQUARE).mean, split_of(SQUARE).std) == (None, None)


def test_functions_of_the_users_are_called_between_crop_and_conversion() -> None:
    split = split_of(FLIP, SQUARE, Untyped(untouched), Grayscale(), HorizontalFlip(probability=0.1), ToFloat())
    assert on_device(split) == [("untouched", 2), ("Grayscale", 3), ("HorizontalFlip", 4)]
    assert describe(split)[1:3] == [
        "untouched: by a call for each image in the training process, which is slow",
        "Grayscale, HorizontalFlip: on the device, in batches",
    ]
    assert on_device(split_of(SQUARE, Untyped(untouched), FLIP)) == [("untouched", 1), ("HorizontalFlip", 2)]


@pytest.mark.parametrize(
    ("before", "by_loader"),
    [
        (Rotation((-30, 30)), True),
        (Rotation((0, 30)), False),
        (PADDED, True),
        (PaddedRandomCrop((32, 32), (4, 0, 0, 0)), False),
        (Rotate90(1), False),
        (Rotate90(2), True),
        (VerticalFlip(), True),
        (RandAugment(), True),
        (RandAugment(interpolation="nearest"), False),
        (Rotation((-30, 30), interpolation="nearest"), False),
        (Together((Grayscale(), Affine(degrees=(-9, 9), interpolation="nearest"))), False),
        (Together((Grayscale(), Rotation((-9, 9)))), True),
        (Together((Grayscale(), Rotation((0, 9)))), False),
        (Contrast(STRONGER), True),
        (Untyped(untouched), False),
        (FLIP, True),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_flip_is_the_loaders_where_nothing_before_it_has_a_direction(before: Operation, by_loader: bool) -> None:
    split = split_of(Resize((32, 32)), before, HorizontalFlip(probability=0.25))
    assert (split.augmentation.flip > 0) == by_loader
    second = [("HorizontalFlip", 2)] * (not by_loader or before == FLIP)
    assert on_device(split)[-1:] == (second or [(before.name, 1)])


ASKEW = PaddedRandomCrop((8, 8), (1, 2, 2, 1))


@pytest.mark.parametrize(
    ("first", "second", "moves"),
    [
        (Rotation((0, 30)), VerticalFlip(), False),
        (VerticalFlip(), Rotation((0, 30)), False),
        (Rotation((-30, 30)), VerticalFlip(), True),
        (Affine(degrees=(0, 30)), VerticalFlip(), False),
        (HorizontalFlip(), Affine(shear_x=(0, 30)), False),
        (PaddedRandomCrop((8, 8), (0, 0, 0, 4)), VerticalFlip(), False),
        (VerticalFlip(), PaddedRandomCrop((8, 8), (0, 4, 0, 0)), False),
        (PaddedRandomCrop((8, 8), (0, 4, 0, 0)), HorizontalFlip(), True),
        (PaddedRandomCrop((8, 8), (0, 4, 0, 4)), VerticalFlip(), True),
        (Rotate90(1), ASKEW, False),
        (Rotate90(2), ASKEW, False),
        (Rotate90(1), PaddedRandomCrop((8, 8), (2, 2, 2, 2)), True),
        (Rotate90(1), PaddedRandomCrop((8, 8), (2, 3, 2, 3)), False),
        (Rotate90(2), PaddedRandomCrop((8, 8), (2, 3, 2, 3)), True),
        (Rotate90(1), Rotation((0, 30)), True),
        (Rotate90(1), VerticalFlip(), False),
        (Rotate90(2), VerticalFlip(), True),
        (Rotate90(1), Erasing(ratio=(0.5, 1.0)), False),
        (Rotate90(1), Erasing(ratio=(0.5, 2.0)), True),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_plan_moves_nothing_whose_draws_would_be_others(first: Operation, second: Operation, moves: bool) -> None:
    program = Program((SQUARE, FLIP, first, second))  # the first flip is the loader's
    planned = ordered(program, (0, 1, 3, 2), PixelCosts(), (40, 60), "torchvision")
    done = [(second.name, 3), (first.name, 2)] if moves else [(first.name, 2), (second.name, 3)]
    assert on_device(split_for_engine(planned)) == done


def test_the_device_keeps_the_plans_order() -> None:
    blur = GaussianBlur(3, probability=0.1)
    program = Program((SQUARE, Contrast(WEAKER), Brightness(WEAKER), blur))
    planned = plan(program, PixelCosts())
    reordered = split_for_engine(type(planned)(**{**vars(planned), "orders": ((0, 2, 1, 3),)}))
    assert on_device(reordered) == [("Brightness", 2), ("Contrast", 1), ("GaussianBlur", 3)]
    illegal = split_for_engine(type(planned)(**{**vars(planned), "orders": ((0, 3, 1, 2),)}))
    assert on_device(illegal) == [("Contrast", 1), ("Brightness", 2), ("GaussianBlur", 3)]


def test_approximations_are_done_and_said() -> None:
    bicubic = [Resize(256, "bicubic"), CenterCrop((224, 224))]
    for operations, reason in (
        (bicubic, "Resize is bicubic"),
        ([Resize(256), SQUARE], "of the image before the Resize"),
        ([Resize(256), CenterCrop((224, 224)), Resize(128)], "resized more than once"),
        ([Brightness(STRONGER), SQUARE], ""),
    ):
        with pytest.raises(SplitError, match=reason or "change pixels visibly"):
            split_of(*operations)
        split = split_of(*operations, most=Swap.APPROX)
        assert all(reason in line for line in describe(split) if line.startswith("note"))
        assert any(line.startswith("note") for line in describe(split)) == bool(reason)
    with pytest.raises(SplitError, match="off by half a pixel"):
        split_of(CenterCrop((27, 27)), image_size=(32, 32))


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        ((Contrast(STRONGER), SQUARE), "Contrast stands before RandomResizedCrop"),
        ((Brightness(STRONGER), SQUARE), "would change pixels visibly"),
        ((FLIP, Posterize(3), SQUARE), "another program"),
        ((Erasing(), Resize((8, 8))), "Erasing stands before Resize"),
        ((Rotate90(1), RandomResizedCrop((8, 8), ratio=(0.5, 1.0))), "Rotate90 stands before"),
        ((Untyped(untouched), SQUARE), "untouched stands before RandomResizedCrop.*put it behind RandomResizedCrop"),
        ((SQUARE, ToFloat(), Untyped(untouched)), r"untouched stands behind ToFloat.*uint8 \(3, H, W\)"),
        ((SQUARE, ToFloat(), NORMALIZE, Brightness(WEAKER)), "Brightness stands behind Normalize.*before ToTensor"),
        ((SQUARE, ToFloat(), Posterize(3)), "Posterize stands behind ToFloat"),
        ((CROP,), "squares"),
        ((Resize((20, 30)),), "squares"),
        ((RandomResizedCrop((8, 8), interpolation="bicubic"),), "bicubic"),
        ((FLIP,), "nothing makes images of one size"),
        ((Resize(8),), r"put CenterCrop\(8\) behind Resize\(8\)"),
        ((RandomCrop((8, 8)),), "put a Resize before it"),
        ((Resize(8), CenterCrop((9, 9))), "may have no more than 8"),
        ((Resize(9), RandomCrop((8, 8)), CenterCrop((7, 7))), "one window"),
        ((Resize(9), CenterCrop((8, 8)), SQUARE), "one window"),
        ((Resize((9, 9)), SQUARE), "squeezes"),
        ((Resize(8, probability=0.5),), "several sizes"),
        ((PADDED, Resize((64, 64))), "put it behind Resize"),
        ((Resize((64, 64)), PADDED), "makes 32 x 32 pixels of 64 x 64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(one.name for one in value),
)
def test_what_cannot_be_done_is_named(operations: tuple[Operation, ...], reason: str) -> None:
    with pytest.raises(SplitError, match=reason):
        split_of(*operations)


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (v2.Resize((8, 8), interpolation=0), "interpolation nearest: loaders resize bilinearly"),
        (v2.RandomResizedCrop(8, antialias=False), "antialias=False: loaders"),
        (v2.Resize(8, max_size=9), "Resize with max_size"),
        (v2.Grayscale(), "num_output_channels=3"),
        (v2.ToDtype(torch.float64, scale=True), "another type than float32"),
        (v2.RandomErasing(value="random"), "filled with noise: give it a value"),
        (v1.RandomErasing(value="random"), "filled with noise: give it a value"),
        (v2.RandomRotation(9, expand=True), "expand=True: images have to stay as large"),
        (v2.RandomApply([v2.Grayscale()]), "RandomApply of Grayscale to one channel: images keep three"),
        (v2.RandomCrop(8, pad_if_needed=True), "pad_if_needed: leave that out"),
        (v2.ToPILImage("YCbCr"), 'mode="YCbCr": images are RGB'),
        (v2.Pad(4), "put a RandomCrop right behind it"),
    ],
)
def test_what_torchvision_does_otherwise_is_named(transform: Any, reason: str) -> None:
    with pytest.raises(SplitError, match=reason):
        split_for_engine(read_compose([transform, v2.ToImage()]))


def test_reasons_are_part_of_what_is_said() -> None:
    called = read_compose([v2.RandomResizedCrop(8), v2.RandomCrop(8, 2, padding_mode="edge")])
    assert describe(split_for_engine(called))[1].startswith('RandomCrop with padding_mode="edge": by a call for each')
    cases: list[tuple[list[Any], str]] = [
        ([v2.Resize(9), v2.RandomCrop(8, 2, padding_mode="edge")], 'RandomCrop with padding_mode="edge" only keeps'),
        ([v2.GaussianBlur((3, 5)), v2.Resize((8, 8))], "GaussianBlur with a kernel that is no square stands before"),
        ([v2.Resize((8, 8)), v1.ToTensor(), v2.RandAugment()], "RandAugment of floating-point pixels .* called as it"),
    ]
    for transforms, reason in cases:
        with pytest.raises(SplitError, match=reason):
            split_for_engine(read_compose(transforms))


def test_hue_and_rotation_may_stand_behind_the_conversion() -> None:
    split = split_of(SQUARE, ToFloat(), Hue((-0.1, 0.1)), Rotation((-5, 5)), NORMALIZE)
    assert on_device(split) == [("Hue", 2), ("Rotation", 3)]
    assert split.swap is Swap.EXACT


def test_views_are_what_was_split() -> None:
    view = split_of(Resize(40), RandomCrop((32, 32)), FLIP).augmentation.view(32, 7, drop_last=True)
    assert (view.crop, view.crop_fraction, view.flip, view.drop_last) == ("random-square", 0.8, 0.5, True)
    assert np.isclose(view.resolution / view.crop_fraction, 40)
