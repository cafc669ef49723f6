"""One optimizer step: forward, loss, backward, update.

Nothing in it waits for the device, but for two options: ``skip_nonfinite`` reads each loss, and SyncBN, in PyTorch's
implementation, reads in each layer how many values every rank has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import Process
from engine.ema import create_ema
from engine.freezing import train_mode
from engine.losses import classification_loss
from engine.model import needs_two_images
from engine.optim import set_learning_rate
from engine.precision import Precision, autocast, grad_scaler
from loaders.transfer import DeviceBatch


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class LossOptions:
    """What classification_loss is called with, beside the batch."""

    smoothing: float = 0.0
    class_weights: Tensor | None = None
    focal_gamma: float = 0.0


@dataclass(frozen=True)
class StepOptions:
    """How a step is taken.

    Attributes:
        grad_accum_steps: parts that a batch is split into.
        clip_grad: largest norm of the gradient, 0 for no limit.
        skip_nonfinite: leave out an update whose loss is not finite. It costs a wait for the device at each step.
        compile: compile the model for full batches; partial ones run without.
        channels_last: the layout that batches come in.
    """

    grad_accum_steps: int = 1
    clip_grad: float = 0.0
    skip_nonfinite: bool = False
    compile: bool = False
    channels_last: bool = True


class Learner:
    """A model with what trains it.

    Sums over the steps since ``reset_sums`` stand in ``sums``, float64 on the device: loss, correct answers, samples,
    and skipped updates of this rank.

    Args:
        model: the bare model, on its device.
        optimizer: over the model's parameters.
        process: this process within the job.
        max_shapes: different input shapes that compilation has to expect.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        process: Process,
        precision: Precision,
        loss: LossOptions,
        options: StepOptions,
        ema_decay: float | None = None,
        max_shapes: int = 1,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.process = process
        self.precision = precision
        self.loss = loss
        self.options = options
        self.device = process.device
        self.scaler = grad_scaler(precision, self.device)
        self.ema = None if ema_decay is None else create_ema(model, ema_decay)
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.first_nonfinite = torch.full((), -1, dtype=torch.int64, device=self.device)
        self._needs_two = needs_two_images(model, process.world)
        self._forward = self._distributed(model)
        self._compiled = _compile(self._forward, max_shapes) if options.compile else None

    def _distributed(self, model: nn.Module) -> nn.Module:
        if self.process.world == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    @property
    def evaluated(self) -> nn.Module:
        """The weights to evaluate and keep: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def reset_sums(self) -> None:
        self.sums.zero_()

    def step(self, batch: DeviceBatch, count: int, full: bool, lr_factor: float, number: int) -> None:
        """Train on one batch.

        Args:
            batch: this rank's share; it may be empty.
            count: samples of the batch over all ranks: the gradient is the mean over them.
            full: the share has its regular size, so that a compiled model may be used.
            lr_factor: what each parameter group's initial learning rate is multiplied by.
            number: of this step in the run, from 1.
        """
        set_learning_rate(self.optimizer, lr_factor)
        self.optimizer.zero_grad(set_to_none=True)
        buffers = [b.clone() for b in self.model.buffers()] if self.options.skip_nonfinite else []
        loss, correct = self._backward(batch, count, full)
        finite = torch.isfinite(loss)
        if self.options.skip_nonfinite and self._any_rank(~finite):
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self.sums[3] += self.process.is_main  # all ranks skip together
            return
        self.sums[0] += loss
        self.sums[1] += correct
        self.sums[2] += len(batch)
        unseen = (self.first_nonfinite < 0) & ~finite
        self.first_nonfinite.copy_(torch.where(unseen, number, self.first_nonfinite))
        if self.options.clip_grad:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, number)

    def _backward(self, batch: DeviceBatch, count: int, full: bool) -> tuple[Tensor, Tensor]:
        """Add up the gradient of the batch's mean loss; return this rank's sums of losses and of correct answers."""
        parts = _split(batch, part_sizes(len(batch), self._num_parts(count)))
        forward = self._compiled if full and self._compiled is not None else self._forward
        total = torch.zeros((), device=self.device)
        total_correct = torch.zeros((), device=self.device)
        for number, part in enumerate(parts):
            with self._synchronized(last=number == len(parts) - 1):
                losses, correct = self._losses(forward, part)
                loss = losses.sum()
                # Distributed training averages gradients over the ranks; the mean here is over all samples.
                self.scaler.scale(loss * (self.process.world / count)).backward()
            total += loss.detach()
            total_correct += correct
        return total, total_correct

    def _num_parts(self, count: int) -> int:
        return num_parts(count, self.process.world, self.options.grad_accum_steps)

    def _logits(self, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return the logits of a part, whose images may have company: the first rows are theirs."""
        if len(images) == 0:  # a rank without samples still takes part in the gradient's exchange
            images = images.new_zeros(2, *images.shape[1:])
        elif len(images) == 1 and self._needs_two:  # the mean over twins is that of one
            images = images.repeat(2, 1, 1, 1)
        with autocast(self.precision, self.device):
            return forward(images)

    def _losses(self, forward: Callable[[Tensor], Tensor], part: DeviceBatch) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample and the number of correct answers."""
        count = len(part)
        logits = self._logits(forward, part.images)
        if count == 0:
            return logits.float().flatten() * 0, torch.zeros((), device=self.device)
        logits = logits[:count]
        losses = classification_loss(
            logits,
            part.labels,
            other_labels=part.other_labels,
            label_shares=part.weight,
            smoothing=self.loss.smoothing,
            weights=self.loss.class_weights,
            focal_gamma=self.loss.focal_gamma,
        )
        with torch.no_grad():
            correct = (logits.argmax(1) == part.labels).sum()
        return losses, correct

    def _synchronized(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Exchange gradients only with the last part of a batch."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._forward.no_sync()

    def _any_rank(self, flag: Tensor) -> bool:
        return bool(self.process.maximum(flag.float()).item())

    def warm_up(self, count: int, resolution: int) -> None:
        """Run one step of a size without a trace in weights, statistics or random numbers.

        It makes cuDNN choose its algorithms and compiles, for all parts of this rank's share, and shows whether the
        memory suffices. All ranks have to do it together.

        Args:
            count: samples of the batch over all ranks.
            resolution: side of the images, pixels.
        """
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            buffers = [buffer.clone() for buffer in self.model.buffers()]
            dtype = self.precision.dtype or torch.float32  # what the transfer stage delivers
            share = len(range(self.process.rank, count, self.process.world))
            images = torch.randn(share, 3, resolution, resolution, device=self.device, dtype=dtype)
            if self.options.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            train_mode(self.model)
            parts = images.split(part_sizes(share, self._num_parts(count)))
            for number, part in enumerate(parts):
                with self._synchronized(last=number == len(parts) - 1):
                    logits = self._logits(self._compiled or self._forward, part)
                    (logits.float().sum() * 0.0).backward()
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return model, optimizer, scaler and moving average."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "sums": self.sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where the loss was not scaled
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.sums.copy_(state["sums"])


def num_parts(count: int, world: int, parts: int) -> int:
    """Return into how many parts each rank splits its share of a batch.

    It is the same on all ranks, which have to take their forward passes together, and leaves no part of a share empty.

    Args:
        count: samples of the batch over all ranks.
        world: ranks.
        parts: wanted, at least 1.
    """
    return max(1, min(parts, count // world))


def part_sizes(share: int, parts: int) -> list[int]:
    """Return the sizes of a share's parts, which differ by one at most, larger ones first."""
    size, larger = divmod(share, parts)
    return [size + 1] * larger + [size] * (parts - larger)


def _split(batch: DeviceBatch, sizes: list[int]) -> list[DeviceBatch]:
    if len(sizes) == 1:
        return [batch]
    ends = list(accumulate(sizes))
    return [_part(batch, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def _part(batch: DeviceBatch, rows: slice) -> DeviceBatch:
    return replace(
        batch,
        images=batch.images[rows],
        labels=batch.labels[rows],
        other_labels=None if batch.other_labels is None else batch.other_labels[rows],
        weight=None if batch.weight is None else batch.weight[rows],
    )


def _compile(model: nn.Module, max_shapes: int) -> Callable[[Tensor], Tensor]:
    """Compile for a fixed shape each time: with dynamic shapes, convolutions recompile for each size all the same.

    Past PyTorch's recompile limit a model runs uncompiled without a word, so the limit is raised to what the schedule
    needs (two sizes of parts for each shape, and some for how the passes of an accumulated gradient differ), and
    reaching it is an error.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * max_shapes + 4)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(model, dynamic=False)
