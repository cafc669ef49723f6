"""Tests of engine.optim."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.ema import create_ema
from engine.freezing import freeze
from engine.optim import (
    OptimizerError,
    create_optimizer,
    default_lr,
    learning_rate_factor,
    parameter_groups,
    set_learning_rate,
)

KINDS = ["one-cycle", "cosine", "step", "linear", "constant"]


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_only_matrices_decay():
    model = small_model()
    decayed, other = parameter_groups(model, 0.01)
    assert decayed["weight_decay"] == 0.01 and other["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in other["params"]} == {1}
    assert len(decayed["params"]) + len(other["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = small_model()
    freeze(model, "0,1")
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.01)) == 2
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="train"):
        parameter_groups(model, 0.01)


def test_layer_decay_rises_towards_the_classifier():
    model = timm.create_model("test_resnet", num_classes=4)
    groups = parameter_groups(model, 0.01, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name: scale[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(scales) == len(scale)
    assert scales["fc.weight"] == 1
    assert scales["conv1.0.weight"] < scales["layer1.0.conv1.weight"] < scales["layer4.0.conv1.weight"] < 1
    assert all(p.ndim > 1 or group["weight_decay"] == 0 for group in groups for p in group["params"])
    again = parameter_groups(model, 0.01, layer_decay=0.5)
    assert [[id(p) for p in g["params"]] for g in groups] == [[id(p) for p in g["params"]] for g in again]
    with pytest.raises(ValueError, match="layer-decay"):
        parameter_groups(model, 0.01, layer_decay=1.5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_equals_the_plain_optimizer(name: str):
    def train(make) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = small_model().to(memory_format=torch.channels_last)
        optimizer = make(model)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 3, 3)).square().mean().backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    def plain(model: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(model, 0.01)
        if name == "sgd":
            return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, foreach=False)
        return torch.optim.AdamW(groups, lr=0.1, foreach=False)

    ours = train(lambda model: create_optimizer(name, parameter_groups(model, 0.01), lr=0.1))
    for actual, expected in zip(ours, train(plain), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "rmsprop"])
def test_learning_rate_is_set_in_every_group(name: str):
    model = timm.create_model("test_resnet", num_classes=4)
    optimizer = create_optimizer(name, parameter_groups(model, 0.01, layer_decay=0.5), lr=0.2)
    set_learning_rate(optimizer, 0.25)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.2 * 0.25 * group["lr_scale"])
        assert group["initial_lr"] == pytest.approx(0.2 * group["lr_scale"])


def test_sgd_without_momentum():
    optimizer = create_optimizer("sgd", parameter_groups(small_model(), 0.0), lr=0.1, momentum=0.0)
    assert not optimizer.param_groups[0]["nesterov"]


def test_unknown_optimizers_name_near_ones():
    groups = parameter_groups(small_model(), 0.0)
    with pytest.raises(OptimizerError, match="adamw"):
        create_optimizer("adamww", groups, lr=0.1)
    with pytest.raises(OptimizerError, match="second derivatives"):
        create_optimizer("adahessian", groups, lr=0.1)
    with pytest.raises(OptimizerError, match="no optimizer"):
        default_lr("zzzzzz", 64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="apex may be installed beside a GPU")
def test_optimizers_that_are_not_installed_are_refused():
    with pytest.raises(OptimizerError, match="fusedsgd"):
        create_optimizer("fusedsgd", parameter_groups(small_model(), 0.0), lr=0.1)


def test_default_learning_rates_grow_with_the_batch():
    assert default_lr("sgd", 128) == pytest.approx(2 * default_lr("sgd", 64))
    assert default_lr("sgd", 100_000) == default_lr("sgd", 50_000)
    assert default_lr("adamw", 1024) == pytest.approx(0.002)
    assert default_lr("lion", 256) == pytest.approx(1e-4)


share = st.floats(0, 1)


@settings(deadline=None)
@given(kind=st.sampled_from(KINDS), progress=share, warmup=st.floats(0, 0.9), low=share)
def test_factor_stays_in_bounds(kind, progress, warmup, low):
    factor = learning_rate_factor(kind, progress, warmup=warmup, min_fraction=low)
    assert min(low, 1 / 25) - 1e-12 <= factor <= 1 + 1e-12


@settings(deadline=None)
@given(
    kind=st.sampled_from([kind for kind in KINDS if kind != "step"]),
    progress=st.floats(0, 1 - 1e-6),
    warmup=st.floats(0.05, 0.9),
    low=share,
)
def test_factor_is_continuous(kind, progress, warmup, low):
    here, next_ = (learning_rate_factor(kind, p, warmup=warmup, min_fraction=low) for p in (progress, progress + 1e-6))
    assert abs(next_ - here) < 1e-4


@settings(deadline=None)
@given(kind=st.sampled_from(KINDS), warmup=st.floats(0.01, 0.3), low=share, a=share, b=share)
def test_factor_rises_in_the_warmup_and_falls_after(kind, warmup, low, a, b):
    def factor(progress: float) -> float:
        return learning_rate_factor(kind, progress, warmup=warmup, min_fraction=low)

    early, late = sorted((a, b))
    # A staircase counts its steps from the start of the run, and none is due within this warm-up.
    assert factor(early * warmup * 0.999) <= factor(late * warmup * 0.999) + 1e-12
    assert factor(warmup + (1 - warmup) * early) + 1e-9 >= factor(warmup + (1 - warmup) * late)


@pytest.mark.parametrize("kind", KINDS)
def test_ends(kind: str):
    factor = learning_rate_factor(kind, 0.2, warmup=0.2, min_fraction=0.001)
    assert factor == pytest.approx(1)
    assert learning_rate_factor(kind, 0, warmup=0.2) == pytest.approx(1 / 25)
    assert learning_rate_factor(kind, 0) == pytest.approx(1)
    end = {"one-cycle": 0.001, "cosine": 0.001, "linear": 0.001, "step": 0.001, "constant": 1.0}[kind]
    assert learning_rate_factor(kind, 1, warmup=0.2, min_fraction=0.001) == pytest.approx(end)
    assert learning_rate_factor(kind, 1.5, warmup=0.2, min_fraction=0.001) == pytest.approx(end)


def test_one_cycle_is_pytorchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    steps = 50
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, steps, pct_start=0.3, div_factor=25, final_div_factor=0.04 / 0.01, cycle_momentum=False
    )
    # PyTorch counts its phases in whole steps between the first and the last.
    for step in range(steps):
        warmup = (0.3 * steps - 1) / (steps - 1)
        actual = learning_rate_factor("one-cycle", step / (steps - 1), warmup=warmup, min_fraction=0.01)
        assert actual == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if step < steps - 1:
            scheduler.step()


def test_cosine_is_pytorchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.1)
    for step in range(20):
        assert learning_rate_factor("cosine", step / 20, min_fraction=0.1) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-9
        )
        optimizer.step()
        scheduler.step()


def test_steps():
    factors = [
        learning_rate_factor("step", epoch / 9, step_length=3 / 9, step_factor=0.1) for epoch in (0, 2.9, 3, 5.9, 6, 8)
    ]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_schedules_refuse_what_they_cannot_do():
    for arguments in ({"warmup": 1.0}, {"min_fraction": 2.0}):
        with pytest.raises(ValueError):
            learning_rate_factor("cosine", 0.5, **arguments)
    with pytest.raises(ValueError, match="step"):
        learning_rate_factor("step", 0.5, step_length=0.0)
    with pytest.raises(ValueError, match="one-cycle"):
        learning_rate_factor("polynomial", 0.5)  # type: ignore[arg-type]


def test_moving_average_starts_at_the_weights_and_follows_them():
    model = small_model()
    ema = create_ema(model, 0.9)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(1, 30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model[1].running_mean.add_(1.0)
            model[1].num_batches_tracked.add_(1)
        ema.update(model, step)
        decay = min(0.9, 1 - step ** (-2 / 3))
        for name, value in model.state_dict().items():
            moves = value.is_floating_point()
            average[name] = decay * average[name] + (1 - decay) * value if moves else value.clone()
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, average[name], msg=name)
    assert not ema.module.training
    assert math.isclose(ema.get_decay(10_000), 0.9)


def test_moving_average_continues_from_its_state():
    torch.manual_seed(0)
    model = small_model()
    whole, first = create_ema(model, 0.99), create_ema(model, 0.99)
    whole.update(model, 1)
    first.update(model, 1)
    second = create_ema(small_model(), 0.99)
    second.module.load_state_dict(first.module.state_dict())
    with torch.no_grad():
        model[0].weight.add_(1)
    whole.update(model, 2)
    second.update(model, 2)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_moving_average_refuses_impossible_decays(decay: float):
    with pytest.raises(ValueError, match="ema-decay"):
        create_ema(small_model(), decay)
