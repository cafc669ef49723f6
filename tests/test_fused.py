"""Flip, erase, mix and normalize in one pass: the twin against the textbook, the kernel against the twin."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import fused
from kernels.fused import CutMix, Erase, Mixup, fuse
from tests.without_gpu import compile_only, run_interpreted

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Case:
    """Arguments of `fuse`."""

    images: torch.Tensor
    dtype: torch.dtype
    memory_format: torch.memory_format
    flip: torch.Tensor | None
    erase: Erase | None
    mix: Mixup | CutMix | None

    def to(self, device: str) -> Case:
        flip, erase, mix = self.flip, self.erase, self.mix
        if flip is not None:
            flip = flip.to(device)
        if erase is not None:
            erase = Erase(erase.boxes.to(device), erase.fill)
        if isinstance(mix, Mixup):
            mix = Mixup(mix.partners.to(device), mix.weight.to(device))
        elif mix is not None:
            mix = CutMix(mix.partners.to(device), mix.box)
        return Case(self.images.to(device), self.dtype, self.memory_format, flip, erase, mix)

    def fused_by(self, run: Callable[..., None], dtype: torch.dtype) -> torch.Tensor:
        out = torch.empty(
            self.images.shape, dtype=dtype, device=self.images.device, memory_format=self.memory_format
        ).fill_(torch.nan)
        run(out, self.images, MEAN, STD, self.flip, self.erase, self.mix)
        return out

    def fused(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        options = (self.memory_format, self.flip, self.erase, self.mix)
        return fuse(self.images, MEAN, STD, dtype or self.dtype, *options)


def random_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(0, 4))
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))

    def edges(length: int) -> tuple[int, int]:
        low = draw(st.integers(0, length))
        return low, draw(st.integers(low, length))

    def boxes() -> torch.Tensor:
        table = [(*edges(width), *edges(height)) for _ in range(count)]
        return torch.tensor([(left, top, right, bottom) for left, right, top, bottom in table]).view(-1, 4).int()

    images = random_images(count, height, width, draw(st.integers(0, 99)))
    partners = torch.tensor(draw(st.permutations(range(count))), dtype=torch.int64)
    flips = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=torch.bool)
    weights = torch.tensor(draw(st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count)))
    (left, right), (top, bottom) = edges(width), edges(height)
    return Case(
        images.contiguous(memory_format=draw(st.sampled_from(LAYOUTS))),
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(LAYOUTS)),
        flips if draw(st.booleans()) else None,
        Erase(boxes(), draw(st.sampled_from([None, (0, 255, 17), (3.5, 0.0, 254.0)]))) if draw(st.booleans()) else None,
        draw(st.sampled_from([None, Mixup(partners, weights), CutMix(partners, (left, top, right, bottom))])),
    )


def composed(case: Case) -> torch.Tensor:
    """Return what separate steps give, in float64."""
    mean, std = (torch.tensor(color, dtype=torch.float64)[:, None, None] for color in (MEAN, STD))
    images = case.images.to(torch.float64) / 255
    if case.flip is not None:
        images = torch.where(case.flip[:, None, None, None], images.flip(3), images)
    if case.erase is not None:
        fill = mean if case.erase.fill is None else torch.tensor(case.erase.fill)[:, None, None] / 255
        for image, (left, top, right, bottom) in zip(images, case.erase.boxes.tolist(), strict=True):
            image[:, top:bottom, left:right] = fill
    images = (images - mean) / std
    if isinstance(case.mix, Mixup):
        images = torch.lerp(images[case.mix.partners], images, case.mix.weight[:, None, None, None].double())
    elif case.mix is not None:
        left, top, right, bottom = case.mix.box
        images[:, :, top:bottom, left:right] = images[case.mix.partners][:, :, top:bottom, left:right]
    return images


@settings(deadline=None, max_examples=300)
@given(case=cases())
def test_one_pass_gives_what_separate_steps_give(case: Case) -> None:
    before = case.images.clone()
    result = case.fused(torch.float32)
    assert result.is_contiguous(memory_format=case.memory_format)
    torch.testing.assert_close(result.double(), composed(case), atol=1e-6, rtol=0)
    assert torch.equal(case.fused(), result.to(case.dtype))  # rounded once
    assert torch.equal(case.images, before)


@settings(deadline=None, max_examples=100)
@given(case=cases())
def test_the_compiled_loop_gives_what_tensor_operations_give(case: Case) -> None:
    only_normalized = replace(case, flip=None, erase=None, mix=None)
    expected = only_normalized.fused_by(fused.fuse_by_torch, torch.float32)
    torch.testing.assert_close(only_normalized.fused(torch.float32), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_batches_are_the_same_in_pieces(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    images, generator = random_images(7, 20, 12), torch.Generator().manual_seed(0)
    partners = torch.randperm(7, generator=generator)
    boxes = torch.tensor([[2, 3, 9, 18]], dtype=torch.int32).expand(7, 4)
    flip = torch.rand(7, generator=generator) < 0.5
    for mix in (None, Mixup(partners, torch.rand(7, generator=generator)), CutMix(partners, (1, 2, 11, 13))):
        case = Case(images.contiguous(memory_format=layout), dtype, torch.channels_last, flip, Erase(boxes), mix)
        at_once = case.fused()
        for piece in (1, 2 * 720, 3 * 720):
            with monkeypatch.context() as patch:
                patch.setattr(fused, "_CPU_PIECE", piece)
                assert torch.equal(case.fused(), at_once)


def test_images_are_erased_with_the_mean() -> None:
    boxes = torch.tensor([[0, 0, 9, 6], [0, 0, 0, 0]], dtype=torch.int32)
    images = random_images(2, 6, 9)
    result = fuse(images, MEAN, STD, erase=Erase(boxes))
    torch.testing.assert_close(result[0], torch.zeros(3, 6, 9), atol=1e-6, rtol=0)
    torch.testing.assert_close(result[1], fuse(images, MEAN, STD)[1], atol=1e-6, rtol=0)


def test_views_with_gaps_are_taken_as_well() -> None:
    images = random_images(4, 9, 8)
    expected = fuse(images[:, :, 1:8:2, :5].contiguous(), MEAN, STD)
    assert torch.equal(fuse(images[:, :, 1:8:2, :5], MEAN, STD), expected)


def test_results_are_new_memory() -> None:
    images = random_images(2, 8, 8)
    before = images.clone()
    first = fuse(images, MEAN, STD).zero_()
    assert fuse(images, MEAN, STD).abs().sum() > 0
    assert not first.any()
    assert torch.equal(images, before)


def test_first_use_in_inference_mode_does_not_spoil_training() -> None:
    images = random_images(2, 11, 13)
    with torch.inference_mode():
        fuse(images, (0.1, 0.2, 0.3), STD)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (fuse(images, (0.1, 0.2, 0.3), STD) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)])
def test_other_than_rgb_bytes_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, 3, H, W\)"):
        fuse(images, MEAN, STD)


def test_without_triton_there_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton.runtime", None)
    fused.triton_is_usable.cache_clear()
    try:
        with pytest.warns(UserWarning, match="Triton cannot be used"):
            assert not fused.triton_is_usable()
    finally:
        fused.triton_is_usable.cache_clear()


def test_the_kernel_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    run_interpreted("interpreted_fused.py")


def test_the_kernel_compiles_for_cuda_once_for_all_usual_resolutions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("triton")
    from kernels import fused_triton

    compilations = compile_only(monkeypatch, tmp_path, fused_triton._fuse)

    def compiled(resolution: int, count: int, **options: Any) -> int:
        images = random_images(count, resolution, resolution)
        out = torch.empty(images.shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
        choices = [options.get(name) for name in ("flip", "erase", "mix")]
        fused_triton.fuse_by_triton(out, images, MEAN, STD, *choices)
        return compilations()

    assert [compiled(resolution, 2) for resolution in (32, 96, 100, 128, 224)] == [1] * 5
    assert compiled(32, 1) == 1
    partners, boxes = torch.arange(2), torch.zeros((2, 4), dtype=torch.int32)
    options = {"flip": torch.zeros(2, dtype=torch.bool), "erase": Erase(boxes)}
    assert compiled(32, 2, **options, mix=Mixup(partners, torch.zeros(2))) == 2
    assert compiled(32, 2, **{**options, "erase": Erase(boxes, (1, 16, 0))}, mix=Mixup(partners, torch.zeros(2))) == 2
    assert [compiled(64, 2, **options, mix=CutMix(partners, (0, 1, right, 16))) for right in (1, 8, 16)] == [3] * 3
    assert compiled(1, 2) == 4  # Triton takes the one pixel as a constant
    assert compiled(1, 2, **options, mix=CutMix(partners, (0, 0, 1, 1))) == 5


@pytest.mark.gpu
@settings(deadline=None, max_examples=300)
@given(case=cases())
def test_cuda_gives_what_the_twin_gives(case: Case) -> None:
    pytest.importorskip("triton")
    on_device = case.to("cuda")
    in_float32 = on_device.fused(torch.float32)
    assert in_float32.is_contiguous(memory_format=case.memory_format)
    torch.testing.assert_close(in_float32.cpu(), case.fused(torch.float32), atol=1e-6, rtol=0)
    assert torch.equal(on_device.fused(), in_float32.to(case.dtype))  # rounded once


@pytest.mark.gpu
@settings(deadline=None, max_examples=50)
@given(case=cases())
def test_the_twin_runs_on_cuda_too(case: Case) -> None:
    result = case.to("cuda").fused_by(fused.fuse_by_torch, torch.float32)
    torch.testing.assert_close(result.cpu(), case.fused(torch.float32), atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_new_resolution_neither_compiles_nor_waits(layout: torch.memory_format) -> None:
    pytest.importorskip("triton")
    from kernels.fused_triton import _fuse

    def compiled() -> int:
        return sum(len(caches[0]) for caches in _fuse.device_caches.values())

    batches = [random_images(4, side, side).contiguous(memory_format=layout).cuda() for side in (128, 160, 224)]
    partners, weight = torch.arange(4).flip(0).cuda(), torch.full((4,), 0.3).cuda()
    fuse(batches[0], MEAN, STD, torch.bfloat16, mix=Mixup(partners, weight))
    before = compiled()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images in batches:
            fuse(images, MEAN, STD, torch.bfloat16, mix=Mixup(partners, weight))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert compiled() == before


@pytest.mark.gpu
def test_large_batches_are_addressed_in_64_bits() -> None:
    pytest.importorskip("triton")
    images = torch.zeros((2900, 3, 512, 512), dtype=torch.uint8, device="cuda")  # more than 2**31 bytes
    images[-1] = 255
    result = fuse(images, MEAN, STD, torch.float16)
    assert torch.equal(result[-1], fuse(images[-1:], MEAN, STD, torch.float16)[0])
    assert torch.equal(result[0], result[-2])
