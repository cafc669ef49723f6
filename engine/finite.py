"""Whether every loss was finite, and on which samples it was not."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from engine.distributed import Process
from engine.learner import Learner, NonFiniteLossError


class FiniteCheck:
    """Remembers the samples of the last steps until somebody looks whether their losses were finite.

    Args:
        paths: of the training samples.
        num_steps: at most so many steps are taken between two looks.
    """

    def __init__(self, learner: Learner, process: Process, paths: Sequence[str], num_steps: int) -> None:
        self._learner = learner
        self._process = process
        self._paths = paths
        self._recent: deque[tuple[int, torch.Tensor]] = deque(maxlen=num_steps + 1)

    def remember(self, step: int, indices: torch.Tensor) -> None:
        """Note the samples that a step was taken on."""
        self._recent.append((step, indices))

    def check(self, epoch: int) -> None:
        """Read from the device whether all losses were finite. All ranks take part.

        Raises:
            NonFiniteLossError: one was not, on any rank; the message names its samples.
        """
        nonfinite = self._learner.first_nonfinite >= 0
        if not self._process.maximum(nonfinite.float()).item():
            return
        own_step = int(self._learner.first_nonfinite.item())
        indices: list[int] = next((found.tolist() for number, found in self._recent if number == own_step), [])
        found = self._process.gather((own_step, [self._paths[index] for index in indices]))
        step = min(number for number, _ in found if number >= 0)
        paths = [path for number, names in found if number == step for path in names]
        names = ", ".join(paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
        raise NonFiniteLossError(
            f"the loss at step {step} (epoch {epoch + 1}) is not finite. Its samples: {names}. "
            f"Lower --lr, use --clip-grad 1 or --amp off, or leave such steps out with --on-nonfinite skip; "
            f"the last checkpoint is from before"
        )
