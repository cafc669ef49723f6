"""Combinations of options that cannot work, each refused with what to change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import pairwise
from typing import Any, get_type_hints

from engine.config import MAX_RESOLUTIONS, MIN_RESOLUTION, AugmentConfig, Config, ResolutionConfig
from engine.progressive import ProgressiveSchedule
from engine.values import Bounds, ConfigError, parse_duration, parse_target


def validate(config: Config) -> None:
    """Check every value and how they go together.

    Raises:
        ConfigError: the first thing found that cannot work; the message names the option and says what to change.
    """
    for problem in _problems(config):
        raise ConfigError(problem)


def check_shares(config: Config, num_train: int, world: int) -> None:
    """Refuse batches that leave a process without images where batch norm is over those of all.

    Such a process would have to make images up, and the statistics would be of these too.

    Args:
        config: with every ``auto`` resolved.
        num_train: training images.
        world: processes.

    Raises:
        ConfigError: SyncBN would meet such a batch.
    """
    if not config.model.sync_bn:
        return
    needs = f"--sync-bn needs an image for each of {world} processes in every batch"
    for stage in ProgressiveSchedule.from_config(config).stages:
        if stage.batch_size < world:
            raise ConfigError(f"{needs}, got a batch of {stage.batch_size}: raise --batch-size to {world} at least")
        last = num_train % stage.batch_size
        if 0 < last < world and not config.loader.drop_last:
            raise ConfigError(
                f"{needs}, and {num_train} images in batches of {stage.batch_size} leave {last} for the last: "
                "add --drop-last"
            )


def _problems(config: Config) -> Iterator[str]:
    for group in fields(config):
        yield from _out_of_bounds(getattr(config, group.name))
    yield from _data_problems(config)
    yield from _resolution_problems(config)
    yield from _augment_problems(config)
    yield from _training_problems(config)
    yield from _run_problems(config)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _out_of_bounds(group: Any) -> Iterator[str]:
    for name, annotation in get_type_hints(type(group), include_extras=True).items():
        value = getattr(group, name)
        for bounds in getattr(annotation, "__metadata__", ()):
            if isinstance(bounds, Bounds) and value is not None and not isinstance(value, str):
                for number in value if isinstance(value, tuple) else (value,):
                    if number not in bounds:
                        yield f"{_flag(name)} must be {bounds}, got {number}"


def _data_problems(config: Config) -> Iterator[str]:
    data = config.data
    if data.image_root is not None and data.csv is None:
        yield "--image-root is for --csv: name the CSV file too, or give the folder as DATA"
    if config.loader.loader != "roi":
        packing = config.loader.pack in ("shrink", "keep")
        for option in [f"--pack {config.loader.pack}"] * packing + ["--renditions"] * bool(config.loader.renditions):
            yield f"{option} is for the loader that packs: add --loader roi"
        if config.loader.roi_resample == "device":
            yield f"--roi-resample device is for --loader roi, not {config.loader.loader}: change one of them"


def _resolution_problems(config: Config) -> Iterator[str]:
    group = config.resolution
    sizes, batches = group.resolutions, group.batch_sizes
    if len(sizes) > MAX_RESOLUTIONS:
        yield (
            f"--resolutions has {len(sizes)} sizes, at most {MAX_RESOLUTIONS} are allowed, because every size is tuned "
            f"and compiled for on its own; {_commas(_thinned(sizes))} would do"
        )
    if any(low >= high for low, high in pairwise(sizes)):
        yield f"--resolutions must rise; write {_commas(sorted(set(sizes)))}"
    if 0 != group.val_resolution < MIN_RESOLUTION:
        yield f"--val-resolution must be 0 (the largest size) or at least {MIN_RESOLUTION}, got {group.val_resolution}"
    if isinstance(batches, tuple) and len(batches) != len(sizes):
        yield (
            f"--batch-sizes names {len(batches)} sizes of batches for {len(sizes)} --resolutions; "
            "give one for each, or auto"
        )
    if group.resolution_schedule == "metric" and len(sizes) == 1:
        yield "--resolution-schedule metric needs several sizes to step through: give --resolutions two or more"
    yield from _start_problems(group, "stage_starts", "stages")
    yield from _start_problems(group, "latest_starts", "metric")
    smallest_batch = min(batches, default=1) if isinstance(batches, tuple) else config.optimizer.batch_size
    if config.optimizer.grad_accum_steps > smallest_batch:
        yield (
            f"--grad-accum-steps {config.optimizer.grad_accum_steps} cannot split a batch of {smallest_batch}: "
            f"at most {smallest_batch}, or a larger --batch-size"
        )


def _start_problems(group: ResolutionConfig, name: str, schedule: str) -> Iterator[str]:
    starts: tuple[float, ...] = getattr(group, name)
    if not starts:
        return
    flag, count = _flag(name), len(group.resolutions)
    actual = group.resolution_schedule
    if actual != schedule and (actual, schedule) != ("auto", "stages"):
        yield f"{flag} is for --resolution-schedule {schedule}, not {actual}: leave one of them out"
    if count == 0:
        yield f"{flag} needs --resolutions: name the sizes that start there"
    elif len(starts) != count or starts[0] != 0:
        example = _commas(f"{index / count:.3g}" for index in range(count))
        yield f"{flag} must have {count} numbers beginning with 0, one for each size, for example {example}"
    elif any(low >= high for low, high in pairwise(starts)):
        yield f"{flag} must rise, got {_commas(starts)}"


def _augment_problems(config: Config) -> Iterator[str]:
    augment = config.augment
    for name in ("scale", "ratio"):
        pair = getattr(augment, name)
        if pair is not None and pair[0] > pair[1]:
            yield f"--{name} must be two rising numbers; write {pair[1]:g},{pair[0]:g}"
        if pair is not None and augment.crop not in (None, "random-resized"):
            yield f"--{name} is for --crop random-resized, not {augment.crop}: leave one of them out"
    if augment.trivial_augment and augment.rand_augment is not None and all(augment.rand_augment):
        yield "--rand-augment and --trivial-augment do the same work: choose one"
    if augment.transforms is not None:
        for option in replaced_by_transforms(augment):
            yield f"{option} and --transforms both say how images vary: put it into the list, or leave --transforms out"


def replaced_by_transforms(augment: AugmentConfig) -> list[str]:
    """Return the options given that a transform list takes the place of."""
    usual = AugmentConfig()
    kept = ("transforms", "reorder", "mixup", "cutmix")  # mixing works on batches
    given = (one.name for one in fields(augment) if getattr(augment, one.name) != getattr(usual, one.name))
    return [_flag(name) for name in given if name not in kept]


def _training_problems(config: Config) -> Iterator[str]:
    model, optimizer, loss = config.model, config.optimizer, config.loss
    if model.pretrained and model.weights is not None:
        yield "--pretrained and --weights both say where to start from: choose one"
    if model.sync_bn and not _on_cuda(config.run.device):
        yield "SyncBN exists on CUDA only: leave out --sync-bn, or train on a GPU"
    if not isinstance(optimizer.warmup_epochs, str) and optimizer.warmup_epochs >= optimizer.epochs:
        yield (
            f"--warmup-epochs {optimizer.warmup_epochs:g} leaves nothing of --epochs {optimizer.epochs}: "
            f"it must be below {optimizer.epochs}"
        )
    if loss.balanced_sampling and loss.class_weights != "none":
        yield "--balanced-sampling and --class-weights correct the same imbalance, together twice: choose one"


def _on_cuda(device: str) -> bool:
    if device == "cpu":
        return False
    import torch  # takes seconds, which only those who ask for SyncBN wait for

    return torch.cuda.is_available()


def _run_problems(config: Config) -> Iterator[str]:
    run = config.run
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", run.device):
        yield f"--device must be auto, cpu, cuda or cuda:N, got {run.device!r}"
    if re.search(r"[/\\\0]", run.name):
        yield f"--name becomes part of a folder's name and cannot hold a slash, got {run.name!r}; see --output"
    if run.plan and run.resume is not None:
        yield "--plan shows a run before it starts: leave out --resume"
    for name, read in (("save_every", parse_duration), ("time_limit", parse_duration), ("target", parse_target)):
        try:
            if text := getattr(run, name):
                read(text)
        except ConfigError as error:
            yield f"{_flag(name)} {error}"


def _thinned(sizes: tuple[int, ...]) -> list[int]:
    """Return as many of the sizes as are allowed, evenly, with the smallest and the largest."""
    last = len(sizes) - 1
    return [sizes[round(index * last / (MAX_RESOLUTIONS - 1))] for index in range(MAX_RESOLUTIONS)]


def _commas(values: Iterable[object]) -> str:
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
