"""Optimizers, their parameter groups, and learning-rate schedules.

A schedule is a pure function of how much of the run is done, measured in samples, so that it has no state to save and
does not care how batch sizes change on the way.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal

import timm.optim
import torch
from torch import nn

ScheduleKind = Literal["one-cycle", "cosine", "step", "linear", "constant"]

_WARMUP_START = 1 / 25  # where the learning rate starts, as a fraction of its peak


class OptimizerError(ValueError):
    """An optimizer that does not exist, or cannot be used here."""


def parameter_groups(model: nn.Module, weight_decay: float, *, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups, for an optimizer.

    Weight decay applies to parameters of two or more dimensions; biases and the scales of normalization layers have
    one and go without (He et al., "Bag of Tricks for Image Classification", CVPR 2019). Frozen parameters are left out.

    Args:
        model: the model.
        weight_decay: for the groups that decay.
        layer_decay: each layer's learning rate over the next one's (Clark et al., "ELECTRA", ICLR 2020), the last
            layer having 1; layers are what timm makes of the model, and the groups carry an ``lr_scale``.

    Raises:
        ValueError: ``layer_decay`` is not in (0, 1], or nothing is to be trained.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"--layer-decay must be in (0, 1], got {layer_decay}")
    if layer_decay < 1:
        groups = timm.optim.param_groups_layer_decay(model, weight_decay=weight_decay, layer_decay=layer_decay)
    else:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
            {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("the model has no parameters to train")
    return groups


def create_optimizer(
    name: str, groups: Sequence[dict[str, Any]], *, lr: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """Create an optimizer: ``sgd`` (with Nesterov momentum) and ``adamw`` are PyTorch's fused ones, others timm's.

    Args:
        name: as in ``timm.optim.list_optimizers()``.
        groups: as from ``parameter_groups``, on the device they are trained on.
        lr: peak learning rate. A group's own, times its ``lr_scale``, is kept as ``initial_lr``.
        momentum: for optimizers that have one.

    Raises:
        OptimizerError: the name is unknown, or the optimizer needs what is not installed or not supported here.
    """
    # Fused ones pass once over the weights, and do not wait for the device when the loss is scaled.
    fused = all(parameter.device.type in ("cuda", "cpu") for group in groups for parameter in group["params"])
    optimizer: torch.optim.Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    elif name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr, fused=fused)
    else:
        if _optimizer_info(name).second_order:
            raise OptimizerError(f"--opt {name} needs second derivatives, which the training loop does not compute")
        try:
            optimizer = timm.optim.create_optimizer_v2(groups, opt=name, lr=lr, momentum=momentum)
        except (ImportError, AssertionError, RuntimeError) as error:
            raise OptimizerError(f"--opt {name} cannot be used here: {error}") from error
    for group in optimizer.param_groups:
        group["initial_lr"] = lr * group.get("lr_scale", 1.0)
        group["lr"] = group["initial_lr"]
    return optimizer


def _optimizer_info(name: str) -> timm.optim.OptimInfo:
    try:
        return timm.optim.get_optimizer_info(name)
    except ValueError:
        near = get_close_matches(name.lower(), map(str, timm.optim.list_optimizers()), n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.optim.list_optimizers() lists what there is"
        raise OptimizerError(f"there is no optimizer {name!r}; {hint}") from None


def default_lr(optimizer: str, batch_size: int) -> float:
    """Return a peak learning rate to start from.

    SGD: 0.5 for each 256 samples of a batch, linear in the batch (Goyal et al., "Accurate, Large Minibatch SGD", 2017),
    at most 2. AdamW: 0.001 at 256, with the square root of the batch (Malladi et al., "On the SDEs and Scaling Rules
    for Adaptive Gradient Algorithms", NeurIPS 2022). Others: their own default at 256, with the square root.

    Raises:
        OptimizerError: the name is unknown.
    """
    if optimizer == "sgd":
        return min(0.5 * batch_size / 256, 2.0)
    base = 1e-3
    if optimizer != "adamw":
        _optimizer_info(optimizer)
        optimizer_class = timm.optim.get_optimizer_class(optimizer, bind_defaults=False)
        default = inspect.signature(optimizer_class).parameters["lr"].default
        base = default if isinstance(default, float) else base
    return base * math.sqrt(batch_size / 256)


def learning_rate_factor(
    kind: ScheduleKind,
    progress: float,
    *,
    warmup: float = 0.0,
    min_fraction: float = 0.0,
    step_length: float = 1 / 3,
    step_factor: float = 0.1,
) -> float:
    """Return the learning rate as a fraction of its peak.

    With a warm-up, the rate rises from 1/25 of the peak to the peak; then

    - ``one-cycle``: falls along half a cosine, having risen along one (Smith, "A disciplined approach to neural network
      hyper-parameters", 2018, in the form of PyTorch's ``OneCycleLR``);
    - ``cosine``: the same fall, after a straight rise (Loshchilov and Hutter, "SGDR", ICLR 2017);
    - ``linear``: falls straight;
    - ``step``: is multiplied by ``step_factor`` after each ``step_length`` of the run;
    - ``constant``: stays.

    Args:
        progress: share of the run's samples seen, in [0, 1]; beyond 1 the rate stays where it ended.
        warmup: share of the run in which the rate rises, in [0, 1).
        min_fraction: what the rate ends at or, for ``step``, never falls below; in [0, 1].
        step_length: share of the run.
        step_factor: in (0, 1].

    Returns:
        A number in [min(min_fraction, 1/25), 1].

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"the warm-up must be shorter than the run: a share in [0, 1), got {warmup}")
    if not 0 <= min_fraction <= 1:
        raise ValueError(f"--min-lr-fraction must be in [0, 1], got {min_fraction}")
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        risen = progress / warmup
        if kind == "one-cycle":
            risen = _half_cosine(risen)
        return _WARMUP_START + (1 - _WARMUP_START) * risen
    elapsed = (progress - warmup) / (1 - warmup)
    if kind in ("one-cycle", "cosine"):
        return 1 - (1 - min_fraction) * _half_cosine(elapsed)
    if kind == "linear":
        return 1 - (1 - min_fraction) * elapsed
    if kind == "step":
        if not step_length > 0 or not 0 < step_factor <= 1:
            raise ValueError(f"steps need a length above 0 and a factor in (0, 1], got {step_length} and {step_factor}")
        steps = math.floor(progress / step_length + 1e-9)
        return max(step_factor**steps, min_fraction)
    if kind == "constant":
        return 1.0
    raise ValueError(f"--schedule must be one-cycle, cosine, step, linear or constant, got {kind!r}")


def _half_cosine(share: float) -> float:
    """Return a smooth rise from 0 to 1."""
    return (1 - math.cos(math.pi * share)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to ``factor`` times its ``initial_lr``."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
