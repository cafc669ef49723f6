"""Whether everything that runs on a GPU gives what its twin on a CPU gives."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import torch

from bench import gpu_kernels
from bench.gpu_process import Job, Reporter
from bench.peers import MEAN, STD
from loaders.contract import Batch
from loaders.plan import BatchPlan, View
from loaders.transfer import Transfer

_ROUNDING = 2e-6  # a device may multiply and add in one rounding


def run(job: Job, report: Reporter) -> None:
    """Check all of it; the fused kernel last, whose many combinations take what time is left."""
    report.attempt("transfer", partial(_transfer, job, report))
    report.attempt("the Triton kernel for regions", partial(gpu_kernels.run_regions, job, report))
    report.attempt("kernels compiled once", partial(gpu_kernels.run_once_compiled, job, report))

    def training() -> None:
        from bench import gpu_steps  # needs timm

        gpu_steps.run(job, report)

    def decoding() -> None:
        from bench import gpu_decoding  # needs what opens data sets

        gpu_decoding.run(job, report)

    report.attempt("training steps", training)
    report.attempt("decoding", decoding)
    report.attempt("the fused Triton kernel", partial(gpu_kernels.run_fused, job, report))


def _transfer(job: Job, report: Reporter) -> None:
    """Send batches of changing sizes through the ring, all of them kept, and compare with what a CPU makes of them."""
    sizes, count = ((16, 24), 4) if job.is_shadow else ((96, 224, 128), 64)
    for pinned, layout in itertools.product((False,) if job.is_shadow else (False, True), gpu_kernels.LAYOUTS):
        sent = [_random_batch(number, count, sizes[number % len(sizes)], layout, pinned) for number in range(12)]
        there = list(Transfer(torch.device(job.device), MEAN, STD).batches(sent))
        here = list(Transfer(torch.device("cpu"), MEAN, STD, channels_last=False).batches(sent))
        worst = max(float((a.images.cpu() - b.images).abs().max()) for a, b in zip(there, here, strict=True))
        same = all(torch.equal(a.labels.cpu(), b.labels) for a, b in zip(there, here, strict=True))
        name = "channels_last" if layout == torch.channels_last else "planar"
        report.check(
            f"batches reach the device whole, {name}, from {'page-locked' if pinned else 'ordinary'} memory",
            same and worst < _ROUNDING,
            f"{len(there)} batches of {len(sizes)} sizes, all kept; largest difference {worst:.1e}",
        )


def _random_batch(number: int, count: int, size: int, layout: torch.memory_format, pinned: bool) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    images = images.contiguous(memory_format=layout)
    indices = np.arange(count)
    keys = indices.astype(np.uint64)
    windows = np.tile([0.0, 0.0, 1.0, 1.0], (count, 1))
    plan = BatchPlan(number, 0, 0, View(size, count), indices, keys, windows, np.zeros(count, np.bool_))
    return Batch(
        images.pin_memory() if pinned else images,
        torch.from_numpy(indices) + number,
        torch.from_numpy(indices),
        keys,
        plan,
    )
