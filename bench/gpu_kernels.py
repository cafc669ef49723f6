"""Triton's kernels against their twins in plain tensor operations: all layouts, types and options.

Where there is no GPU the kernels are interpreted, on small images and some of the combinations.
"""

from __future__ import annotations

import itertools
import random

import numpy as np
import torch

from bench.gpu_process import Job, Reporter, UnavailableError
from bench.peers import MEAN, STD
from kernels.device_regions import Regions, regions_fit, resample_by_torch
from kernels.fused import CutMix, Erase, Mixup, fuse_by_torch, triton_is_usable

LAYOUTS = (torch.contiguous_format, torch.channels_last)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ERASE = (None, "mean", "color")
_MIX = (None, "mixup", "cutmix")
_SIZES = ((5, 37, 50), (16, 128, 128))
_SHADOW_SIZES = ((2, 7, 9),)
_SHADOW_SHARE = 9  # every so many of the combinations
_TOLERANCE = 2e-6  # a device may multiply and add in one rounding


def run_fused(job: Job, report: Reporter) -> None:
    """Check the pass from bytes to a model's input.

    Raises:
        UnavailableError: Triton cannot be used.
    """
    _require_triton(job)
    from kernels.fused_triton import fuse_by_triton

    combinations = list(itertools.product(LAYOUTS, LAYOUTS, _DTYPES, (False, True), _ERASE, _MIX))
    random.Random(0).shuffle(combinations)  # should time run out, what was tried is still of all kinds
    chosen = combinations[::_SHADOW_SHARE] if job.is_shadow else combinations
    worst = wrong = tried = 0.0
    for stored, delivered, dtype, flips, erases, mixes in chosen:
        if report.remaining <= 0:
            break
        for count, height, width in _SHADOW_SIZES if job.is_shadow else _SIZES:
            generator = torch.Generator().manual_seed(0)
            images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
            images = images.contiguous(memory_format=stored)
            flip = torch.rand(count, generator=generator) < 0.5 if flips else None
            erase, mix = _erase(erases, count, height, width), _mix(mixes, count, height, width, generator)
            expected = torch.empty(images.shape, memory_format=delivered)
            fuse_by_torch(expected, images, MEAN, STD, flip, erase, mix)
            if not job.is_shadow:
                images, flip, erase, mix = _on_device(images, flip, erase, mix)
            by_kernel = torch.empty(images.shape, dtype=dtype, device=job.device, memory_format=delivered)
            fuse_by_triton(by_kernel, images, MEAN, STD, flip, erase, mix)
            # Rounded once: less than one step of the type away.
            step = torch.finfo(dtype).eps * expected.abs() if dtype != torch.float32 else 0.0
            error = (by_kernel.float().cpu() - expected).abs() - step
            worst = max(worst, float(error.max()))
            wrong += float(error.max()) > _TOLERANCE
            tried += 1
    report.check(
        "flip, erase, mix and normalize: the Triton kernel gives what tensor operations give",
        wrong == 0 and tried > 0,
        f"{len(combinations)} combinations of layouts, types and options, {tried:.0f} cases tried, {wrong:.0f} differ; "
        f"largest difference beyond rounding {max(worst, 0.0):.1e}",
    )


def run_regions(job: Job, report: Reporter) -> None:
    """Check the resampling of JPEG planes.

    Raises:
        UnavailableError: Triton cannot be used.
    """
    _require_triton(job)
    from kernels.device_regions_triton import resample_by_triton

    count, resolutions = (2, (13,)) if job.is_shadow else (24, (31, 64, 128, 224))
    largest = differing = total = 0
    for resolution, layout, has_chroma in itertools.product(resolutions, LAYOUTS, (True, False)):
        regions = _random_regions(count, has_chroma, seed=resolution, largest=2 if job.is_shadow else 12)
        assert regions_fit(regions).all()
        expected = resample_by_torch(regions, resolution, layout).int()
        with np.errstate(invalid="ignore"):  # the interpreter also divides where the result is not taken
            result = resample_by_triton(regions.to(job.device), resolution, layout).cpu().int()
        difference = (result - expected).abs()
        largest = max(largest, int(difference.max()))
        differing += int(difference.sum())
        total += difference.numel()
    report.check(
        "JPEG planes: the Triton kernel resamples as tensor operations do",
        largest <= 1 and differing <= 0.01 * total,
        f"largest difference {largest} of 255, in {differing / total:.2%} of {total} values, where rounding decides",
    )


def run_once_compiled(job: Job, report: Reporter) -> None:
    """Check that a new size neither compiles a kernel nor waits for the device.

    Raises:
        UnavailableError: there is no GPU, or Triton cannot be used.
    """
    if job.is_shadow:
        raise UnavailableError("the interpreter compiles nothing")
    _require_triton(job)
    from kernels.device_regions_triton import _resample, resample_by_triton
    from kernels.fused_triton import _fuse, fuse_by_triton

    def compiled() -> int:
        return sum(len(caches[0]) for kernel in (_fuse, _resample) for caches in kernel.device_caches.values())

    regions = _random_regions(4, True, seed=0, largest=12).to("cuda")
    batches = [
        torch.zeros((8, 3, side, side), dtype=torch.uint8, device="cuda").contiguous(memory_format=torch.channels_last)
        for side in (128, 160, 192, 224)
    ]
    outs = [torch.empty(images.shape, dtype=torch.bfloat16, device="cuda") for images in batches]

    def convert(number: int) -> None:
        fuse_by_triton(outs[number], batches[number], MEAN, STD, None, None, None)
        resample_by_triton(regions, batches[number].shape[2], torch.channels_last)

    convert(0)
    before = compiled()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(len(batches)):
            convert(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    report.check(
        "a new size neither compiles a kernel nor waits for the device",
        compiled() == before,
        f"{compiled() - before} kernels compiled for three more sizes",
    )


def _require_triton(job: Job) -> None:
    import triton  # noqa: F401  # its absence leaves this out

    if not job.is_shadow and not triton_is_usable():
        raise UnavailableError("Triton cannot compile here")


def _erase(kind: str | None, count: int, height: int, width: int) -> Erase | None:
    if kind is None:
        return None
    boxes = [(n % 3, n % 2, width - n % 4, height // 2 + n % 3) for n in range(count)]
    return Erase(torch.tensor(boxes, dtype=torch.int32), None if kind == "mean" else (3.5, 255.0, 17.0))


def _mix(kind: str | None, count: int, height: int, width: int, generator: torch.Generator) -> Mixup | CutMix | None:
    partners = torch.randperm(count, generator=generator)
    if kind == "mixup":
        return Mixup(partners, torch.rand(count, generator=generator))
    return CutMix(partners, (1, 2, width - 2, height // 2)) if kind == "cutmix" else None


def _on_device(
    images: torch.Tensor, flip: torch.Tensor | None, erase: Erase | None, mix: Mixup | CutMix | None
) -> tuple[torch.Tensor, torch.Tensor | None, Erase | None, Mixup | CutMix | None]:
    if erase is not None:
        erase = Erase(erase.boxes.cuda(), erase.fill)
    if isinstance(mix, Mixup):
        mix = Mixup(mix.partners.cuda(), mix.weight.cuda())
    elif mix is not None:
        mix = CutMix(mix.partners.cuda(), mix.box)
    return images.cuda(), None if flip is None else flip.cuda(), erase, mix


def _random_regions(count: int, has_chroma: bool, seed: int, largest: int) -> Regions:
    """Return regions that decoding could have made, full of noise.

    Args:
        count: of samples.
        has_chroma: color, its planes of half the size; otherwise gray.
        seed: of everything drawn.
        largest: tiles along the longest side.
    """
    draw = np.random.default_rng(seed)
    positions: list[int] = []
    planes, windows = np.zeros((count, 3, 8), np.int64), np.tile([0.0, 0.0, 1.0, 1.0], (count, 3, 1))
    size = 0
    for sample in range(count):
        rows, columns = draw.integers(1, largest + 1, 2).tolist()
        per_strip = int(draw.integers(columns, columns + 3))
        order = draw.permutation(rows)  # the rows of tiles lie in any order
        first = len(positions)
        positions += (order * per_strip).tolist()
        share = draw.uniform(0.3, 1, 2)
        begin = draw.uniform(0, 1 - share)
        for component, block in enumerate((16, 8, 8) if has_chroma else (16,)):
            width, height = columns * block, rows * block
            stride = per_strip * block
            planes[sample, component] = size, stride, block, block, per_strip, first, width, height
            windows[sample, component] = [*(begin * (width, height)), *(share * (width, height))]
            size += stride * rows * block
    return Regions(
        torch.from_numpy(draw.integers(0, 256, size, np.uint8)),
        torch.tensor(positions),
        torch.from_numpy(planes),
        torch.from_numpy(windows),
        torch.from_numpy(draw.random((count, 3)) < 0.5),
    )
