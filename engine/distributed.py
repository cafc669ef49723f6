"""Several processes, one job: what torchrun says about this one, and the few collectives the engine needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist

_LIMIT = timedelta(minutes=30)  # of waiting in an exchange within training
_LONG_LIMIT = timedelta(days=7)  # of waiting for work done once, such as packing a large data set


class DeviceError(ValueError):
    """A device that is not there."""


@dataclass(frozen=True)
class Process:
    """This process within the job.

    Attributes:
        rank: number in the job; rank 0 writes the files.
        world: processes in the job.
        local_rank: number on this machine.
        local_world: processes on this machine, which share its cores.
        device: where this process computes.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add a tensor over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """Take the largest of a tensor over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def largest(self, values: Sequence[float]) -> list[float]:
        """Return the largest of each number on any rank; waits for the device where there are several ranks."""
        if self.world == 1:
            return list(values)
        largest: list[float] = self.maximum(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()
        return largest

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in order of rank."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def broadcast_buffers(self, model: torch.nn.Module) -> None:
        """Give every rank rank 0's buffers: batch-norm statistics drift apart between forward passes."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def process(device: str) -> Iterator[Process]:
    """Join the job that torchrun describes in the environment, or be a job of one; leave it at the end.

    Args:
        device: ``auto`` (CUDA where there is one), ``cuda`` or ``cpu``.

    Raises:
        DeviceError: CUDA, or more of its devices than there are, is asked for.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"--device {device}: PyTorch sees no CUDA device here; use --device cpu or auto")
    where = torch.device(device)
    if where.type == "cuda":
        where = torch.device("cuda", local_rank if where.index is None else where.index)
        if where.index is not None and where.index >= torch.cuda.device_count():
            raise DeviceError(f"{where} is wanted, but there are {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(where)
    if world > 1:
        backend = "nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_LIMIT, device_id=where if where.type == "cuda" else None)
    try:
        yield Process(
            rank=int(os.environ.get("RANK", 0)),
            world=world,
            local_rank=local_rank,
            local_world=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
            device=where,
        )
    finally:
        if world > 1:
            dist.destroy_process_group()


@contextmanager
def long_barrier(world: int) -> Iterator[Callable[[], None]]:
    """Yield a barrier that waits as long as work takes that one process does for all, such as packing a data set.

    It has a group of gloo's on every device: NCCL's barrier knows no limit but its group's, and occupies the GPU.
    """
    if world == 1:
        yield lambda: None
        return
    group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_LONG_LIMIT))
    try:
        yield lambda: dist.monitored_barrier(group, timeout=_LONG_LIMIT)
    finally:
        dist.destroy_process_group(group)
