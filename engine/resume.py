"""Resuming: which run to go on with, and which options may differ from those it began with."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from engine.checkpoint import CheckpointError, Position, load_checkpoint
from engine.config import Config, ConfigError
from engine.rundir import is_running
from engine.toml import from_toml
from engine.transforms import COPY, TransformList
from loaders.dataset import ImageData

logger = logging.getLogger("headrace")

LAST = "last.pt"

# Changing these leaves every later batch and weight as it would have been.
EXACT = {
    "data.data", "data.csv", "data.image_root", "data.path_column", "data.label_column", "data.split_column",
    "data.cache", "augment.transforms", "loader.num_workers", "loader.prefetch", "loader.max_bad_fraction",
    "loader.on_bad_sample", "resolution.final_resolutions", "run.output", "run.name", "run.resume", "run.save_every",
    "run.time_limit", "run.target", "run.early_stop", "run.log_every", "run.plan", "model.weights", "model.pretrained",
}  # fmt: skip

# Changing these is sensible, and changes results: by rounding, or because the schedule is stretched.
WARNED = {
    "loader.loader": "other loaders decode to slightly different pixels",
    "loader.roi_resample": "the device resizes to slightly different pixels",
    "optimizer.epochs": "the schedules of learning rate and size now stretch over the new number of epochs",
    "run.threads": "sums are rounded in another order",
    "run.device": "another device rounds differently",
    "model.amp": "numbers are rounded differently",
    "model.channels_last": "sums may be rounded in another order",
    "model.compile": "compiled code rounds differently",
    "optimizer.grad_accum_steps": "batch-norm statistics are taken over parts of another size",
    "resolution.val_resolution": "accuracies before and after the change cannot be compared",
    "resolution.crop_fraction": "accuracies before and after the change cannot be compared",
    "run.tta": "accuracies before and after the change cannot be compared",
    "run.deterministic": "other algorithms round differently",
}


@dataclass(frozen=True)
class Resumed:
    """A run to go on with.

    Attributes:
        path: its folder.
        config: the configuration to go on with, every ``auto`` as it was resolved when the run began.
        position: where it stood.
        state: the rest of its checkpoint.
    """

    path: Path
    config: Config
    position: Position
    state: dict[str, Any]


def identity(data: ImageData) -> dict[str, Any]:
    """Return what a checkpoint must agree with to be resumed on these data, beside the transforms."""
    return {"train": data.train.fingerprint, "val": data.val.fingerprint if len(data.val) else ""}


def find(config: Config, data: ImageData, transforms: TransformList | None = None) -> Resumed | None:
    """Return the run that ``--resume`` asks for.

    ``auto`` takes the newest unfinished run below ``--output`` whose options, data and transforms agree, or None; why a
    run was passed over is logged. A path must agree.

    Raises:
        CheckpointError: the run at the path cannot be resumed with these options, data and transforms.
    """
    wanted = config.run.resume
    if wanted is None:
        return None
    if wanted != "auto":
        path = Path(wanted).expanduser()
        path = path if path.is_file() else path / LAST
        if is_running(path.parent):
            raise CheckpointError(f"{path.parent} is being trained by another process")
        return _open(path, config, data, transforms)
    checkpoints = sorted(config.run.output.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in checkpoints:
        if _finished(path.parent):
            continue
        try:
            if not is_running(path.parent):
                return _open(path, config, data, transforms, strict=True)
            logger.info("Not resumed: %s is being trained by another process", path.parent)
        except (CheckpointError, ConfigError) as error:
            logger.info("Not resumed: %s", error)
    logger.info("No unfinished run with these options and data in %s; a new one begins", config.run.output)
    return None


def _finished(run: Path) -> bool:
    """Say whether a run ended, without reading its checkpoint."""
    try:
        return bool(json.loads((run / "result.json").read_text())["finished"])
    except (OSError, ValueError, KeyError):
        return False


def _open(
    path: Path, config: Config, data: ImageData, transforms: TransformList | None, strict: bool = False
) -> Resumed:
    """Read a checkpoint and check that it agrees; with ``strict``, no change that alters results is allowed."""
    position, state = load_checkpoint(path)
    saved = from_toml(state["config"], Config(), str(path))
    merged, warnings, refusals = reconcile(config, saved)
    before = dict(state["identity"])
    refusals += _changes(before.pop("transforms", None), transforms, path.parent)
    if before != identity(data):
        refusals.append("the images, labels or files' sizes differ from those it was trained on")
    if strict:
        refusals += warnings
    if position.finished and merged.optimizer.epochs <= position.epoch and _finished(path.parent):
        refusals.append(f"it is finished; give it more --epochs than {position.epoch} to go on")
    if refusals:
        raise CheckpointError(f"{path} cannot be resumed: {'; '.join(refusals)}")
    for warning in warnings:
        logger.warning("Resuming with a change: %s", warning)
    return Resumed(path.parent, merged, position, state)


def _changes(before: dict[str, Any] | None, transforms: TransformList | None, run: Path) -> Iterator[str]:
    """Yield why a run cannot go on with these transforms.

    Args:
        before: what its checkpoint holds of those it began with.
    """
    copy = run / COPY
    if before is None and transforms is not None:
        yield f"it was begun without a transform list: leave {transforms.source} out"
    elif before is not None and transforms is None:
        how = f"give --transforms {copy}" if copy.exists() else "hand the same ones to engine.train.train again"
        yield f"it was begun with a transform list: {how}"
    elif before is not None and transforms is not None and before["program"] != transforms.fingerprint:
        kept = f": its own is kept in {copy}" if copy.exists() else ""
        yield f"it was begun with another transform list than {transforms.source}{kept}"


def reconcile(requested: Config, saved: Config) -> tuple[Config, list[str], list[str]]:
    """Merge what is asked for now with what a run began with.

    An option left to its default ``auto`` takes the value that the run resolved it to.

    Returns:
        The merged configuration, warnings, and refusals, each naming an option with both values.
    """
    groups: dict[str, Any] = {}
    warnings: list[str] = []
    refusals: list[str] = []
    for group in fields(Config):
        now, before = getattr(requested, group.name), getattr(saved, group.name)
        changes: dict[str, Any] = {}
        for field in fields(now):
            name = f"{group.name}.{field.name}"
            new, old = getattr(now, field.name), getattr(before, field.name)
            if new == old:
                continue
            if _left_open(name, new):
                changes[field.name] = old
            elif name in WARNED:
                warnings.append(f"{_flag(field.name)} {old} -> {new}: {WARNED[name]}")
            elif name not in EXACT:
                refusals.append(f"{_flag(field.name)} was {_show(old)}, now {_show(new)}")
        groups[group.name] = replace(now, **changes)
    return Config(**groups), warnings, refusals


def _left_open(name: str, value: Any) -> bool:
    """Say whether an option has the default that is resolved when a run begins."""
    if name in ("resolution.val_resolution", "run.threads", "loader.pack_side"):
        return value == 0
    if name == "resolution.resolutions":
        return value == ()
    return value == "auto" and name not in ("resolution.batch_sizes", "run.resume")


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "not set"
    return "not set" if value in (None, "") else str(value)
