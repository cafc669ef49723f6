"""Random legal programs give the same result in every order, within the class declared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.transform_programs import random_program
from loaders.transforms.apply import BACKENDS, machine_costs, run
from loaders.transforms.cost import Costs, costs_file
from loaders.transforms.legality import Swap, classify
from loaders.transforms.planner import legal_orders, ordered, plan
from loaders.transforms.steps import Brightness, Resize
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
    resized = costs.of(Resize((64, 64), "bilinear"), (128, 128), "pillow", False)
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
    costs_file().write_text("{")
    assert Costs(refuse, costs_file()).table == {}  # type: ignore[arg-type]
