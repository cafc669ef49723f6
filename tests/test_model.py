"""Tests of engine.model and engine.weights."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

import engine.model
from engine.model import (
    auto_model,
    create_model,
    dropout_layers,
    has_depthwise_convolutions,
    model_summary,
    needs_two_images,
    pretrained_statistics,
    set_dropout,
)
from engine.weights import ModelError, load_weights, read_state_dict

CPU = torch.device("cpu")
SMALL = "test_resnet"


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


# Names


@pytest.mark.parametrize("name", [SMALL, "cifar_resnet10", "shufflenet_v2_x0_5", "test_vit.r160_in1k"])
@pytest.mark.parametrize("resolution", [32, 48])
def test_models_classify_images_of_several_sizes(name: str, resolution: int):
    model = create_model(name, 7, resolution=48).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, resolution, resolution))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()


def test_cifar_resnets_keep_small_images_large():
    model = create_model("cifar_resnet18", 10)
    assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 4, 4)


@pytest.mark.parametrize(("name", "near"), [("resnet19", "resnet18"), ("cifar_resnet_18", "cifar_resnet18")])
def test_unknown_names_list_near_ones(name: str, near: str):
    with pytest.raises(ModelError, match=rf"no model '{name}'.*{near}"):
        create_model(name, 10)


def test_a_size_that_does_not_fit_the_patches_is_refused():
    with pytest.raises(ModelError, match="49 pixels"):
        model_summary(create_model("test_vit", 3, resolution=48), 49)


@pytest.mark.parametrize("resolution", [8, 24, 32, 40, 41, 64, 128, 224])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_automatic_models_exist(resolution: int, device: str):
    name = auto_model(resolution, torch.device(device))
    with torch.device("meta"):
        model = create_model(name, 10, resolution=resolution)
    assert model.get_classifier().out_features == 10


# Options


@pytest.mark.parametrize("name", [SMALL, "cifar_resnet10", "mobilenetv3_small_050", "squeezenet1_1", "test_vit"])
def test_dropout_can_change_and_return_from_zero(name: str):
    model = create_model(name, 5, dropout=0.5, resolution=64).train()
    torch.nn.init.normal_(next(p for p in reversed(list(model.parameters())) if p.ndim > 1))
    layers = dropout_layers(model)
    images = torch.randn(2, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()

    def is_random() -> bool:
        with torch.no_grad():
            return not torch.equal(model(images), model(images))

    assert layers and is_random()
    set_dropout(layers, 0.0)
    assert not is_random()
    set_dropout(layers, 0.4)
    assert is_random()


def test_options_that_do_not_apply_are_refused():
    with pytest.raises(ModelError, match="--dropout"):
        create_model("shufflenet_v2_x0_5", 5, dropout=0.2)
    with pytest.raises(ModelError, match="--drop-path"):
        create_model("squeezenet1_1", 5, drop_path=0.2)
    with pytest.raises(ModelError, match="--pretrained"):
        create_model("cifar_resnet10", 5, pretrained=True)
    with pytest.raises(ModelError, match="both"):
        create_model(SMALL, 5, pretrained=True, weights=Path("x.pt"))


def test_drop_path_is_passed_on():
    model = create_model("test_convnext", 5, drop_path=0.3)
    assert any(type(module).__name__ == "DropPath" for module in model.modules())


@pytest.mark.parametrize(
    ("name", "batch_norm", "depthwise"),
    [(SMALL, True, False), ("mobilenetv3_small_050", True, True), ("test_vit", False, False)],
)
def test_kinds_of_layers(name: str, batch_norm: bool, depthwise: bool):
    model = create_model(name, 5, resolution=64)
    assert [needs_two_images(model, world) for world in (1, 2)] == [batch_norm] * 2
    assert has_depthwise_convolutions(model) is depthwise


def test_synchronized_batch_norm_takes_the_second_image_of_another_rank():
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(create_model(SMALL, 5))
    assert [needs_two_images(model, world) for world in (1, 2)] == [True, False]


# Summary and statistics


def test_summary_counts_parameters_and_operations():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Flatten())
    model[0].requires_grad_(False)
    model[1].eval()
    summary = model_summary(model, 10)
    assert summary.parameters == 8 * 3 * 9 + 16
    assert summary.trainable_parameters == 16
    assert summary.forward_flops == 2 * 8 * 3 * 9 * 100
    assert model.training and not model[1].training
    assert model[1].num_batches_tracked == 0


def test_operations_grow_with_the_area():
    model = create_model(SMALL, 5)
    assert model_summary(model, 128).forward_flops > 3.9 * model_summary(model, 64).forward_flops


def test_statistics():
    mean, std = pretrained_statistics(nn.Linear(1, 1))
    assert mean == (0.485, 0.456, 0.406) and std == (0.229, 0.224, 0.225)
    vit = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", num_classes=2)
    assert pretrained_statistics(vit) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


# Published weights, of which the tests download none


def test_timm_weights_out_of_reach(monkeypatch: pytest.MonkeyPatch):
    def offline(*arguments: object, **options: object) -> nn.Module:
        raise FileNotFoundError("cannot find the requested files")

    monkeypatch.setattr(engine.model.timm, "create_model", offline)
    with pytest.raises(ModelError, match=r"resnet10t.*https://huggingface.co/timm/resnet10t.*--weights FILE"):
        create_model("resnet10t", 5, pretrained=True)


def test_models_without_published_weights():
    with pytest.raises(ModelError, match="no published weights for test_vit4"):
        create_model("test_vit4", 5, pretrained=True)


def test_torchvision_weights_out_of_reach(monkeypatch: pytest.MonkeyPatch):
    def offline(self: object, **options: object) -> dict[str, torch.Tensor]:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.ShuffleNet_V2_X0_5_Weights, "get_state_dict", offline)
    with pytest.raises(ModelError, match=r"no route to host.*https://download.pytorch.org.*--weights FILE"):
        create_model("shufflenet_v2_x0_5", 5, pretrained=True)


def test_torchvision_weights_keep_the_new_head(monkeypatch: pytest.MonkeyPatch):
    published = torchvision.models.shufflenet_v2_x0_5(num_classes=1000)
    weights = SimpleNamespace(
        url="https://example.org/w.pth",
        get_state_dict=lambda check_hash: published.state_dict(),
        transforms=lambda: SimpleNamespace(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]),
    )
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: SimpleNamespace(DEFAULT=weights))
    model = create_model("shufflenet_v2_x0_5", 5, pretrained=True)
    assert model.fc.out_features == 5
    assert torch.equal(model.conv5[0].weight, published.conv5[0].weight)
    assert pretrained_statistics(model) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


# Weights from a file


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "ema": None, "position": {"epoch": 3}},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"model": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
        lambda state: {"model": {name: value * 0 for name, value in state.items()}, "ema": state},
        lambda state: {"state_dict": {}, "state_dict_ema": state},
    ],
)
def test_state_dicts_and_checkpoints(tmp_path: Path, wrap):
    source = create_model(SMALL, 5)
    file = tmp_path / "last.pt"
    torch.save(wrap(source.state_dict()), file)
    assert same_weights(create_model(SMALL, 5, weights=file), source)


def test_safetensors(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = create_model(SMALL, 5)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_model(source, str(file), {"classes": "[]"})
    with caplog.at_level(logging.INFO, "headrace"):
        assert same_weights(create_model(SMALL, 5, weights=file), source)
    assert "tensors loaded" in caplog.text and "as initialized" not in caplog.text


@pytest.mark.parametrize("name", [SMALL, "cifar_resnet10", "shufflenet_v2_x0_5"])
def test_the_head_stays_fresh_for_other_classes(name: str):
    source, model = create_model(name, 5), create_model(name, 3)
    head = model.fc.weight.clone()
    report = load_weights(model, source.state_dict(), "file")
    assert report.fresh == ("fc.weight", "fc.bias")
    assert set(report.loaded) == set(source.state_dict()) - {"fc.weight", "fc.bias"}
    assert torch.equal(model.fc.weight, head)
    assert "fc.weight, fc.bias" in str(report)


def test_weights_without_a_head_are_accepted():
    source = create_model(SMALL, 5)
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("fc.")}
    state["fc.extra"] = torch.zeros(1)
    report = load_weights(create_model(SMALL, 5), state, "file")
    assert report.fresh == ("fc.weight", "fc.bias") and report.ignored == ("fc.extra",)


def test_other_differences_are_refused_and_nothing_is_changed():
    model = create_model(SMALL, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value * 2 for name, value in create_model(SMALL, 5).state_dict().items()}
    del state["bn1.weight"]
    state["layer1.0.conv1.weight"] = torch.zeros(1)
    state["auxiliary.weight"] = torch.zeros(1)
    with pytest.raises(ModelError) as raised:
        load_weights(model, state, "there.pt")
    message = str(raised.value)
    assert "there.pt" in message
    assert "bn1.weight is missing" in message
    assert "layer1.0.conv1.weight is (1,), the model's" in message
    assert "auxiliary.weight is not in the model" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_position_embeddings_of_another_size_are_converted():
    source, model = create_model("test_vit", 5, resolution=64), create_model("test_vit", 5, resolution=96)
    assert source.pos_embed.shape != model.pos_embed.shape
    report = load_weights(model, source.state_dict(), "file")
    assert "pos_embed" in report.loaded


def test_half_precision_weights_are_widened():
    source, model = create_model(SMALL, 5), create_model(SMALL, 5)
    load_weights(model, source.half().state_dict(), "file")
    assert model.fc.weight.dtype == torch.float32
    assert torch.equal(model.fc.weight, source.fc.weight.float())


class NotATensor:
    """Something that needs code to be unpickled."""


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 broken zip"])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ModelError, match=name):
        read_state_dict(file)


def test_files_that_hold_no_weights(tmp_path: Path):
    with pytest.raises(ModelError, match="no file"):
        read_state_dict(tmp_path / "missing.pt")
    file = tmp_path / "w.pt"
    torch.save({"epoch": 3}, file)
    with pytest.raises(ModelError, match="no state dict"):
        read_state_dict(file)
    torch.save({"model": NotATensor()}, file)
    with pytest.raises(ModelError, match="Python objects"):
        read_state_dict(file)
