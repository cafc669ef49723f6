"""``--plan``: what a run would do and cost, measured on a few steps of each size."""

from __future__ import annotations

import time
from functools import cache

import torch

from engine.config import Config
from engine.distributed import Process
from engine.plan_table import plan_rows, plan_text
from engine.progressive import ProgressiveSchedule
from engine.setup import create_learner
from engine.transform_costs import transform_costs
from engine.transforms import Arrangement
from loaders.dataset import ImageData

_STEPS = 3


def print_plan(config: Config, data: ImageData, process: Process, arrangement: Arrangement | None = None) -> None:
    """Print the table of stages, with the time and memory that a few training steps of each take here.

    Args:
        arrangement: of the user's own transforms, of which it is shown first what they cost here.
    """
    if arrangement is not None and process.is_main:
        print(arrangement.text(transform_costs(arrangement.done(), data.train)), end="\n\n")
    learner, _ = create_learner(config, data, process)

    @cache
    def measure(resolution: int, batch_size: int) -> tuple[float, float]:
        learner.warm_up(batch_size, resolution)
        if process.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(process.device)
        started = time.perf_counter()
        for _ in range(_STEPS):
            learner.warm_up(batch_size, resolution)
        memory = torch.cuda.max_memory_allocated(process.device) if process.device.type == "cuda" else 0
        return (time.perf_counter() - started) / _STEPS, float(memory)

    rows = plan_rows(
        ProgressiveSchedule.from_config(config),
        config.optimizer.epochs,
        len(data.train),
        drop_last=config.loader.drop_last,
        seconds_per_batch=lambda resolution, batch_size: measure(resolution, batch_size)[0],
        memory=(lambda r, b: measure(r, b)[1]) if process.device.type == "cuda" else None,
    )
    if process.is_main:
        print(plan_text(rows, at_latest=config.resolution.resolution_schedule == "metric"))
