"""What ``auto`` means: choices made by the data, the model and the machine, once, before a run starts."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import torch

from engine.config import Config, LoaderName
from engine.distributed import Process
from engine.model import auto_model, create_model, has_depthwise_convolutions
from engine.optim import default_lr
from engine.precision import resolve_amp
from engine.tuner import TUNED_LOADERS
from loaders.choice import choose_loader
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset

logger = logging.getLogger("headrace")


def resolve(config: Config, train: ImageDataset, process: Process, resolution: int | None = None) -> Config:
    """Return the configuration with every ``auto`` replaced by what it stands for here.

    But for the workers: how many are best is found while training, on every machine anew (engine.tuner).
    The loader is measured by the first process alone; on the others it may still be ``auto``.

    Args:
        resolution: that the user's own transforms make, in pixels; None where there are none.

    Raises:
        PrecisionError: the device cannot run in the precision asked for.
    """
    device = process.device
    cores = usable_cores(process.local_world)
    resolutions = config.resolution.resolutions
    if not resolutions:
        resolutions = resolution_ladder(train, device) if resolution is None else (resolution,)
    schedule = config.resolution.resolution_schedule
    if schedule == "auto":
        schedule = "stages" if len(resolutions) > 1 else "fixed"
    workers = initial_workers(config, device, cores)
    loader = config.loader.loader
    if loader == "auto" and process.is_main:
        batch_size = config.optimizer.batch_size
        chosen, reason = choose_loader(train, device, workers, max(resolutions), max(1, batch_size // process.world))
        loader = cast(LoaderName, chosen)
        logger.info("Loader: %s (%s)", loader, reason)
    pack = config.loader.pack
    if pack == "auto":
        pack = "shrink" if config.loader.loader == "roi" else "off"
    optimizer = config.optimizer
    lr = default_lr(optimizer.opt, optimizer.batch_size) if optimizer.lr == "auto" else optimizer.lr
    decay = default_weight_decay(optimizer.opt) if optimizer.weight_decay == "auto" else optimizer.weight_decay
    warmup = optimizer.warmup_epochs
    if warmup == "auto":
        warmup = default_warmup(optimizer.schedule, optimizer.epochs)
    transforms = config.augment.transforms
    model = config.model.model
    if model == "auto":
        model = auto_model(max(resolutions), device)
    precision = resolve_amp(config.model.amp, device, depthwise=_is_depthwise(model, len(train.classes)))
    logger.info("Precision: %s", precision.reason)
    amp: Literal["off", "bf16", "fp16"] = "off"
    if precision.dtype is not None:
        amp = "bf16" if precision.dtype == torch.bfloat16 else "fp16"
    return replace(
        config,
        loader=replace(
            config.loader,
            loader=loader,
            pack=pack,
            pack_side=config.loader.pack_side or max(500, 2 * max(resolutions)),
        ),
        resolution=replace(
            config.resolution,
            resolutions=resolutions,
            resolution_schedule=schedule,
            val_resolution=config.resolution.val_resolution or max(resolutions),
        ),
        augment=replace(config.augment, transforms=transforms and transforms.expanduser().absolute()),
        model=replace(config.model, model=model, amp=amp),
        optimizer=replace(optimizer, lr=lr, weight_decay=decay, warmup_epochs=warmup),
        # A configuration that is written down and given back begins a run of its own.
        run=replace(
            config.run,
            device=config.run.device if config.run.device.startswith("cuda:") else device.type,
            threads=config.run.threads or max(1, int(cores)),
            resume=None,
        ),
    )


def _is_depthwise(model: str, num_classes: int) -> bool:
    """Say whether an architecture has depthwise convolutions, without giving it memory."""
    with torch.device("meta"):
        return has_depthwise_convolutions(create_model(model, num_classes))


def resolution_ladder(train: ImageDataset, device: torch.device) -> tuple[int, ...]:
    """Return sizes that suit the images: the largest is near their usual shorter side, within what the device trains.

    A GPU gets up to 128, 160, 192, 224 pixels, a CPU up to 64, 80, 96; images of 40 pixels or less one size.
    """
    side = int(np.median(np.minimum(train.widths, train.heights)))
    if side <= 40:
        return (max(side, 8),)
    if device.type == "cpu":
        return (64, 80, 96) if side >= 192 else (48, 64)
    if side >= 192:
        return (128, 160, 192, 224)
    return (96, 128) if side >= 112 else (48, 64)


def initial_workers(config: Config, device: torch.device, cores: float) -> int:
    """Return the workers to begin with: where they are tuned, one that shows how many are needed."""
    workers = config.loader.num_workers
    if workers != "auto":
        return workers
    return 1 if config.loader.loader in TUNED_LOADERS else default_workers(cores, device)


def default_workers(cores: float, device: torch.device) -> int:
    """Return worker processes or threads: all cores feed a GPU; on a CPU the model needs them more."""
    return max(1, int(cores)) if device.type == "cuda" else max(1, int(cores) // 2)


def default_warmup(schedule: str, epochs: int) -> float:
    """Return epochs of warm-up: 30 % of a one-cycle run, 5 % of others and at most five epochs."""
    return 0.3 * epochs if schedule == "one-cycle" else min(5.0, 0.05 * epochs)


def default_weight_decay(optimizer: str) -> float:
    """Return a weight decay to start from: 0.0005 for SGD, 0.05 for AdamW, 0.0001 for others."""
    return {"sgd": 5e-4, "adamw": 0.05}.get(optimizer, 1e-4)
