"""Models by name, from timm or torchvision, and what the training loop needs to know about them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg
from timm.models.resnet import BasicBlock, ResNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode

from engine.weights import ModelError, load_weights, read_state_dict
from kernels.device import Color

logger = logging.getLogger("headrace")

# ResNets for images of about 32 pixels: a 3x3 stem of stride 1 and no pooling (He et al., "Deep Residual Learning for
# Image Recognition", CVPR 2016, section 4.2), by blocks and channels of the four stages.
_CIFAR_RESNETS = {
    "cifar_resnet10": ((1, 1, 1, 1), (32, 64, 128, 256)),
    "cifar_resnet18": ((2, 2, 2, 2), (64, 128, 256, 512)),
}
_OPTION_OF_ARGUMENT = {
    "drop_rate": "--dropout",
    "dropout": "--dropout",
    "drop_path_rate": "--drop-path",
    "stochastic_depth_prob": "--drop-path",
}


def create_model(
    name: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    resolution: int | None = None,
) -> nn.Module:
    """Create a classifier: float32 (N, 3, H, W) to logits (N, num_classes), on the CPU.

    Names are looked up among ``cifar_resnet10`` and ``cifar_resnet18``, then timm's, then torchvision's.

    Args:
        name: for example ``resnet18``, ``vit_small_patch16_224.augreg_in1k``.
        num_classes: number of outputs.
        pretrained: start from published weights, downloaded once.
        weights: file to start from instead, see ``engine.weights``; what was loaded is logged.
        dropout, drop_path: rates of dropout and stochastic depth; None leaves the architecture's default.
        resolution: side of the largest images; only architectures of a fixed input size depend on it.

    Raises:
        ModelError: the name is unknown, an option does not apply to the architecture, or weights cannot be had or do
            not fit.
    """
    if pretrained and weights is not None:
        raise ModelError("--pretrained and --weights both name start weights: leave one of them out")
    if name in _CIFAR_RESNETS:
        model = _create_cifar_resnet(name, num_classes, pretrained, dropout, drop_path)
    elif timm.is_model(name):
        model = _create_timm(name, num_classes, pretrained, dropout, drop_path, resolution)
    elif name in _torchvision_names():
        model = _create_torchvision(name, num_classes, pretrained, dropout, drop_path, resolution)
    else:
        names = [*_CIFAR_RESNETS, *timm.list_models(), *_torchvision_names()]
        near = get_close_matches(name, names, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists what there is"
        raise ModelError(f"there is no model {name!r}; {hint}")
    if dropout and not dropout_layers(model):
        raise ModelError(f"{name} has no dropout: leave out --dropout")
    if weights is not None:
        logger.info("%s: %s", weights, load_weights(model, read_state_dict(weights), str(weights)))
    return model


def _create_cifar_resnet(
    name: str, num_classes: int, pretrained: bool, dropout: float | None, drop_path: float | None
) -> nn.Module:
    if pretrained:
        raise _no_weights(name)
    layers, channels = _CIFAR_RESNETS[name]
    rates: dict[str, Any] = {"drop_rate": dropout or 0.0, "drop_path_rate": drop_path or 0.0}
    model: Any = ResNet(cast(Any, BasicBlock), layers, num_classes, channels=channels, **rates)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    model.pretrained_cfg = {"classifier": "fc"}
    return model


def _create_timm(
    name: str,
    num_classes: int,
    pretrained: bool,
    dropout: float | None,
    drop_path: float | None,
    resolution: int | None,
) -> nn.Module:
    config = timm.get_pretrained_cfg(name) or PretrainedCfg()
    arguments: dict[str, Any] = {"num_classes": num_classes, "drop_rate": dropout, "drop_path_rate": drop_path}
    sizes: list[dict[str, Any]] = [{}]
    if resolution is not None and config.fixed_input_size:
        # Position embeddings are made for one size; where the architecture can, it adapts to others as they come.
        size: dict[str, Any] = {"img_size": resolution}
        sizes = [size | {"dynamic_img_size": True}, size | {"strict_img_size": False}, size]
    for attempt, size in enumerate(sizes, start=1):
        try:
            return timm.create_model(name, pretrained, **arguments, **size)
        except TypeError as error:
            if attempt == len(sizes) or not any(f"'{argument}'" in str(error) for argument in size):
                raise _unsupported(name, error) from error
        except AssertionError as error:
            raise ModelError(f"{name} cannot take images of {resolution} pixels: {error}") from error
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            source = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else cast(str, config.url)
            raise _no_weights(name, source, error) from error
    raise AssertionError("the last attempt returns or raises")


def _create_torchvision(
    name: str,
    num_classes: int,
    pretrained: bool,
    dropout: float | None,
    drop_path: float | None,
    resolution: int | None,
) -> nn.Module:
    arguments: dict[str, Any] = {"dropout": dropout, "stochastic_depth_prob": drop_path}
    if name.startswith("vit_"):
        arguments["image_size"] = resolution
    arguments = {argument: value for argument, value in arguments.items() if value is not None}
    try:
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    except TypeError as error:
        raise _unsupported(name, error) from error
    classifier = [module for module, layer in model.named_modules() if getattr(layer, "weight", None) is not None][-1]
    config: dict[str, Any] = {"classifier": classifier}
    model.pretrained_cfg = config
    if pretrained:
        published: Any = torchvision.models.get_model_weights(name)
        published = published.DEFAULT
        try:
            state = published.get_state_dict(check_hash=True)
        except (OSError, RuntimeError) as error:
            raise _no_weights(name, published.url, error) from error
        load_weights(model, state, published.url)
        transforms = published.transforms()
        config.update(mean=tuple(transforms.mean), std=tuple(transforms.std))
    return model


def _torchvision_names() -> list[str]:
    """Return torchvision's classifiers, except for the one that in training returns more than logits."""
    return [name for name in torchvision.models.list_models(module=torchvision.models) if name != "googlenet"]


def _unsupported(name: str, error: TypeError) -> ModelError:
    option = next((option for argument, option in _OPTION_OF_ARGUMENT.items() if f"'{argument}'" in str(error)), None)
    return ModelError(f"{name} does not support {option}: leave it out" if option else f"{name}: {error}")


def _no_weights(name: str, source: str = "", error: Exception | None = None) -> ModelError:
    if not source:
        return ModelError(f"there are no published weights for {name}: leave out --pretrained")
    return ModelError(
        f"--pretrained: the weights of {name} could not be downloaded ({error}). "
        f"Without access to the network, fetch them elsewhere from {source} and give the file with --weights FILE"
    )


def auto_model(resolution: int, device: torch.device) -> str:
    """Return a small model that learns from scratch on the device, for images of at most ``resolution`` pixels.

    On a CPU a training step of ``resnet10t`` takes about 0.7 of ``resnet18``'s time at 64 pixels.
    """
    on_cpu = device.type == "cpu"
    if resolution <= 40:
        return "cifar_resnet10" if on_cpu else "cifar_resnet18"
    if on_cpu:
        return "resnet10t"
    return "resnet18" if resolution < 128 else "resnet50"


def dropout_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that now drop activations at a rate above 0, for ``set_dropout``."""
    return [
        module
        for module in model.modules()
        if (isinstance(module, _DropoutNd) and module.p > 0) or _functional_rate(module) > 0
    ]


def set_dropout(layers: Sequence[nn.Module], rate: float) -> None:
    """Set the rate of dropout layers.

    A compiled model specializes on the rate and is compiled again for a new one, as it is for a new resolution: change
    both together, and warm up each stage at its own rate, to compile once for each stage.

    Args:
        layers: as from ``dropout_layers`` when the model was new, whose rates may have become 0 since.
        rate: in [0, 1).
    """
    for layer in layers:
        if isinstance(layer, _DropoutNd):
            layer.p = rate
        else:
            cast(Any, layer).drop_rate = rate


def _functional_rate(module: nn.Module) -> float:
    """Return the rate of a timm model that calls ``torch.nn.functional.dropout`` with an attribute; 0 for others."""
    rate = getattr(module, "drop_rate", 0.0)
    return rate if isinstance(rate, float) else 0.0


def needs_two_images(model: nn.Module, world: int) -> bool:
    """Return whether one of ``world`` ranks cannot train on a single image: batch norm needs two values.

    With SyncBN the other ranks' images are enough.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return any(world == 1 or not isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def has_depthwise_convolutions(model: nn.Module) -> bool:
    """Return whether some convolution treats each channel for itself, as MobileNet's and ConvNeXt's do."""
    return any(isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 for module in model.modules())


@dataclass(frozen=True)
class ModelSummary:
    """The size of a model.

    Attributes:
        parameters: number of weights.
        trainable_parameters: those that are not frozen.
        forward_flops: floating-point operations to classify one image, a multiply-add counted as two.
    """

    parameters: int
    trainable_parameters: int
    forward_flops: int


def model_summary(model: nn.Module, resolution: int) -> ModelSummary:
    """Count parameters and operations, the latter by running one image of ``resolution`` pixels.

    Raises:
        ModelError: the model cannot take images of that size.
    """
    training = [module for module in model.modules() if module.training]
    first = next(model.parameters())
    image = torch.zeros(1, 3, resolution, resolution, device=first.device, dtype=first.dtype)
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image)
    except (AssertionError, RuntimeError) as error:
        raise ModelError(f"the model cannot take images of {resolution} pixels: {error}") from error
    finally:
        for module in training:
            module.training = True
    parameters = list(model.parameters())
    return ModelSummary(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        forward_flops=counter.get_total_flops(),
    )


def pretrained_statistics(model: nn.Module) -> tuple[Color, Color]:
    """Return the mean and standard deviation, in 0..1, that the model's published weights expect; else ImageNet's."""
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean") or IMAGENET_DEFAULT_MEAN, config.get("std") or IMAGENET_DEFAULT_STD
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
