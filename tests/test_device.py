"""Normalization: the textbook formula, whatever the layout, type and size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from kernels.device import normalize, upload

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_images(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(0))


def expected(images: torch.Tensor) -> torch.Tensor:
    return reference.normalize(reference.to_dtype(images, torch.float32, scale=True), list(MEAN), list(STD))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4, 16, 16), (1, 7, 5), (3, 1, 1), (0, 8, 8), (2, 33, 48)])
def test_normalizes_as_the_formula(
    layout: torch.memory_format, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    images = random_images(*shape)
    normalized = normalize(images.contiguous(memory_format=layout), MEAN, STD, dtype)
    assert normalized.dtype == dtype
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(normalized.float(), expected(images), atol=tolerance, rtol=tolerance)


def test_planar_result_on_demand() -> None:
    images = random_images(2, 9, 6)
    normalized = normalize(images, MEAN, STD, memory_format=torch.contiguous_format)
    assert normalized.is_contiguous()
    torch.testing.assert_close(normalized, expected(images))


def test_half_types_are_rounded_once_from_float32() -> None:
    images = random_images(2, 8, 8)
    torch.testing.assert_close(
        normalize(images, MEAN, STD, torch.bfloat16), normalize(images, MEAN, STD).bfloat16(), rtol=0, atol=0
    )


def test_input_stays_and_result_is_new_memory() -> None:
    images = random_images(2, 8, 8)
    before = images.clone()
    normalize(images, MEAN, STD).zero_()
    assert torch.equal(images, before)


def test_first_use_in_inference_mode_does_not_spoil_training() -> None:
    images = random_images(2, 11, 13)
    with torch.inference_mode():
        normalize(images, (0.1, 0.2, 0.3), STD)
    trained = normalize(images, (0.1, 0.2, 0.3), STD)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (trained * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)])
def test_other_than_rgb_bytes_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, 3, H, W\)"):
        normalize(images, MEAN, STD)


def test_upload_shares_memory_on_a_cpu() -> None:
    array = np.arange(5)
    assert upload(array, torch.device("cpu")).data_ptr() == array.ctypes.data


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_gives_what_the_cpu_gives(layout: torch.memory_format, dtype: torch.dtype) -> None:
    images = random_images(5, 32, 24).contiguous(memory_format=layout)
    on_device = images.cuda()
    normalize(on_device, MEAN, STD, dtype)
    torch.cuda.set_sync_debug_mode("error")
    try:
        normalized = normalize(on_device, MEAN, STD, dtype)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(normalized.cpu(), normalize(images, MEAN, STD, dtype), atol=tolerance, rtol=tolerance)
