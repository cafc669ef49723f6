"""The Triton kernel that flips, erases, mixes, normalizes, casts and changes the layout of a batch in one pass.

One thread makes a few neighboring elements of the result, in the order of its memory, so that it is written at full
width; what it reads, one byte for each element or two, is found by arithmetic. An option that is None is compiled
out. Sizes are plain arguments: a kernel is compiled once for each set of options, types and layouts, and once more for
images whose memory does not begin at multiples of 16, but not for each resolution.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.device import Color
from kernels.fused import CutMix, Erase, Mixup, fill_color, scale_and_offset

_BLOCK = 1024  # elements of a program


@triton.jit
def _by_channel(channel: tl.tensor, color: tl.tuple) -> tl.tensor:
    return tl.where(channel == 0, color[0], tl.where(channel == 1, color[1], color[2]))


@triton.jit
def _inside(
    x: tl.tensor, y: tl.tensor, left: tl.tensor, top: tl.tensor, right: tl.tensor, bottom: tl.tensor
) -> tl.tensor:
    x, y = x.to(tl.int32), y.to(tl.int32)
    return (x >= left) & (y >= top) & (x < right) & (y < bottom)


@triton.jit
def _load(
    images: tl.tensor,
    flips: tl.tensor | None,
    boxes: tl.tensor | None,
    sample: tl.tensor,
    element: tl.tensor,
    channel: tl.tensor,
    pixel: tl.tensor,
    wanted: tl.tensor,
    fill: tl.tuple,
    width: tl.tensor,
    plane: tl.tensor,
    planar: tl.constexpr,
    result_planar: tl.constexpr,
) -> tl.tensor:
    """Return the bytes of one sample, flipped and erased, where they are wanted, as float32."""
    x = pixel % width
    if boxes is not None:
        box = boxes + 4 * sample
        erased = _inside(x, pixel // width, tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3))
        wanted = wanted & (erased == 0)
    if flips is not None:
        pixel = tl.where(tl.load(flips + sample) != 0, pixel - x + (width - 1 - x), pixel)
    if flips is None and planar == result_planar:
        place = element  # as a whole, so that the compiler sees neighbors
    else:
        place = channel * plane + pixel if planar else pixel * 3 + channel
    values = tl.load(images + sample * (3 * plane) + place, mask=wanted, other=0).to(tl.float32)
    if boxes is not None:
        values = tl.where(erased, _by_channel(channel, fill), values)
    return values


@triton.jit(
    do_not_specialize=["left", "top", "right", "bottom", "width", "blocks"],
    do_not_specialize_on_alignment=["flips", "boxes", "partners", "weights"],
)
def _fuse(
    images: tl.tensor,
    result: tl.tensor,
    flips: tl.tensor | None,
    boxes: tl.tensor | None,
    partners: tl.tensor | None,
    weights: tl.tensor | None,
    left: tl.tensor | None,
    top: tl.tensor | None,
    right: tl.tensor | None,
    bottom: tl.tensor | None,
    scale: tl.tuple,
    offset: tl.tuple,
    fill: tl.tuple,
    width: tl.tensor,
    plane: tl.tensor,
    blocks: tl.tensor,
    block: tl.constexpr,
    planar: tl.constexpr,
    result_planar: tl.constexpr,
) -> None:
    """Make ``block`` elements of one sample; ``plane`` is the pixels of a sample, ``blocks`` the programs for it."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)  # times a sample's elements it may pass 2**31
    element = (program % blocks * block + tl.arange(0, block)).to(tl.uint32)  # unsigned is quicker to divide
    width, plane = width.to(tl.uint32), tl.cast(plane, tl.uint32)  # one pixel is a constant, without `to`
    wanted = element < 3 * plane
    channel = element // plane if result_planar else element % 3
    pixel = element % plane if result_planar else element // 3

    own, other = wanted, wanted
    if left is not None:
        inside = _inside(pixel % width, pixel // width, left, top, right, bottom)
        own, other = wanted & (inside == 0), wanted & inside
    values = _load(
        images, flips, boxes, sample, element, channel, pixel, own, fill, width, plane, planar, result_planar
    )
    if partners is not None:
        partner = tl.load(partners + sample)
        others = _load(
            images, flips, boxes, partner, element, channel, pixel, other, fill, width, plane, planar, result_planar
        )
        if left is not None:
            values = tl.where(inside, others, values)
        else:
            values = others + tl.load(weights + sample) * (values - others)
    values = values * _by_channel(channel, scale) + _by_channel(channel, offset)
    tl.store(result + sample * (3 * plane) + element, values.to(result.dtype.element_ty), mask=wanted)


def fuse_by_triton(
    out: torch.Tensor,
    images: torch.Tensor,
    mean: Color,
    std: Color,
    flip: torch.Tensor | None,
    erase: Erase | None,
    mix: Mixup | CutMix | None,
) -> None:
    """Do what `kernels.fused.fuse_into` does, for dense images, in one kernel."""
    count, _, height, width = images.shape
    blocks = triton.cdiv(3 * height * width, _BLOCK)
    if not out.numel():
        return
    scale, offset = scale_and_offset(mean, std)
    with torch.cuda.device_of(images):
        _fuse[(count * blocks,)](
            images,
            out,
            flip.view(torch.uint8).contiguous() if flip is not None else None,
            erase.boxes.contiguous() if erase else None,
            mix.partners.contiguous() if mix else None,
            mix.weight.contiguous() if isinstance(mix, Mixup) else None,
            *(mix.box if isinstance(mix, CutMix) else (None, None, None, None)),
            scale,
            offset,
            fill_color(erase, mean),
            width,
            height * width,
            blocks,
            _BLOCK,
            planar=images.is_contiguous(),
            result_planar=not out.is_contiguous(memory_format=torch.channels_last),
        )
