"""Resampling of JPEG regions on the device: decoded planes cross the bus, and RGB is made there.

For hosts that are short of cores: the CPU only decodes; the gathering of tiles, the antialiased resampling of
kernels.planes and the conversion to RGB are one Triton kernel (kernels.device_regions_triton), or its twin in plain
tensor operations, here. The price is the bus, which carries what a crop's blocks hold instead of RGB at the size of the
output: `bus_bytes` says how much that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from kernels.fused import triton_is_usable

JFIF = (1.402, -0.344136, -0.714136, 1.772)
"""Red from Cr, green from Cb, green from Cr, blue from Cb: ITU-T T.871, section 7 (ITU-R BT.601, full range)."""

_TOLERANCE = 1e-3  # by how many samples a window may leave the image, as rounding makes it do
_LARGEST = 2**31 - 1  # of what the kernel counts in 32 bits


class Plane(IntEnum):
    """Columns of `Regions.planes`."""

    OFFSET = 0  # of the strip's first sample in the batch's
    STRIDE = 1  # bytes from row to row of the strip
    BLOCK_WIDTH = 2  # samples of this component in a tile (an MCU)
    BLOCK_HEIGHT = 3
    PER_STRIP = 4  # tiles in a row of the strip
    POSITIONS = 5  # where the region's rows of tiles begin in the batch's positions
    WIDTH = 6  # samples from the region's top left that are inside the image; 0 for chroma that is not there
    HEIGHT = 7


@dataclass(frozen=True, eq=False)
class Regions:
    """A batch of decoded regions, all on one device.

    The tiles of a region's row follow each other: the one in row r and column c is number ``q = positions[POSITIONS +
    r] + c`` of the strip and lies in its row ``q // PER_STRIP`` and column ``q % PER_STRIP`` of tiles.

    Attributes:
        samples: uint8 (bytes,), the strips of all components as they were decoded.
        positions: int64 (rows of tiles of all regions,).
        planes: int64 (N, 3, 8): of Y, Cb and Cr, what `Plane` names.
        windows: float64 (N, 3, 4): x, y, width and height of what is to be seen, in samples of each component from the
            region's top left; fractions allowed, inside the image and not empty. Where the width (height) is half that
            of Y's window, two pixels of a row (column) share a sample.
        turns: bool (N, 3): turn the result over its main diagonal; then reverse its rows (left to right); its columns.
    """

    samples: torch.Tensor
    positions: torch.Tensor
    planes: torch.Tensor
    windows: torch.Tensor
    turns: torch.Tensor

    def __len__(self) -> int:
        return len(self.planes)

    def to(self, device: torch.device | str) -> Regions:
        """Return the regions on a device; from page-locked memory without waiting for it."""
        tensors = (self.samples, self.positions, self.planes, self.windows, self.turns)
        return Regions(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def bus_bytes(regions: Regions, resolution: int) -> tuple[float, int]:
    """Return how many bytes of each image cross the bus: as regions, tables included, and as uint8 RGB."""
    tensors = (regions.samples, regions.positions, regions.planes, regions.windows, regions.turns)
    return sum(tensor.nbytes for tensor in tensors) / max(1, len(regions)), 3 * resolution**2


def regions_fit(regions: Regions) -> np.ndarray:
    """Tell which samples' tiles lie within the strips, and their windows within the image: bool (N,).

    To be asked on the host before regions go to the device, where nothing is checked.
    """
    planes, windows = regions.planes.numpy(), regions.windows.numpy()
    positions = np.append(regions.positions.numpy(), 0)
    count, given = len(positions) - 1, planes[:, :, Plane.WIDTH] != 0
    given[:, 0] = True
    offset, stride, block_width, block_height, per_strip, first, width, height = np.moveaxis(planes, 2, 0)
    fits = (planes >= 0).all(axis=2) & (planes[:, :, Plane.STRIDE :] <= _LARGEST).all(axis=2)
    fits &= (planes[:, :, Plane.STRIDE : Plane.POSITIONS] > 0).all(axis=2) & (width > 0) & (height > 0)
    fits &= per_strip * block_width <= stride
    rows, columns = -(-height // np.maximum(block_height, 1)), -(-width // np.maximum(block_width, 1))
    fits &= first + rows <= count
    begin = np.where(fits, first, 0)
    spans = np.stack([begin, np.where(fits, begin + rows, min(1, count))], axis=-1).ravel()
    if not count:
        return np.zeros(len(planes), np.bool_)
    lowest = np.minimum.reduceat(positions, spans)[::2].reshape(fits.shape)
    highest = np.maximum.reduceat(positions, spans)[::2].reshape(fits.shape)
    fits &= (lowest >= 0) & (highest <= _LARGEST)
    lines = (np.where(fits, highest, 0) + columns - 1) // np.maximum(per_strip, 1) + 1
    fits &= lines <= _LARGEST // np.maximum(stride * block_height, 1)
    fits &= np.where(fits, lines, 0) * block_height * stride <= len(regions.samples) - offset
    size = np.stack([width, height], axis=-1)
    start, extent = windows[:, :, :2], windows[:, :, 2:]
    inside = (extent > 0) & (start >= -_TOLERANCE) & (start <= size - extent + _TOLERANCE)
    return np.asarray((fits & inside.all(axis=2) | ~given).all(axis=1))


def resample_regions(
    regions: Regions, resolution: int, memory_format: torch.memory_format = torch.contiguous_format
) -> torch.Tensor:
    """Resample the windows of regions and convert them to RGB.

    The filter is Pillow's bilinear one (a triangle as wide as the scale, at least two pixels, normalized over what lies
    inside the image). Chroma is taken at its own resolution, with the weights that libjpeg's upsampling (three quarters
    of a pixel's own sample and one of the next) and the filter come to together, as in kernels.planes. All is computed
    in float32, and rounded once, as RGB.

    Args:
        regions: ones that fit (`regions_fit`).
        resolution: side of the output in pixels.
        memory_format: ``torch.contiguous_format`` (planar) or ``torch.channels_last``.

    Returns:
        uint8 (N, 3, resolution, resolution) on the regions' device.
    """
    run = resample_by_torch
    if regions.samples.device.type == "cuda" and triton_is_usable():
        from kernels.device_regions_triton import resample_by_triton as run
    return run(regions, resolution, memory_format)


def resample_by_torch(regions: Regions, resolution: int, memory_format: torch.memory_format) -> torch.Tensor:
    """Do what `resample_regions` does, in plain tensor operations, one sample after another; waits for the device."""
    device = regions.samples.device
    shape = (len(regions), 3, resolution, resolution)
    result = torch.empty(shape, dtype=torch.uint8, device=device, memory_format=memory_format)
    numbers = zip(regions.planes.tolist(), regions.windows.tolist(), regions.turns.tolist(), strict=True)
    for out, (planes, windows, (transposed, mirror_x, mirror_y)) in zip(result, numbers, strict=True):
        y, cb, cr = (
            _resampled(_gathered(regions, plane), window, _pixels_per_sample(windows[0], window), resolution)
            for plane, window in zip(planes, windows, strict=True)
        )
        cb, cr = cb - 128, cr - 128
        rgb = torch.stack([y + JFIF[0] * cr, y + JFIF[1] * cb + JFIF[2] * cr, y + JFIF[3] * cb])
        rgb = rgb.mT if transposed else rgb
        axes = [axis for axis, mirrored in ((2, mirror_x), (1, mirror_y)) if mirrored]
        out.copy_(rgb.add_(0.5).floor_().clamp_(0, 255).flip(axes))
    return result


def _gathered(regions: Regions, plane: list[int]) -> torch.Tensor:
    """Return what the image covers of one component's region, uint8 (height, width); one gray sample for none."""
    offset, stride, block_width, block_height, per_strip, first, width, height = plane
    device = regions.samples.device
    if not width:
        return torch.full((1, 1), 128, dtype=torch.uint8, device=device)
    x, y = torch.arange(width, device=device), torch.arange(height, device=device)[:, None]
    tile = regions.positions[first + y // block_height] + x // block_width
    row = tile // per_strip * block_height + y % block_height
    column = tile % per_strip * block_width + x % block_width
    return regions.samples[offset + row * stride + column]


def _pixels_per_sample(luma: list[float], window: list[float]) -> tuple[int, int]:
    """Return how many pixels share a sample of a component across and down, 1 or 2, by its window and that of Y."""
    across, down = (2 if whole > 1.5 * own else 1 for whole, own in zip(luma[2:], window[2:], strict=True))
    return across, down


def _resampled(plane: torch.Tensor, window: list[float], shared: tuple[int, int], resolution: int) -> torch.Tensor:
    """Return a window of a plane at the output's size: float32 (resolution, resolution)."""
    height, width = plane.shape
    x, y, window_width, window_height = window
    down = _weights(y, window_height, height, shared[1], resolution, plane.device)
    across = _weights(x, window_width, width, shared[0], resolution, plane.device)
    return down @ plane.to(torch.float32) @ across.T


def _weights(
    start: float, extent: float, size: int, shared: int, resolution: int, device: torch.device
) -> torch.Tensor:
    """Return with which weights each output takes from an axis of samples, each of ``shared`` pixels.

    Returns:
        float32 (resolution, size).
    """
    scale = shared * extent / resolution
    centers = shared * start + (torch.arange(resolution, dtype=torch.float64, device=device)[:, None] + 0.5) * scale
    distances = torch.arange(shared * size, dtype=torch.float64, device=device) + 0.5 - centers
    weights = (1 - distances.abs() / max(scale, 1)).clamp_(min=0)
    weights /= weights.sum(dim=1, keepdim=True)
    if shared == 2:  # what pixels take from the sample before theirs and from the one behind
        before, behind = weights[:, 0::2], weights[:, 1::2]
        own = 0.75 * (before + behind)
        own[:, :-1] += 0.25 * before[:, 1:]
        own[:, 1:] += 0.25 * behind[:, :-1]
        own[:, 0] += 0.25 * before[:, 0]
        own[:, -1] += 0.25 * behind[:, -1]
        weights = own
    return weights.to(torch.float32)
