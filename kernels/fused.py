"""From batches of bytes to what a model takes, in one pass: flip, erase, mix, normalize, cast and change the layout.

On CUDA that is one Triton kernel (kernels.fused_triton). Elsewhere, and where Triton cannot be used, it is its twin in
plain tensor operations, here. What only has to be normalized on a CPU is left to a compiled loop (kernels.normalize).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from kernels.device import Color
from kernels.normalize import can_normalize, normalize_into

_CPU_PIECE = 2**19  # values; as float32 they fit the caches of one core


@dataclass(frozen=True, eq=False)
class Erase:
    """A rectangle of each image in one color.

    Attributes:
        boxes: int32 (N, 4): left, top, right and bottom in pixels, right and bottom excluded; empty for images that
            stay whole.
        fill: red, green and blue from 0 to 255; None is the mean of the normalization, which becomes zero.
    """

    boxes: torch.Tensor
    fill: Color | None = None


@dataclass(frozen=True, eq=False)
class Mixup:
    """A blend of each image with another of the batch.

    Attributes:
        partners: int64 (N,), 0 to N - 1.
        weight: float32 (N,), the image's own share, 0 to 1.
    """

    partners: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True, eq=False)
class CutMix:
    """One rectangle, for the whole batch: there, each image shows another of the batch.

    Attributes:
        partners: int64 (N,), 0 to N - 1.
        box: left, top, right and bottom in pixels, inside the images, right and bottom excluded.
    """

    partners: torch.Tensor
    box: tuple[int, int, int, int]


def fuse(
    images: torch.Tensor,
    mean: Color,
    std: Color,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    flip: torch.Tensor | None = None,
    erase: Erase | None = None,
    mix: Mixup | CutMix | None = None,
) -> torch.Tensor:
    """Flip, erase and mix images of bytes, in this order, and return ``(images / 255 - mean) / std``.

    A partner is mixed in as it is after its own flip and erasing. All is computed in float32 and rounded once to
    ``dtype``. Nothing waits for the device.

    Args:
        images: uint8 (N, 3, H, W), planar or channels_last; not changed. N may be 0.
        mean, std: of each channel, for pixel values from 0 to 1; every std positive.
        dtype: floating-point type of the result.
        memory_format: ``torch.channels_last`` or ``torch.contiguous_format``.
        flip: bool (N,), on the images' device: which images are mirrored, left to right.
        erase, mix: tensors on the images' device.

    Returns:
        A new tensor (N, 3, H, W) of ``dtype`` on the images' device.

    Raises:
        ValueError: the images are not uint8 (N, 3, H, W).
    """
    out = torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=memory_format)
    fuse_into(out, images, mean, std, flip, erase, mix)
    return out


def fuse_into(
    out: torch.Tensor,
    images: torch.Tensor,
    mean: Color,
    std: Color,
    flip: torch.Tensor | None = None,
    erase: Erase | None = None,
    mix: Mixup | CutMix | None = None,
) -> None:
    """Do what `fuse` does, into memory that is there: of the images' shape, floating-point, planar or channels_last."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if not images.is_contiguous(memory_format=torch.channels_last):
        images = images.contiguous()
    if flip is None and erase is None and mix is None and can_normalize(images, out):
        normalize_into(images, *scale_and_offset(mean, std), out)
        return
    run = fuse_by_torch
    if images.device.type == "cuda" and triton_is_usable():
        from kernels.fused_triton import fuse_by_triton as run
    run(out, images, mean, std, flip, erase, mix)


@lru_cache(maxsize=1)
def triton_is_usable() -> bool:
    """Tell whether Triton can compile and start kernels here; warn where it cannot."""
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # builds Triton's bridge to CUDA, which takes a C compiler
    except Exception as error:  # a missing package, compiler or header: Triton has no type of its own for it
        warnings.warn(f"Triton cannot be used, so batches are prepared in several passes: {error}", stacklevel=3)
        return False
    return True


def scale_and_offset(mean: Color, std: Color) -> tuple[Color, Color]:
    """Return what the bytes of each channel are multiplied by, and what is added then, to normalize them."""
    deviation, center = np.asarray(std, np.float64), np.asarray(mean, np.float64)
    return tuple((1 / (255 * deviation)).tolist()), tuple((-center / deviation).tolist())


def fill_color(erase: Erase | None, mean: Color) -> Color:
    """Return the color of erased rectangles, 0 to 255."""
    red, green, blue = erase.fill if erase and erase.fill else (255 * value for value in mean)
    return float(red), float(green), float(blue)


def fuse_by_torch(
    out: torch.Tensor,
    images: torch.Tensor,
    mean: Color,
    std: Color,
    flip: torch.Tensor | None,
    erase: Erase | None,
    mix: Mixup | CutMix | None,
) -> None:
    """Do what `fuse_into` does, for dense images, in plain tensor operations.

    Pixels are interleaved on the way, so that a row of an image is one contiguous multiply-add with the channels'
    factors repeated along it. A CPU takes some images at a time all the way, as many as its caches hold; choices are
    made by interpolation and by bits, which are vectorized there, unlike ``torch.where``.
    """
    count, _, height, width = images.shape
    device = images.device
    scale, offset = (_row(color, width, device) for color in scale_and_offset(mean, std))
    is_planar = images.is_contiguous()
    stored = images if is_planar else images.permute(0, 2, 3, 1)  # dense, which is quick to select from

    def load(samples: slice | torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Write images, flipped and erased, to float32 ``values``; return these as rows of interleaved pixels."""
        pixels = stored[samples] if isinstance(samples, slice) else stored.index_select(0, samples)
        pixels = pixels if is_planar else pixels.permute(0, 3, 1, 2)
        if flip is not None:
            bits = flip[samples, None, None, None].to(torch.uint8) * 255
            pixels = pixels ^ ((pixels ^ pixels.flip(3)) & bits)
        _copy(pixels, values)
        rows = values.permute(0, 2, 3, 1).view(len(values), height, 3 * width)
        if erase is not None:
            fill = _row(fill_color(erase, mean), width, device)
            rows.lerp_(fill, _inside(erase.boxes[samples], height, width))
        return rows

    in_place = out.dtype == torch.float32 and out.is_contiguous(memory_format=torch.channels_last)
    piece = max(1, count if device.type == "cuda" else min(count, _CPU_PIECE // (3 * height * width)))
    scratch = _interleaved_scratch(images[: 0 if in_place else piece])
    partner_scratch = _interleaved_scratch(images[: 0 if mix is None else piece])
    for first in range(0, count, piece):
        samples = slice(first, first + piece)
        target = out[samples]
        values = target if in_place else scratch[: len(target)]
        rows = load(samples, values)
        if mix is not None:
            partners = partner_scratch[: len(target)]
            partner_rows = load(mix.partners[samples], partners)
            if isinstance(mix, Mixup):
                torch.lerp(partner_rows, rows, mix.weight[samples, None, None], out=rows)
            else:
                left, top, right, bottom = mix.box
                values[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        torch.addcmul(offset, rows, scale, out=rows)
        if not in_place:
            _copy(values, target)


def _interleaved_scratch(images: torch.Tensor) -> torch.Tensor:
    return torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)


@lru_cache(maxsize=64)
def _row(color: Color, width: int, device: torch.device) -> torch.Tensor:
    """Return a row of interleaved pixels of one color: float32 (3 * width,)."""
    with torch.inference_mode(False):  # what is kept serves training and evaluation
        return torch.tensor(color).repeat(width).to(device)


def _inside(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return where boxes, (n, 4), cover rows of interleaved pixels: float32 (n, height, 3 * width), 0 or 1."""
    left, top, right, bottom = boxes[:, :, None, None].unbind(dim=1)
    x = torch.arange(3 * width, device=boxes.device).div(3, rounding_mode="floor")
    y = torch.arange(height, device=boxes.device)[:, None]
    return ((x >= left) & (x < right)).to(torch.float32) * ((y >= top) & (y < bottom))


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy images (n, 3, H, W): channel by channel where the layouts differ, which takes a third of the time."""
    if source.stride() == target.stride():
        target.copy_(source)
    else:
        for source_channel, target_channel in zip(source.unbind(dim=1), target.unbind(dim=1), strict=True):
            target_channel.copy_(source_channel)
