"""The training loop: batches in, steps taken, and where the time went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tqdm import tqdm

from engine.checkpoint import Position
from engine.freezing import train_mode
from engine.learner import Learner
from loaders.augment import Augmentation
from loaders.contract import Batch
from loaders.plan import EpochPlan
from loaders.transfer import DeviceBatch, Transfer


@dataclass(frozen=True)
class Epoch:
    """What an epoch is trained with.

    Attributes:
        plan: its batches, from where it is to start.
        augmentation: what is done to them on the device.
        lr_factor: from the number of a batch to the factor of the learning rate.
    """

    plan: EpochPlan
    augmentation: Augmentation
    lr_factor: Callable[[int], float]


def train_epoch(
    learner: Learner,
    load: Callable[[EpochPlan], Iterator[Batch]],
    transfer: Transfer,
    epoch: Epoch,
    position: Position,
    after_step: Callable[[DeviceBatch], bool],
    progress: tqdm | None = None,
) -> bool:
    """Train on the epoch's batches, moving ``position`` on with each.

    Args:
        load: ``Loader.run``, or what yields the same batches.
        after_step: called after each step; it returns True to leave the epoch early.
        progress: a bar to move on with each batch.

    Returns:
        Whether the epoch came to its end.
    """
    plan = epoch.plan
    train_mode(learner.model)
    for batch in transfer.batches(load(plan), augmentation=epoch.augmentation):
        count = plan.global_count(batch.plan.step)
        learner.step(
            batch,
            count,
            full=count == plan.view.batch_size,
            lr_factor=epoch.lr_factor(batch.plan.step),
            number=position.steps + 1,
        )
        position.next_batch = batch.plan.step + 1
        position.samples_seen += count
        position.steps += 1
        if progress is not None:
            progress.update()
        if after_step(batch):
            return False
    return True
