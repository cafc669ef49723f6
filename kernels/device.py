"""Image batches on the device: uploading small arrays, and bytes to normalized floating-point images."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

Color = tuple[float, float, float]


def upload(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a small host array as a tensor on ``device`` without waiting for the device.

    On CUDA the array goes through page-locked memory and is copied in the order of the current stream; on a CPU the
    tensor shares the array's memory.
    """
    host = torch.as_tensor(array)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


@lru_cache(maxsize=64)
def _factors(mean: Color, std: Color, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 scale and offset for one row of interleaved pixels, shape (3 * width,) each."""
    deviation = np.tile(np.asarray(std, np.float64), width)
    center = np.tile(np.asarray(mean, np.float64), width)
    scale = (1 / (255 * deviation)).astype(np.float32)
    offset = (-center / deviation).astype(np.float32)
    with torch.inference_mode(False):  # what is kept serves training and evaluation
        return torch.from_numpy(scale).to(device), torch.from_numpy(offset).to(device)


def normalize(
    images: torch.Tensor,
    mean: Color,
    std: Color,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> torch.Tensor:
    """Return ``(images / 255 - mean) / std``, computed in float32 and rounded once to ``dtype``.

    Both layouts become rows of interleaved pixels while still bytes, and a row is one contiguous multiply-add with the
    channels' factors repeated along it. On CUDA that is one kernel that reads bytes and writes ``dtype``. On a CPU,
    where mixed types go through temporaries, it is a conversion and a multiply-add in place: of twelve ways tried, the
    fastest for interleaved input (64 images of 96 pixels on one core: 0.3 ms; per-channel factors broadcast over the
    image 1.8 ms, batch_norm 3.9 ms, a table of 256 values 13.8 ms) and at 224 pixels for planar input too.

    Args:
        images: uint8 (N, 3, H, W), dense, planar or channels_last; N may be 0.
        mean, std: of each channel, for pixel values from 0 to 1; every std positive.
        dtype: floating-point type of the result.
        memory_format: ``torch.channels_last`` or ``torch.contiguous_format``.

    Returns:
        A new tensor (N, 3, H, W) of ``dtype`` on the images' device.

    Raises:
        ValueError: the images are not uint8 (N, 3, H, W).
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    count, _, height, width = images.shape
    scale, offset = _factors(mean, std, width, images.device)
    rows = images.permute(0, 2, 3, 1).contiguous().view(count * height, width * 3)
    if images.device.type == "cuda":
        normalized = torch.empty(rows.shape, dtype=dtype, device=images.device)
        torch.addcmul(offset, rows, scale, out=normalized)
    else:
        normalized = rows.to(torch.float32)
        normalized = torch.addcmul(offset, normalized, scale, out=normalized).to(dtype)
    result = normalized.view(count, height, width, 3).permute(0, 3, 1, 2)
    return result if memory_format == torch.channels_last else result.contiguous(memory_format=memory_format)
