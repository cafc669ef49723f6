"""Random legal programs give the same result in every order, within the class declared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.transform_programs import random_program
from loaders.transforms import cost, steps
from loaders.transforms.apply import BACKENDS, execution, machine_costs, run
from loaders.transforms.cost import Costs, costs_file
from loaders.transforms.fusion import Window
from loaders.transforms.geometry import GaussianBlur, PaddedRandomCrop, RandomResizedCrop, Resize, Rotation
from loaders.transforms.legality import Swap, classify
from loaders.transforms.planner import legal_orders, ordered, plan
from loaders.transforms.policies import RandAugment, Together
from loaders.transforms.program import Program
from loaders.transforms.steps import Box, Brightness, PaddedCrop, Step
from loaders.transforms.values import Hue, Invert, color_jitter
from tests.images import photo
from tests.transform_costs import PixelCosts

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
    costs = [
        ordered(program, order, PixelCosts(), SIZE, backend).cost_after
        for order in legal_orders(program.operations, Swap.EXACT, backend)
    ]
    assert chosen.cost_after <= min(costs) / 0.99 + 1e-12
    assert classify(program.operations, chosen.orders[0], backend) == chosen.swap <= Swap.EXACT


def test_costs_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    costs = machine_costs()
    measured = costs.of(Brightness(0.5), (128, 128), "torchvision", False)
    resized = costs.of(steps.Resize((64, 64), "bilinear"), (128, 128), "pillow", False)
    assert measured > 0 < resized
    assert sorted(json.loads(costs_file().read_text())) == [
        "pillow uint8 Resize bilinear",
        "torchvision uint8 Brightness",
    ]

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    kept = Costs(refuse, costs_file())  # type: ignore[arg-type]
    assert kept.of(Brightness(0.7), (128, 128), "torchvision", False) == measured
    assert kept.of(Brightness(0.7), (960, 1280), "torchvision", False) > measured
    assert "-2-" in costs_file().name  # the format
    costs_file().write_text("{")
    assert Costs(refuse, costs_file()).table == {}  # type: ignore[arg-type]


def test_boxes_are_in_proportion_to_the_size_measured_at() -> None:
    """Not those of whatever program a cost is first asked for, which may not fit either."""
    for first in (Box(-28, -28, 224, 224), Box(3, 4, 32, 30)):
        done: list[tuple[Step, tuple[int, ...]]] = []

        def note(step: Step, pixels: np.ndarray, backend: str, is_float: bool, done: list = done) -> Callable[[], None]:
            done.append((step, pixels.shape))
            return lambda: None

        Costs(note).of(PaddedCrop(first, "reflect"), (224, 224), "torchvision", False)
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
