"""Training with the user's own transform list: read, put in order, and split between the loader and the device."""

from __future__ import annotations

import hashlib
import logging
import runpy
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engine.config import MIN_RESOLUTION, AugmentConfig, Config, ConfigError
from engine.distributed import Process
from engine.setup import Normalization
from engine.validation import replaced_by_transforms
from loaders.augment import Augmentation
from loaders.dataset import ImageDataset
from loaders.transforms import Plan, Program, explain, machine_costs, plan, read_compose
from loaders.transforms.device import DeviceOperation
from loaders.transforms.engine_split import EngineSplit, describe, split_by_mode
from loaders.transforms.explain import Measured
from loaders.transforms.legality import Swap
from loaders.transforms.planner import TYPICAL_SIZE
from loaders.transforms.program import Untyped
from loaders.transforms.steps import Size
from loaders.transforms.types import Point

logger = logging.getLogger("headrace")

NAME = "transforms"  # what a file of transforms has to define
COPY = "transforms.py"  # the file, in the run's folder
BACKEND = "torchvision"  # whose costs are compared: what the list would run on as it is
_NOTHING = Program(())
_PATIENCE = 1.0  # seconds of measuring costs after which it is said


@dataclass(frozen=True)
class TransformList:
    """A user's transform list.

    Attributes:
        source: where it comes from, for messages.
        text: the file that defines it; empty where it was handed over.
    """

    program: Program
    source: str
    text: str = ""

    @property
    def fingerprint(self) -> str:
        """A short hash of the operations, their options and their order as written; functions count by their name."""
        told = [one.name if isinstance(one, Untyped) else repr(one) for one in self.program.operations]
        return hashlib.sha256("|".join(told).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Arrangement:
    """How a transform list is trained with.

    Attributes:
        plan: its order.
        split: what the loader does, and what the device.
        augmentation: the split's, with the mixing that was asked for.
    """

    transforms: TransformList
    plan: Plan
    split: EngineSplit
    augmentation: Augmentation

    @property
    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint: a run that goes on keeps its order, whatever is measured by then."""
        return {"program": self.transforms.fingerprint, "orders": [list(order) for order in self.plan.orders]}

    @property
    def normalization(self) -> Normalization | None:
        """The list's own; None where it neither converts nor normalizes."""
        if self.split.mean is None or self.split.std is None:
            return None
        return Normalization(self.split.mean, self.split.std)

    def done(self) -> Plan:
        """Return the order that loader and device keep to, which need not be the plan's, priced as the plan is."""
        program = self.plan.program
        orders = [
            tuple(number - segment.start for number in self.split.order if number in segment)
            for segment in program.segments()
        ]
        priced = plan(program, machine_costs(), self.plan.size, self.plan.backend, chosen=orders)
        moved = self.split.order != tuple(range(len(program)))
        return replace(priced, swap=max(self.plan.swap, self.split.swap) if moved else Swap.SAME)

    def text(self, measured: Measured | None = None) -> str:
        """Return in lines what was moved, what that saves, and who does what.

        Args:
            measured: on images, of the order as written and of what is done.
        """
        done = self.done()
        operations = done.operations
        batched = [one.number for one in self.augmentation.operations if isinstance(one, DeviceOperation)]
        points = zip(done.numbers, operations, strict=True)
        last = [number for number, one in points if one.point in (Point.TO_FLOAT, Point.NORMALIZE)]
        said = explain(done, machine_costs(), measured, on_device=[*batched, *last])
        return "\n".join([said, *describe(self.split)])


def read_transforms(config: AugmentConfig, given: Any = None) -> TransformList | None:
    """Read the transform list of ``--transforms``, or the one handed over; return None where there is none.

    Args:
        given: a torchvision Compose of either version, a list of transforms, or a Program.

    Raises:
        ConfigError: it cannot be read, or other options contradict it; the message names the file.
    """
    if given is None and config.transforms is None:
        return None
    if given is None:
        assert config.transforms is not None
        path = config.transforms.expanduser()
        source = f"--transforms {path}"
        given, text = _defined_by(path, source)
    else:
        source, text = "the transforms handed over", ""
        if config.transforms is not None:
            raise ConfigError(f"--transforms {config.transforms} is given, and transforms are handed over: choose one")
        for option in replaced_by_transforms(config):
            raise ConfigError(f"{option} says how images vary, and so do {source}: leave one of them out")
    try:
        program = given if isinstance(given, Program) else read_compose(given)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    return TransformList(program, source, text)


def _defined_by(path: Path, source: str) -> tuple[Any, str]:
    """Run a Python file; return what it defines as its transforms, and its text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{source} cannot be read: {reason}") from None
    folder = str(path.parent.absolute())
    sys.path.append(folder)  # what lies beside it can be imported, and hides nothing that is installed
    try:
        names = runpy.run_path(str(path))
    except SyntaxError as error:
        raise ConfigError(f"{source}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise ConfigError(f"{source}{where}: {type(error).__name__}: {error}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    if NAME not in names or isinstance(names[NAME], ModuleType):
        what = f"{NAME} is a module there" if NAME in names else f"it does not define {NAME}"
        raise ConfigError(f"{source}: {what}; assign your Compose to that name: {NAME} = v2.Compose([...])")
    return names[NAME], text


def arrange(
    transforms: TransformList,
    config: Config,
    train: ImageDataset,
    process: Process,
    state: dict[str, Any] | None = None,
) -> Arrangement:
    """Put a transform list in order and split it. Rank 0 chooses the order, by what it measures.

    Args:
        train: what will be trained on.
        state: of the run that is gone on with, whose order is kept.

    Raises:
        ConfigError: loaders and device cannot do it between them; the message names the operation.
    """
    options = config.augment
    planned: Plan | str = ""
    if process.is_main:
        chosen = [tuple(order) for order in state["orders"]] if state is not None else None
        try:
            costs, size = machine_costs(), _typical_size(train)
            with _said_if_it_takes_long():
                planned = plan(transforms.program, costs, size, BACKEND, options.reorder, chosen)
            planned = replace(planned, program=_NOTHING)  # functions of the user's cannot be sent
        except ValueError as error:
            planned = str(error)
    planned = process.broadcast(planned)
    try:
        if isinstance(planned, str):
            raise ValueError(planned)
        planned = replace(planned, program=transforms.program)
        split = split_by_mode(planned, options.reorder, train.common_size, "--reorder {}")
        if split.resolution < MIN_RESOLUTION:
            raise ValueError(f"images of {split.resolution} pixels are too small; at least {MIN_RESOLUTION} are needed")
    except ValueError as error:
        raise ConfigError(f"{transforms.source}: {error}") from error
    augmentation = replace(split.augmentation, mixup=options.mixup or 0.0, cutmix=options.cutmix or 0.0)
    return Arrangement(transforms, planned, split, augmentation)


def _typical_size(train: ImageDataset) -> Size:
    """Return (height, width) of an image in the middle of the set."""
    if not len(train):
        return TYPICAL_SIZE
    return round(float(np.median(train.heights))), round(float(np.median(train.widths)))


@contextmanager
def _said_if_it_takes_long() -> Iterator[None]:
    notice = threading.Timer(_PATIENCE, logger.info, ["Transforms: measuring what they cost on this machine, once"])
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


def log_arrangement(arrangement: Arrangement, config: Config, measured: Measured | None = None) -> None:
    """Say how a transform list is trained with; ``config`` is resolved, ``measured`` as for ``text``."""
    text = arrangement.text(measured).replace("\n", "\n  ")
    logger.info("Transforms: %s\n  %s", arrangement.transforms.source, text)
    sizes, own = config.resolution.resolutions, arrangement.split.resolution
    if sizes != (own,):
        logger.info(
            "Transforms: they make %d px; with --resolutions their crop is made at %s px instead",
            own, ", ".join(map(str, sizes)),
        )  # fmt: skip
    if config.resolution.regularization == "adaptive":
        logger.info("Transforms: --regularization adaptive scales dropout, mixup and CutMix, not these transforms")


def normalization_for(arrangement: Arrangement | None, of_model: Normalization, pretrained: bool) -> Normalization:
    """Return the normalization to train with, the transforms' own before the model's, and say which.

    Args:
        of_model: what the model's published weights were trained with.
        pretrained: they are what training starts from.
    """
    own = arrangement.normalization if arrangement is not None else None
    if arrangement is None or own is None:
        logger.info("Normalization: %s, by the model%s", of_model, ", as the transforms have none" * bool(arrangement))
        return of_model
    logger.info("Normalization: %s, by the transforms", own)
    if pretrained and own != of_model:
        logger.warning("The pretrained weights were trained with %s: training has to make up for it", of_model)
    return own
