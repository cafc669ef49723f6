"""The engine's training step on a GPU: number formats and layouts against float32 on a CPU, waits, and compilations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from bench.gpu_process import Job, Reporter, UnavailableError
from engine.distributed import Process, process
from engine.learner import Learner, LossOptions, StepOptions
from engine.precision import Precision
from loaders.plan import BatchPlan, View
from loaders.transfer import DeviceBatch

_NUM_CLASSES = 10
_STEPS = 12
_LEARNING_RATE = 0.1
_LOSS_SCALE = 256.0


@dataclass(frozen=True)
class Format:
    """A number format and layout, and how far its losses may be from float32's on a CPU, relative to them."""

    name: str
    precision: Precision
    channels_last: bool
    tolerance: float


_FLOAT32 = Precision(None, False, "")
_FORMATS = (
    Format("float32, planar", _FLOAT32, False, 1e-3),
    Format("float32, channels_last", _FLOAT32, True, 1e-3),
    Format("bfloat16, channels_last", Precision(torch.bfloat16, False, ""), True, 1e-2),
    Format("float16 with a scaled loss, channels_last", Precision(torch.float16, True, ""), True, 1e-2),
)


def run(job: Job, report: Reporter) -> None:
    """Check losses, waits and compilations."""
    for form in _FORMATS:
        if not (job.is_shadow and form.precision.use_scaler):  # float16 trains on GPUs alone
            report.attempt(f"training in {form.name}", partial(_losses_agree, form, job, report))
    report.attempt("steps without waits", partial(_no_waits, job, report))
    report.attempt("a compiled step", partial(_compilations, job, report), needs=0 if job.is_shadow else 20)


def _losses_agree(form: Format, job: Job, report: Reporter) -> None:
    reference = _losses("cpu", _FORMATS[0])
    allow_tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        losses = _losses(job.device, form)
    finally:
        torch.backends.cudnn.allow_tf32 = allow_tf32
    error = float(np.abs(losses / reference - 1).max())
    report.check(
        f"training in {form.name} follows float32 on a CPU",
        error <= form.tolerance,
        f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {_STEPS} steps, at most {error:.1e} away",
    )


def _losses(device: str, form: Format) -> np.ndarray:
    """Train a small model on one batch; return the loss of each step."""
    with process(device) as this:
        learner = _learner(this, form)
        if form.precision.use_scaler:  # a scale that overflows at first would leave out steps
            learner.scaler = torch.amp.GradScaler(this.device.type, init_scale=_LOSS_SCALE)
        batch = _batch(32, 32, this.device, form)
        losses = []
        for number in range(_STEPS):
            learner.reset_sums()
            learner.step(batch, len(batch), True, 1.0, number + 1)
            losses.append(float(learner.sums[0]) / len(batch))
    return np.array(losses)


def _no_waits(job: Job, report: Reporter) -> None:
    if job.is_shadow:
        raise UnavailableError("a CPU has nothing to wait for")
    with process(job.device) as this:
        form = _FORMATS[2]
        learner = _learner(this, form)
        batch = _batch(32, 32, this.device, form)
        learner.step(batch, len(batch), True, 1.0, 1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for number in range(2, 5):
                learner.step(batch, len(batch), True, 1.0, number)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    report.check("a training step does not wait for the device", True, "3 steps, each wait would be an error")


def _compilations(job: Job, report: Reporter) -> None:
    """Warm up for a ladder of sizes, then go up and down it."""
    ladder = (16, 24) if job.is_shadow else (128, 160, 224)
    form = _FORMATS[0] if job.is_shadow else _FORMATS[2]
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    # In the shadow all runs but the code generator, which takes a CPU longer than there is time.
    compile_ = partial(torch.compile, backend="eager") if job.is_shadow else torch.compile
    with process(job.device) as this, patch.object(torch, "compile", compile_):
        learner = _learner(this, form, compiled=len(ladder))
        before = counters["unique_graphs"]
        for resolution in reversed(ladder):
            learner.warm_up(8, resolution)
        warmed_up = counters["unique_graphs"] - before
        for number, resolution in enumerate((*ladder, *reversed(ladder), *ladder)):
            batch = _batch(8, resolution, this.device, form)
            learner.step(batch, len(batch), True, 1.0, number + 1)
        recompiled = counters["unique_graphs"] - before - warmed_up
    report.check(
        "a compiled step is compiled once for each size, in its warm-up",
        warmed_up == len(ladder) and recompiled == 0,
        f"{warmed_up} compilations in the warm-up of {len(ladder)} sizes, {recompiled} in training through them",
    )


def _learner(this: Process, form: Format, compiled: int = 0) -> Learner:
    """Return a small model and what trains it; ``compiled`` is for how many sizes, 0 for not at all."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, _NUM_CLASSES),
    ).to(this.device)
    if form.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), _LEARNING_RATE, 0.9)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    options = StepOptions(compile=bool(compiled), channels_last=form.channels_last)
    return Learner(model, optimizer, this, form.precision, LossOptions(), options, max_shapes=max(1, compiled))


def _batch(count: int, resolution: int, device: torch.device, form: Format) -> DeviceBatch:
    generator = torch.Generator().manual_seed(resolution)
    labels = torch.arange(count) % _NUM_CLASSES
    colors = torch.randn(_NUM_CLASSES, 3, 1, 1, generator=generator)  # there is something to learn
    images = torch.randn(count, 3, resolution, resolution, generator=generator) + colors[labels]
    layout = torch.channels_last if form.channels_last else torch.contiguous_format
    indices = np.arange(count)
    plan = BatchPlan(
        0,
        0,
        0,
        View(resolution, count),
        indices,
        indices.astype(np.uint64),
        np.tile([0.0, 0.0, 1.0, 1.0], (count, 1)),
        np.zeros(count, np.bool_),
    )
    return DeviceBatch(
        images.to(device, form.precision.dtype or torch.float32).contiguous(memory_format=layout),
        labels.to(device),
        None,
        None,
        torch.from_numpy(indices),
        plan,
        0.0,
    )
