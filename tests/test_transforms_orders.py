"""Random legal programs give the same result in every order, within the class declared."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.transform_programs import random_program
from loaders.transforms import cost, planner, steps
from loaders.transforms.apply import BACKENDS, Picture, execution, machine_costs, run
from loaders.transforms.cost import Costs, Form, costs_file
from loaders.transforms.fusion import Window
from loaders.transforms.geometry import (
    CenterCrop,
    GaussianBlur,
    HorizontalFlip,
    PaddedRandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate90,
    Rotation,
    VerticalFlip,
)
from loaders.transforms.legality import Swap, classify, swap
from loaders.transforms.planner import MOST_ORDERS, Pricing, legal_orders, ordered, plan
from loaders.transforms.policies import RandAugment, Together
from loaders.transforms.program import Program
from loaders.transforms.steps import Box, PaddedCrop, Step
from loaders.transforms.types import Operation, Spatial
from loaders.transforms.values import (
    Brightness,
    Contrast,
    Hue,
    Invert,
    Normalize,
    Posterize,
    Saturation,
    ToFloat,
    color_jitter,
)
from tests.images import photo
from tests.transform_costs import PixelCosts
from tests.transform_lists import MEAN, STD

PHOTOS = [np.array(photo(97, 120, 0)), np.array(photo(131, 90, 1))]
SIZE = (105, 114)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    backend=st.sampled_from(BACKENDS),
    index=st.integers(0, 1000),
    picture=st.sampled_from(PHOTOS),
    data=st.data(),
)
def test_orders_keep_to_their_class(
    seed: int, backend: str, index: int, picture: np.ndarray, data: st.DataObject
) -> None:
    program = random_program(np.random.default_rng(seed), 5, 24, backend)
    orders = list(legal_orders(program.operations, Swap.EXACT, backend))
    written = tuple(range(len(program)))
    assert orders[0] == written
    chosen = data.draw(st.lists(st.sampled_from(orders), min_size=1, max_size=3))
    reference = run(ordered(program, written, PixelCosts(), SIZE, backend), picture, index=index).levels()
    for order in chosen:
        one = ordered(program, order, PixelCosts(), SIZE, backend)
        result = run(one, picture, index=index).levels()
        assert result.shape == reference.shape
        assert np.abs(result - reference).max() <= one.tolerance, str(one.operations)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), backend=st.sampled_from(BACKENDS))
def test_the_plan_is_the_cheapest_legal_order(seed: int, backend: str) -> None:
    program = random_program(np.random.default_rng(seed), 5, 24, backend)
    chosen = plan(program, PixelCosts(), SIZE, backend)
    every = itertools.permutations(range(len(program)))
    legal = [order for order in every if is_legal(program.operations, order, backend)]
    assert sorted(legal_orders(program.operations, Swap.EXACT, backend)) == legal
    costs = [ordered(program, order, PixelCosts(), SIZE, backend).cost_after for order in legal]
    assert chosen.cost_after <= min(costs) / 0.99 + 1e-12
    assert classify(program.operations, chosen.orders[0], backend) == chosen.swap <= Swap.EXACT


def is_legal(operations: Sequence[Operation], order: Sequence[int], backend: str) -> bool:
    """Whether an order changes nothing beyond rounding, by its pairs: stated apart from the planner.

    Only pairs that may, change places; what rounds otherwise then has no jump behind it, before or after; and with a
    jump anywhere, what some backends do in one stays together.
    """
    jumps = [number for number, operation in enumerate(operations) if operation.has_jumps]
    for first, second in itertools.combinations(range(len(order)), 2):
        later, earlier = order[first], order[second]
        if later < earlier:
            continue
        change = swap(operations[earlier], operations[later])
        behind = [jump for jump in jumps if jump > later or jump in order[second + 1 :]]
        if change > Swap.EXACT or (change is Swap.EXACT and behind):
            return False
    kinds = [[operations[number].spatial for number in one] for one in (range(len(order)), order)]
    written, done = ((Spatial.RESIZE, Spatial.CROP) in itertools.pairwise(one) for one in kinds)
    return backend == "torchvision" or not jumps or written == done


def many_operations() -> tuple[Operation, ...]:
    flips = [flip for _ in range(3) for flip in (HorizontalFlip(), VerticalFlip())]
    return (ToFloat(), *flips, Normalize(MEAN, STD), RandomResizedCrop((24, 24)), GaussianBlur(3))


def test_of_many_orders_a_cheap_one_is_found() -> None:
    operations = many_operations()
    orders = legal_orders(operations, Swap.EXACT, "torchvision")
    assert sum(1 for _ in itertools.islice(orders, MOST_ORDERS + 1)) > MOST_ORDERS
    chosen = plan(Program(operations), PixelCosts(), (375, 500))
    order = chosen.orders[0]
    assert is_legal(operations, order, "torchvision")
    assert operations[order[0]] == RandomResizedCrop((24, 24))
    assert [operations[number].name for number in order[-2:]] == ["ToFloat", "Normalize"]
    for number, place in itertools.product(order, range(len(order))):
        others = [other for other in order if other != number]
        moved = (*others[:place], number, *others[place:])
        if is_legal(operations, moved, "torchvision"):
            assert ordered(Program(operations), moved, PixelCosts(), (375, 500), "torchvision").cost_after >= (
                chosen.cost_after - 1e-12
            )


def test_orders_that_would_be_illegal_are_not_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    weaker = (0.3, 0.9)
    colors = (Brightness(weaker), Contrast(weaker), Saturation(weaker))
    turns = (Rotate90(1), HorizontalFlip(), VerticalFlip())
    operations = (Resize((40, 40)), *colors, Rotation((-9, 9)), *turns, Posterize(3))
    classified = []
    monkeypatch.setattr(planner, "classify", lambda *given: classified.append(given) or classify(*given))
    legal = list(legal_orders(operations, Swap.EXACT, "torchvision"))
    assert 1 < len(legal) == len(classified)


def test_costs_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    costs = machine_costs()
    measured = costs.of(steps.Brightness(0.5), (128, 128), "torchvision", Form())
    resized = costs.of(steps.Resize((64, 64), "bilinear"), (128, 128), "pillow", Form())
    assert measured > 0 < resized
    assert sorted(json.loads(costs_file().read_text())) == [
        "pillow uint8 Resize bilinear",
        "torchvision uint8 Brightness",
    ]

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    kept = Costs(refuse, costs_file())  # type: ignore[arg-type]
    assert kept.of(steps.Brightness(0.7), (128, 128), "torchvision", Form()) == measured
    assert kept.of(steps.Brightness(0.7), (960, 1280), "torchvision", Form()) > measured
    assert f"-{cost._FORMAT}-" in costs_file().name
    costs_file().write_text("{")
    assert Costs(refuse, costs_file()).table == {}  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [Form(*flags) for flags in itertools.product((False, True), repeat=3)], ids=str)
def test_a_step_is_measured_on_an_image_of_the_form(form: Form) -> None:
    pixels = np.array(photo(7, 9))
    left = execution(steps.Crop(Box(0, 0, 7, 9)), pixels, "torchvision", form)()
    assert left.form == form
    np.testing.assert_allclose(left.levels(), pixels, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_known_in_which_form_steps_leave_an_image(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_SECONDS", 0)
    costs, pixels = Costs(execution), np.array(photo(90, 70))
    operations = (CenterCrop((60, 50)), Invert(), Rotate90(1), Resize((80, 80)), ToFloat(), Normalize(MEAN, STD))
    for count in range(2, len(operations) + 1):
        for order in ((*range(count),), (1, 0, *range(2, count))):
            planned = ordered(Program(operations[:count]), order, costs, (70, 90), backend)
            price = Pricing(operations[:count], costs, (70, 90), backend)
            assert price.leaves(order) == run(planned, pixels).form


def test_boxes_are_in_proportion_to_the_size_measured_at() -> None:
    """Not those of whatever program a cost is first asked for, which may not fit either."""
    for first in (Box(-28, -28, 224, 224), Box(3, 4, 32, 30)):
        done: list[tuple[Step, tuple[int, ...]]] = []

        def note(step: Step, pixels: np.ndarray, backend: str, form: Form, done: list = done) -> Callable[[], Picture]:
            done.append((step, pixels.shape))
            return lambda: Picture.of(pixels, backend)

        Costs(note).of(PaddedCrop(first, "reflect"), (224, 224), "torchvision", Form())
        for step, (height, width, _) in done:
            assert isinstance(step, PaddedCrop)
            assert step.box == Box(-(width // 8), -(height // 8), width, height)


def test_what_needs_large_images_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_SECONDS", 0)
    together = Together((GaussianBlur(131), Invert()), probability=0.5)
    program = Program((Resize((224, 224)), PaddedRandomCrop((224, 224), (28,) * 4, "reflect"), GaussianBlur(131)))
    for one in (program, Program((together,))):
        assert plan(one, Costs(execution), (375, 500)).cost_after > 0


def test_what_costs_otherwise_has_a_key_of_its_own() -> None:
    window = Window(Box(0, 0, 9, 9), (9, 9))
    box = Box(0, 0, 9, 9)
    pairs: list[tuple[Step, Step]] = [
        (steps.Rotate(5), steps.Rotate(5, interpolation="nearest")),
        (steps.Affine(5, (0, 0), 1, (0, 0)), steps.Affine(5, (0, 0), 1, (0, 0), interpolation="nearest")),
        (PaddedCrop(box), PaddedCrop(box, "reflect")),
        (window, replace(window, cut=True)),
        (window, replace(window, flips=(True, False))),
        (replace(window, flips=(True, False)), replace(window, flips=(False, True))),
        (steps.Turn(1), steps.Turn(2)),
        (RandAugment(1).typical((9, 9)), RandAugment(2).typical((9, 9))),
    ]
    for one, other in pairs:
        assert one.cost_key() != other.cost_key()
    assert steps.Rotate(5).cost_key() == steps.Rotate(9).cost_key()


def test_costs_are_of_what_does_something() -> None:
    """In the middle of their ranges factors are 1 and angles 0, which libraries leave out."""
    jitter = color_jitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4))
    assert all(abs(one.typical((9, 9)).factor - 1) > 0.1 for one in jitter)  # type: ignore[attr-defined]
    assert abs(Rotation((-30, 30)).typical((9, 9)).degrees) > 5  # type: ignore[attr-defined]
    assert abs(Hue((-0.1, 0.1)).typical((9, 9)).turn) > 0.02  # type: ignore[attr-defined]
    box = RandomResizedCrop((9, 9), (0.2, 1.0)).typical((100, 100)).box  # type: ignore[attr-defined]
    assert box.width * box.height == pytest.approx(0.6 * 100 * 100, rel=0.02)
    often, seldom = (
        plan(Program((Rotation((-30, 30), probability=p),)), PixelCosts(), (99, 99)).cost_after for p in (1.0, 0.25)
    )
    assert seldom == pytest.approx(often / 4)
