"""Tests of engine.freezing."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from engine.freezing import freeze, train_mode


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=4)


def test_freezes_what_lies_below_the_names(model: nn.Module):
    frozen = freeze(model, "layer1, layer2.0.conv1")
    assert frozen == [
        name for name, _ in model.named_parameters() if name.startswith("layer1.") or name.startswith("layer2.0.conv1.")
    ]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (name not in frozen)


def test_names_are_whole_and_may_have_wildcards(model: nn.Module):
    assert all(name.startswith("layer1.") for name in freeze(model, "layer[1]"))
    with pytest.raises(ValueError, match="'layer' matches no parameter"):
        freeze(model, "layer")
    assert "layer4.0.conv1.weight" in freeze(model, "layer*")


def test_a_single_parameter(model: nn.Module):
    assert freeze(model, "fc.bias") == ["fc.bias"]


def test_stem_is_what_timm_calls_so(model: nn.Module):
    frozen = freeze(model, "stem")
    assert frozen and all(name.startswith(("conv1.", "bn1.")) for name in frozen)


def test_nothing_matched_lists_the_modules():
    model = torchvision.models.resnet18(num_classes=4)
    with pytest.raises(ValueError, match=r"'stem' matches no parameter.*conv1, bn1, relu, maxpool, layer1"):
        freeze(model, "layer1,stem")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_everything_frozen_is_refused(model: nn.Module):
    with pytest.raises(ValueError, match="nothing to train"):
        freeze(model, "*")


@pytest.mark.parametrize("patterns", ["", " , "])
def test_no_patterns_freeze_nothing(model: nn.Module, patterns: str):
    assert freeze(model, patterns) == []


def test_frozen_layers_and_their_statistics_stay(model: nn.Module):
    frozen = freeze(model, "stem,layer1")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model.eval()  # as an evaluation in between does
        train_mode(model)
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    modules = ("conv1.", "bn1.", "layer1.")
    assert not [name for name in changed if name.startswith(modules)]
    assert "layer2.0.bn1.running_mean" in changed and "fc.weight" in changed
    assert all(name.startswith(modules) for name in frozen)


def test_train_mode_trains_everything_unless_frozen(model: nn.Module):
    train_mode(model.eval())
    assert all(module.training for module in model.modules())
