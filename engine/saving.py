"""What a run saves on its way: checkpoints to go on from, and the model to predict with."""

from __future__ import annotations

import time
from typing import Any

import torch

from engine.checkpoint import Position, rng_state, save_checkpoint, set_rng_state
from engine.config import Config
from engine.distributed import Process
from engine.learner import Learner
from engine.resume import Resumed
from engine.rundir import RunDirectory
from engine.saved_model import FILE_NAME, SavedModel, save_model
from engine.setup import Normalization, model_arguments
from engine.values import parse_duration
from loaders.bad_samples import BadSamples

BEST = "best.pt"


class Saver:
    """Saves a run's state and takes it up again. All ranks take part; the first one writes.

    Args:
        source: identity of the data as they were opened, before any packing.
        classes: names, in the order of the model's outputs.
        run: where to write; None on all ranks but the first.
    """

    def __init__(
        self,
        config: Config,
        source: dict[str, Any],
        classes: tuple[str, ...],
        process: Process,
        learner: Learner,
        normalization: Normalization,
        bad_samples: BadSamples,
        run: RunDirectory | None,
    ) -> None:
        self.config = config
        self.source = source
        self.classes = classes
        self.process = process
        self.learner = learner
        self.normalization = normalization
        self.bad_samples = bad_samples
        self.run = run
        self._seconds_between = parse_duration(config.run.save_every)
        self._rng_states: list[dict[str, torch.Tensor]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count from now when the next checkpoint is due."""
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint within the epoch."""
        return time.monotonic() - self._saved_at >= self._seconds_between

    def save(self, name: str, position: Position) -> None:
        """Write a checkpoint into the run's folder.

        Raises:
            CheckpointError: it cannot be written.
        """
        states = self.process.gather(rng_state(self.process.device))
        state = self.learner.state_dict() | {"sums": self.process.sum(self.learner.sums.clone())}
        self.restart_clock()
        if self.run is None:
            return
        save_checkpoint(
            self.run.file(name),
            position,
            config=self.config.to_toml(),
            identity=self.source,
            world=self.process.world,
            rng=states,
            bad_samples=self.bad_samples.state_dict(),
            **state,
        )

    def save_model(self) -> None:
        """Write the weights to keep, with all that prediction needs."""
        if self.run is None:
            return
        config = self.config
        metadata = SavedModel(
            config.model.model,
            self.classes,
            self.normalization.mean,
            self.normalization.std,
            config.resolution.val_resolution,
            config.resolution.crop_fraction,
            model_arguments(config),
        )
        save_model(self.run.file(FILE_NAME), self.learner.evaluated, metadata)

    def restore(self, resumed: Resumed) -> Position:
        """Give the learner the state of a checkpoint, all but the random numbers; return where the run stood."""
        self.learner.load_state_dict(resumed.state)
        if not self.process.is_main:
            self.learner.sums.zero_()  # rank 0 has the sums of all
        self._rng_states = resumed.state["rng"]
        resumed.position.finished = False
        return resumed.position

    def restore_rng(self) -> None:
        """Go on with the random numbers of the checkpoint, if one was restored: right before the first step."""
        if self.process.rank < len(self._rng_states):
            set_rng_state(self._rng_states[self.process.rank], self.process.device)
