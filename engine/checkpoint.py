"""Checkpoints: everything an exact resume needs, written so that the last one on disk is always whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from loaders.files import atomic_file

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written, or does not fit the run."""


@dataclass
class Position:
    """Where a run stands. Plain values, so that a checkpoint loads with ``weights_only``.

    Attributes:
        epoch: the epoch under way or, with ``next_batch`` 0, about to start.
        next_batch: the first batch not trained yet.
        samples_seen: samples trained since the start of the run, over all ranks.
        steps: optimizer steps since the start of the run.
        stage: index of the size stage of the epoch under way.
        history: epoch, stage and top-1 of each evaluation.
        best: the best top-1 so far; None before the first.
        finished: the run came to its end.
        seconds: time the run took so far, all its parts together.
        train_seconds, data_wait_seconds, augment_seconds, switch_seconds: of the epoch under way.
        start_seconds: of ``data_wait_seconds``, those in which the loader started: until its first batch came.
        search_seconds, search_wait_seconds, search_augment_seconds, search_samples: of the epoch under way, what went
            by until the number of workers was found; 0 where none was looked for.
    """

    epoch: int = 0
    next_batch: int = 0
    samples_seen: int = 0
    steps: int = 0
    stage: int = 0
    history: list[list[float]] = field(default_factory=list)
    best: float | None = None
    finished: bool = False
    seconds: float = 0.0
    train_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    augment_seconds: float = 0.0
    switch_seconds: float = 0.0
    start_seconds: float = 0.0
    search_seconds: float = 0.0
    search_wait_seconds: float = 0.0
    search_augment_seconds: float = 0.0
    search_samples: int = 0

    def end_search(self, samples: int) -> None:
        """Note that what the epoch has taken up to now, for so many samples, went by until workers were found."""
        self.search_seconds, self.search_wait_seconds = self.train_seconds, self.data_wait_seconds
        self.search_augment_seconds, self.search_samples = self.augment_seconds, samples

    def begin_epoch(self) -> None:
        """Go on to the next epoch, of which nothing is done."""
        self.epoch += 1
        self.next_batch = self.search_samples = 0
        self.train_seconds = self.data_wait_seconds = self.augment_seconds = self.switch_seconds = 0.0
        self.start_seconds = self.search_seconds = self.search_wait_seconds = self.search_augment_seconds = 0.0


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of torch's generators that a training step may draw from (dropout)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what ``rng_state`` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def save_checkpoint(path: Path, position: Position, **parts: Any) -> None:
    """Write a checkpoint atomically.

    Args:
        parts: state dicts and plain values; ``config`` (TOML text) and ``identity`` are expected among them.

    Raises:
        CheckpointError: it cannot be written, for want of space, say.
    """
    try:
        with atomic_file(path) as temporary:
            torch.save({"format": FORMAT, "position": asdict(position), **parts}, temporary)
    except (OSError, RuntimeError) as error:  # torch raises the latter when the disk is full
        raise CheckpointError(f"{path} could not be written: {error}. The one written before it is whole") from error


def load_checkpoint(path: Path) -> tuple[Position, dict[str, Any]]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except Exception as error:  # torch.load raises whatever a damaged file makes its parsers raise
        raise CheckpointError(f"{path} is damaged and cannot be resumed from: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of Headrace")
    return Position(**content.pop("position")), content
