"""Transform lists as data: what may change places, what is drawn, reading and splitting. No order is measured here."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loaders.transforms.apply import BACKENDS, draw, run
from loaders.transforms.explain import Measured, explain
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
from loaders.transforms.legality import Swap, classify, swap, tolerance
from loaders.transforms.planner import cheapest, legal_orders, ordered, plan
from loaders.transforms.policies import RandAugment, Together, TrivialAugment
from loaders.transforms.program import Program, Untyped
from loaders.transforms.steps import Border, Box, Crop, Erase, Flip, PaddedCrop, Turn, exchange
from loaders.transforms.types import Operation
from loaders.transforms.values import (
    Autocontrast,
    Brightness,
    Contrast,
    Equalize,
    Grayscale,
    Hue,
    Invert,
    Normalize,
    Posterize,
    Saturation,
    Sharpness,
    Solarize,
    ToFloat,
    color_jitter,
)
from tests.transform_costs import PixelCosts
from tests.transform_lists import CROP, MEAN, NORMALIZE, STRONGER, WEAKER, image, untouched

PADDED = PaddedRandomCrop((20, 20), (4, 4, 4, 4))
REFLECTED = PaddedRandomCrop((20, 20), (4, 4, 4, 4), "reflect")

TABLE = [
    (HorizontalFlip(), CROP, Swap.EXACT),
    (HorizontalFlip(), RandomCrop((20, 20)), Swap.SAME),
    (HorizontalFlip(), VerticalFlip(), Swap.SAME),
    (HorizontalFlip(), Resize(30), Swap.EXACT),
    (HorizontalFlip(), Rotation((-10, 10)), Swap.EXACT),
    (HorizontalFlip(), Rotation((-10, 10), interpolation="nearest"), Swap.APPROX),
    (Rotate90(1), Rotation((-10, 10), interpolation="nearest"), Swap.APPROX),
    (Rotate90(1), Resize(30, "bicubic"), Swap.APPROX),
    (Rotate90(1), Resize(30), Swap.EXACT),
    (Rotate90(2), Resize(30, "bicubic"), Swap.EXACT),
    (VerticalFlip(), Affine(interpolation="nearest"), Swap.APPROX),
    (NORMALIZE, RandomCrop((20, 20)), Swap.SAME),
    (NORMALIZE, Resize(30), Swap.EXACT),
    (ToFloat(), Resize(30), Swap.EXACT),
    (ToFloat(), Resize(30, "bicubic"), Swap.APPROX),
    (ToFloat(), NORMALIZE, Swap.NO),
    (ToFloat(), Hue((-0.1, 0.1)), Swap.APPROX),
    (Posterize(4), ToFloat(), Swap.NO),
    (Posterize(4), HorizontalFlip(), Swap.SAME),
    (Solarize(0.5), Resize(30), Swap.NO),
    (Grayscale(), Resize(30), Swap.EXACT),
    (Grayscale(), Hue((-0.1, 0.1)), Swap.NO),
    (Grayscale(), Saturation(STRONGER), Swap.NO),
    (Grayscale(), Brightness(WEAKER), Swap.EXACT),
    (Brightness(STRONGER), Resize(30), Swap.APPROX),
    (Brightness(WEAKER), Resize(30), Swap.EXACT),
    (Brightness(STRONGER), Saturation(WEAKER), Swap.APPROX),
    (Brightness(WEAKER), NORMALIZE, Swap.NO),
    (Contrast(STRONGER), RandomCrop((20, 20)), Swap.NO),
    (Contrast(STRONGER), CROP, Swap.NO),
    (Contrast(STRONGER), Resize(30), Swap.APPROX),
    (Contrast(STRONGER), HorizontalFlip(), Swap.EXACT),
    (GaussianBlur(3), Resize(30), Swap.NO),
    (GaussianBlur(3), RandomCrop((20, 20)), Swap.NO),
    (GaussianBlur(3), NORMALIZE, Swap.EXACT),
    (GaussianBlur(3), HorizontalFlip(), Swap.EXACT),
    (Rotation((-10, 10)), CROP, Swap.NO),
    (Erasing(), NORMALIZE, Swap.EXACT),
    (Erasing(), Resize(30), Swap.NO),
    (Erasing(), RandomCrop((20, 20)), Swap.SAME),
    (Erasing(), Invert(), Swap.NO),
    (PADDED, HorizontalFlip(), Swap.SAME),
    (PADDED, Invert(), Swap.NO),
    (PADDED, NORMALIZE, Swap.EXACT),
    (PADDED, Resize(30), Swap.NO),
    (REFLECTED, Invert(), Swap.SAME),
    (REFLECTED, Contrast(STRONGER), Swap.NO),
    (Affine(), HorizontalFlip(), Swap.EXACT),
    (Affine(), Rotate90(1), Swap.NO),
    (Affine(), NORMALIZE, Swap.APPROX),
    (Sharpness(2), HorizontalFlip(), Swap.NO),
    (RandAugment(), HorizontalFlip(), Swap.NO),
    (RandAugment(), ToFloat(), Swap.NO),
    (Untyped(untouched), HorizontalFlip(), Swap.NO),
]


@pytest.mark.parametrize(("first", "second", "expected"), TABLE, ids=lambda value: getattr(value, "name", str(value)))
def test_what_may_change_places(first: Operation, second: Operation, expected: Swap) -> None:
    assert swap(first, second) is expected
    assert swap(second, first) is expected


def test_roundings_do_not_move_before_a_jump() -> None:
    operations = (HorizontalFlip(), Resize(30), Posterize(3), VerticalFlip())
    assert classify(operations, (1, 0, 2, 3), "torchvision") is Swap.APPROX
    assert classify(operations, (1, 2, 3, 0), "torchvision") is Swap.APPROX
    assert classify(operations, (0, 1, 3, 2), "torchvision") is Swap.SAME
    # Joined with the crop behind it, a resize rounds otherwise.
    resized = (Resize(30), CenterCrop((20, 20)), HorizontalFlip())
    assert classify(resized, (0, 2, 1), "torchvision") is Swap.SAME
    assert classify(resized, (0, 2, 1), "pillow") is Swap.EXACT
    assert classify((*resized, Posterize(3)), (0, 2, 1, 3), "pillow") is Swap.APPROX


def test_tolerances_grow_with_what_follows() -> None:
    moved = [
        tolerance((ToFloat(), Resize(30), Brightness((0.5, factor))), (1, 0, 2), "torchvision") for factor in (1, 3)
    ]
    assert 1 < moved[0] < moved[1] < 6
    resized = [
        tolerance((Brightness(WEAKER), ToFloat(), Resize(30, interpolation)), (1, 0, 2), "torchvision")
        for interpolation in ("bilinear", "bicubic")
    ]
    assert 1 < resized[0] < resized[1] < 2  # bicubic weights are negative, too
    assert tolerance((ToFloat(), HorizontalFlip()), (1, 0), "torchvision") < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_are_adapted_to_what_they_pass(backend: str) -> None:
    pixels = image()
    moves: list[Operation] = [HorizontalFlip(probability=1), VerticalFlip(probability=1), Rotate90(1), Rotate90(3)]
    moves.append(RandomCrop((17, 23)))
    for pair in itertools.permutations(moves, 2):
        program = Program((*pair, Erasing(probability=1, fill=MEAN)))
        plans = [ordered(program, order, PixelCosts(), (44, 60), backend) for order in itertools.permutations(range(3))]
        expected = run(plans[0], pixels, index=3).levels()
        for one in plans:
            np.testing.assert_array_equal(run(one, pixels, index=3).levels(), expected, err_msg=str(one.operations))


@pytest.mark.parametrize("border", ["constant", "reflect"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padded_boxes_are_adapted_to_mirrors(backend: str, border: Border) -> None:
    crop = PaddedRandomCrop((41, 62), (5, 0, 9, 8), border, (0.2, 0.4, 0.6))
    program = Program((HorizontalFlip(probability=1), crop, VerticalFlip(probability=1), Rotate90(1)))
    plans = [ordered(program, order, PixelCosts(), (44, 60), backend) for order in itertools.permutations(range(4))]
    expected = run(plans[0], image(), index=4).levels()
    for one in plans:
        np.testing.assert_array_equal(run(one, image(), index=4).levels(), expected, err_msg=str(one.operations))


sides = st.integers(1, 9)


@given(sides, sides, st.tuples(*[st.integers(0, 12)] * 4), st.sampled_from(["constant", "reflect"]), st.integers(0, 9))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_padded_crop_is_cut_out_of_the_whole_image_with_its_border(
    backend: str, height: int, width: int, padding: tuple[int, int, int, int], border: Border, index: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 8, 3), dtype=np.uint8)
    if border == "reflect":
        padding = (*(min(across, 7) for across in padding[::2]), *(min(down, 6) for down in padding[1::2]))
        padding = (padding[0], padding[2], padding[1], padding[3])
    left, top, right, bottom = padding
    size = min(height, 7 + top + bottom), min(width, 8 + left + right)
    crop = PaddedRandomCrop(size, padding, border, (1.0, 0.0, 1.0))
    (step,) = draw((crop,), 0, 0, 0, index, (7, 8))
    assert isinstance(step, PaddedCrop)
    fill = {"constant_values": 0} if border == "constant" else {}
    whole = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), border, **fill)  # type: ignore[call-overload]
    if border == "constant":
        inside = np.pad(np.ones((7, 8), bool), ((top, bottom), (left, right)))
        whole[~inside] = (255, 0, 255)
    row, column = int(step.box.top) + top, int(step.box.left) + left
    result = run(plan(Program((crop,)), PixelCosts(), (7, 8), backend), pixels, index=index).levels()
    np.testing.assert_array_equal(result, whole[row : row + size[0], column : column + size[1]])


@pytest.mark.parametrize("flip", [HorizontalFlip(probability=1), VerticalFlip(probability=1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_affine_maps_are_adapted_to_mirrors(backend: str, flip: Operation) -> None:
    affine = Affine(
        degrees=(10, 30), translation=(0.2, 0.3), scale=(0.8, 1.2), shear_x=(5, 9), shear_y=(-9, 0), fill=MEAN
    )
    program = Program((affine, flip))
    results = [
        run(ordered(program, order, PixelCosts(), (44, 60), backend), image(), index=2).levels()
        for order in ((0, 1), (1, 0))
    ]
    assert np.abs(results[0] - results[1]).mean() < 1


@pytest.mark.parametrize(
    "operation", [RandAugment(), TrivialAugment(), Autocontrast(), Equalize(), Together((Invert(), Grayscale()))]
)
def test_operations_on_bytes_are_the_same_on_all_backends(operation: Operation) -> None:
    program = Program((operation, ToFloat()))
    for index in range(4):
        expected, *others = [
            run(ordered(program, (0, 1), PixelCosts(), (44, 60), backend), image(), index=index).levels()
            for backend in BACKENDS
        ]
        assert all(np.abs(other - expected).max() <= 1.01 for other in others)


def test_exchanged_steps_are_adapted() -> None:
    size, box = (40, 60), Box(5, 7, 20, 10)
    assert exchange(Flip(True), Crop(box), size) == (Crop(Box(35, 7, 20, 10)), Flip(True))
    assert exchange(Crop(box), Flip(False), size) == (Flip(False), Crop(Box(5, 23, 20, 10)))
    assert exchange(Turn(1), Crop(box), size) == (Crop(Box(60 - 7 - 10, 5, 10, 20)), Turn(1))
    assert exchange(Flip(True), Turn(1), size) == (Turn(3), Flip(True))
    outside = Erase(Box(0, 0, 4, 4), MEAN)
    assert exchange(outside, Crop(box), size)[1] == Erase(Box(0, 0, 0, 0), MEAN)


def test_parameters_do_not_depend_on_the_order() -> None:
    operations = [HorizontalFlip(), CROP, *color_jitter(STRONGER, STRONGER, STRONGER, (-0.1, 0.1)), Erasing()]
    drawn = draw(operations, 0, seed=1, epoch=2, index=3, size=(44, 60))
    assert drawn == draw(operations, 0, seed=1, epoch=2, index=3, size=(44, 60))
    others = [draw(operations, 0, *key, size=(44, 60)) for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4))]
    assert all(other != drawn for other in others)
    assert draw(operations[1:], 1, seed=1, epoch=2, index=3, size=(44, 60)) == drawn[1:]


def test_draws_have_their_distribution() -> None:
    flips = [HorizontalFlip(probability=0.3).draw(0, 0, index, 2, (4, 4)) for index in range(2000)]
    assert np.mean([isinstance(step, Flip) for step in flips]) == pytest.approx(0.3, abs=0.04)
    boxes = [CROP.draw(0, 0, index, 0, (300, 400)).box for index in range(1000)]  # type: ignore[attr-defined]
    assert all(0 <= box.left <= 400 - box.width and 0 <= box.top <= 300 - box.height for box in boxes)
    areas = [box.width * box.height / 120_000 for box in boxes]
    assert (min(areas), max(areas)) == pytest.approx((0.3, 1.0), abs=0.03)


def test_the_planner_moves_what_is_dear_behind_what_shrinks() -> None:
    program = Program((ToFloat(), NORMALIZE, HorizontalFlip(), CROP))
    chosen = plan(program, PixelCosts(), (375, 500))
    assert chosen.operations[0] is CROP
    assert chosen.operations[-2:] == (ToFloat(), NORMALIZE)
    assert (chosen.swap, chosen.cost_after < chosen.cost_before) == (Swap.EXACT, True)
    text = explain(chosen, PixelCosts(), measured=Measured(5.8, 1.2, 3, 0.3, 12.0))
    assert "moved after RandomResizedCrop" in text
    assert "5.80 -> 1.20 measured" in text
    assert "measured on 3 images: mean 0.3, largest 12 of 255" in text
    assert "ToFloat and Normalize can be moved to the device" in text
    assert "levels of 255" in text


def test_the_planner_keeps_to_its_mode() -> None:
    program = Program((Brightness(STRONGER), CROP))
    plans = {mode: plan(program, PixelCosts(), (375, 500), mode=mode) for mode in ("off", "exact", "approx")}
    assert {mode: one.numbers for mode, one in plans.items()} == {"off": (0, 1), "exact": (0, 1), "approx": (1, 0)}
    assert plans["approx"].swap is Swap.APPROX
    assert "nothing moved" in explain(plans["exact"])
    assert "pixels differ" in explain(plans["approx"])


def test_many_orders_are_left_to_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    operations = (ToFloat(), NORMALIZE, HorizontalFlip(), VerticalFlip(), CROP)
    program = Program(operations)
    best = plan(program, PixelCosts(), (375, 500))
    monkeypatch.setattr("loaders.transforms.planner.MOST_ORDERS", 3)
    ranked = plan(program, PixelCosts(), (375, 500))
    assert ranked.cost_after == pytest.approx(best.cost_after)
    assert ranked.swap <= Swap.EXACT


def test_nothing_moves_across_a_function_of_the_users() -> None:
    seen: list[tuple[int, ...]] = []

    def note(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(pixels.shape))
        return 255 - pixels

    program = Program((HorizontalFlip(probability=1), Resize((20, 30)), Untyped(note), ToFloat(), CROP))
    chosen = plan(program, PixelCosts(), (44, 60))
    assert [operation.name for operation in chosen.operations[:3]] == ["Resize", "HorizontalFlip", "note"] or (
        chosen.numbers[:3] == (0, 1, 2)
    )
    assert chosen.numbers[3:] == (4, 3)
    result = run(chosen, image(), index=5).levels()
    assert seen == [(3, 20, 30)]
    expected = run(plan(program, PixelCosts(), (44, 60), mode="off"), image(), index=5).levels()
    assert np.abs(result - expected).max() <= chosen.tolerance
    assert list(legal_orders(program.operations, Swap.EXACT, "torchvision")) == [
        (0, 1, 2, 3, 4),
        (0, 1, 2, 4, 3),
        (1, 0, 2, 3, 4),
        (1, 0, 2, 4, 3),
    ]
    program = Program((HorizontalFlip(), CROP, Untyped(note), Posterize(3)))
    assert plan(program, PixelCosts(), (375, 500)).numbers == (0, 1, 2, 3)  # a rounding might show behind the jump
    alone = (Untyped(note),)
    assert cheapest(alone, None, Swap.EXACT) == (0,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: HorizontalFlip(probability=1.5),
        lambda: GaussianBlur(4),
        lambda: GaussianBlur(3, (2.0, 1.0)),
        lambda: RandomResizedCrop((8, 8), (0.5, 1.5)),
        lambda: Erasing(fill=(0.0, 0.0, 2.0)),
        lambda: Normalize(MEAN, (1.0, 0.0, 1.0)),
        lambda: Brightness((-1.0, 1.0)),
        lambda: Hue((-0.6, 0.1)),
        lambda: Posterize(0),
        lambda: PaddedRandomCrop((8, 8), (-1, 0, 0, 0)),
        lambda: RandAugment(layers=40),
        lambda: Affine(translation=(0.0, 1.5)),
        lambda: Sharpness(-1),
        lambda: Together((Invert(), HorizontalFlip(probability=0.5))),
        lambda: RandAugment(magnitude=31),
        lambda: Program((ToFloat(), ToFloat())),
        lambda: Program((ToFloat(), RandAugment())),
        lambda: Program((ToFloat(probability=0.5),)),
        lambda: Program((ToFloat(), Normalize(MEAN, MEAN, probability=0.5))),
    ],
)
def test_impossible_operations_are_refused(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="RandomCrop: an image of 60 x 44 is smaller than 50 x 50"):
        run(ordered(Program((RandomCrop((50, 50)),)), (0,), PixelCosts(), (99, 99), "torchvision"), image())
