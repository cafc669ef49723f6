"""From a resolved configuration to the parts of a run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm

from engine.config import AugmentConfig, Config, ConfigError, OptimizerConfig
from engine.distributed import Process
from engine.freezing import freeze
from engine.learner import Learner, LossOptions, StepOptions
from engine.losses import class_weights
from engine.model import create_model, model_summary, pretrained_statistics
from engine.optim import create_optimizer, learning_rate_factor, parameter_groups
from engine.precision import resolve_amp
from engine.progressive import ProgressiveSchedule
from kernels.random import Stream, permutation
from loaders.augment import PRESETS, Augmentation
from loaders.cache import cache_dir
from loaders.dataset import ImageData, ImageDataset
from loaders.opening import open_data
from loaders.pack_cache import cached_pack_path
from loaders.pack_job import pack
from loaders.pack_records import PackOptions
from loaders.pack_sources import source_of
from loaders.packed import PackedDataset, open_packed
from loaders.packed_manifest import MANIFEST

logger = logging.getLogger("headrace")


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of red, green and blue, for pixels in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}"


def open_images(config: Config, show_progress: bool = True) -> ImageData:
    """Open the data that a configuration names, whole.

    Raises:
        DataError: the data are missing or have no layout that is understood.
    """
    options = config.data
    return open_data(
        options.data,
        csv=options.csv,
        image_root=options.image_root,
        path_column=options.path_column,
        label_column=options.label_column,
        split_column=options.split_column,
        val_fraction=options.val_fraction,
        seed=config.run.seed,
        cache=options.cache,
        show_progress=show_progress,
    )


def packed(config: Config, data: ImageData, show_progress: bool = True) -> ImageData:
    """Return the data as the loader is to read them: packed into the cache, for ``roi`` and unless that is off.

    Args:
        config: with every ``auto`` resolved.
        data: what to pack.
        show_progress: show a progress bar when there is something to do.

    Raises:
        PackError: they cannot be packed, for want of space, say.
        DataError: the packed set in the cache is damaged.
    """
    how = config.loader.pack
    if config.loader.loader != "roi" or how == "off" or isinstance(data.train, PackedDataset):
        return data
    options = PackOptions(config.loader.pack_side, keep=how == "keep", renditions=config.loader.renditions)
    cache = (config.data.cache or cache_dir()).expanduser().absolute()
    source = source_of(data)
    folder = cached_pack_path(source, options, cache)
    if not (folder / MANIFEST).is_file():
        form = "the original JPEG data" if options.keep else f"JPEGs of at most {options.max_side} pixels, quality 90"
        logger.info("Packing %s once, %s, into %s (--pack off reads the files as they are)", data.name, form, folder)
    pack(source, folder, options, show_progress=show_progress)
    return open_packed(folder)


def limit(data: ImageData, limit_train: int, limit_val: int, seed: int) -> ImageData:
    """Return the data with at most so many images of each split (0: all), drawn at random."""
    return replace(data, train=_limited(data.train, limit_train, seed), val=_limited(data.val, limit_val, seed))


def _limited(dataset: ImageDataset, count: int, seed: int) -> ImageDataset:
    if not 0 < count < len(dataset):
        return dataset
    return dataset.select(np.sort(permutation(seed, 0, len(dataset), Stream.SPLIT)[:count]))


def check_data(config: Config, data: ImageData) -> None:
    """Refuse what the data at hand make impossible.

    Raises:
        ConfigError: there is nothing to train on, or an option needs images that are not there.
    """
    if not len(data.train):
        raise ConfigError(f"{data.name} has no training images")
    largest = max(stage.batch_size for stage in ProgressiveSchedule.from_config(config).stages)
    if config.loader.drop_last and len(data.train) < largest:
        raise ConfigError(
            f"--drop-last leaves nothing of {len(data.train)} training images in batches of {largest}: "
            "lower --batch-size"
        )
    if len(data.val):
        return
    wants = {
        "--target": config.run.target,
        "--early-stop": config.run.early_stop,
        "--resolution-schedule metric": config.resolution.resolution_schedule == "metric",
    }
    for option in (option for option, wanted in wants.items() if wanted):
        raise ConfigError(f"{option} needs validation images, and {data.name} has none: raise --val-fraction")


def augmentation_of(config: AugmentConfig) -> Augmentation:
    """Return the preset with the options that were given besides.

    Raises:
        ConfigError: the options contradict each other.
    """
    given: dict[str, Any] = {
        "crop": config.crop,
        "scale": config.scale,
        "ratio": config.ratio,
        "flip": config.hflip,
        "rotation": config.rotation,
        "color_jitter": config.color_jitter,
        "trivial_augment": config.trivial_augment,
        "erasing": config.erasing,
        "blur": config.blur,
        "grayscale": config.grayscale,
        "mixup": config.mixup,
        "cutmix": config.cutmix,
    }
    if config.rand_augment is not None:
        given["rand_augment_layers"], given["rand_augment_magnitude"] = config.rand_augment
        if config.trivial_augment is None and config.rand_augment[0]:
            given["trivial_augment"] = False
    elif config.trivial_augment:
        given["rand_augment_layers"] = 0
    try:
        return replace(PRESETS[config.augment], **{key: value for key, value in given.items() if value is not None})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def lr_factor_of(config: OptimizerConfig, progress: float) -> float:
    """Return the factor of the learning rate after a share of the run's samples.

    Every epoch is an equal share, also where ``--drop-last`` leaves out a few samples of some.
    """
    return learning_rate_factor(
        config.schedule,
        progress,
        warmup=min(float(config.warmup_epochs) / config.epochs, 0.99),
        min_fraction=config.min_lr_fraction,
        step_length=config.step_epochs / config.epochs if config.step_epochs else 1 / 3,
        step_factor=config.step_factor,
    )


def model_arguments(config: Config) -> dict[str, Any]:
    """Return the arguments that the architecture depends on, beside the name and the number of classes."""
    return {"resolution": max(config.resolution.resolutions)}


def create_learner(config: Config, data: ImageData, process: Process) -> tuple[Learner, Normalization]:
    """Create the model, its optimizer and loss.

    Raises:
        ModelError: the model is unknown, or its weights cannot be had.
        OptimizerError: the optimizer is unknown.
        ValueError: an option does not fit the model.
    """
    torch.manual_seed(config.run.seed)  # the same initial weights on every rank
    options = config.model
    model = create_model(
        options.model,
        len(data.classes),
        pretrained=options.pretrained,
        weights=options.weights,
        dropout=options.dropout or None,
        drop_path=options.drop_path or None,
        **model_arguments(config),
    )
    sizes = {*config.resolution.resolutions, config.resolution.val_resolution, *config.resolution.final_resolutions}
    for size in sorted(sizes):  # a size that the architecture refuses shows now, not when its stage begins
        summary = model_summary(model, size)
    logger.info(
        "Model: %s, %.1f million parameters, %.2f GFLOPs for an image of %d px",
        options.model, summary.parameters / 1e6, summary.forward_flops / 1e9, max(sizes),
    )  # fmt: skip
    normalization = Normalization(*pretrained_statistics(model))
    frozen = freeze(model, options.freeze)
    if frozen:
        logger.info("Frozen: %d of %d parameters tensors", len(frozen), len(list(model.parameters())))
    model.to(process.device)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.sync_bn:
        model = convert_sync_batchnorm(model)  # PyTorch's function leaves out the activations in timm's layers
    groups = parameter_groups(model, float(config.optimizer.weight_decay), layer_decay=options.layer_decay)
    optimizer = create_optimizer(
        config.optimizer.opt, groups, lr=float(config.optimizer.lr), momentum=config.optimizer.momentum
    )
    weights = class_weights(config.loss.class_weights, data.train.class_counts())
    torch.manual_seed(config.run.seed + process.rank)  # but different dropout
    learner = Learner(
        model,
        optimizer,
        process,
        resolve_amp(options.amp, process.device),
        LossOptions(
            config.loss.smoothing, None if weights is None else weights.to(process.device), config.loss.focal_gamma
        ),
        StepOptions(
            config.optimizer.grad_accum_steps,
            config.optimizer.clip_grad,
            config.loss.on_nonfinite == "skip",
            options.compile,
            options.channels_last,
        ),
        ema_decay=options.ema_decay if options.ema else None,
        max_shapes=len(config.resolution.resolutions),
    )
    return learner, normalization
